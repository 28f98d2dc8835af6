"""One step of an optimiser on one array, in place.

Not pairs, and the only operations that write to their arguments.
"""

import math

import numpy as np

from ..backend import get_xp, replaceable

BLOCK = 1 << 16  # elements at a time on the CPU: the temporaries stay in the cache
BLOCK_GPU = 1 << 22  # a launch has its price: fewer, larger pieces


@replaceable
def sum_of_squares(a):
    """Σ a², summed in float64; a NaN in `a` shows.

    Parameters
    ----------
    a : (...) array
        Of any shape and precision.

    Returns
    -------
    () float64 array
    """
    xp = get_xp(a)
    total = xp.zeros((), 'float64')
    for (block,) in _blocks(a):
        block = block.astype('float64').ravel()
        total = total + block @ block
    return total


@replaceable
def adamw_update(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    step,
    grad_scale=1.0,
):
    """p ← (1 − lr λ) p − lr m̂ / (√v̂ + ε): AdamW, decay apart from the gradient.

    m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) g², with g = grad_scale · grad;
    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ).

    Parameters
    ----------
    param, grad, exp_avg, exp_avg_sq : arrays of one shape
        p, g, m and v; all but grad are overwritten.
    lr, beta1, beta2, eps, weight_decay : float
        lr, β₁, β₂, ε and λ.
    step : int
        t, counted from 1.
    grad_scale : float
        The clipping's factor.
    """
    xp = get_xp(param)
    # m̂ / (√v̂ + ε) = m √(1 − β₂ᵗ) / (1 − β₁ᵗ) / (√v + ε √(1 − β₂ᵗ)): fewer steps
    root = math.sqrt(1 - beta2**step)
    rate, eps = lr * root / (1 - beta1**step), eps * root
    to_m, to_v = (1 - beta1) * grad_scale, math.sqrt(1 - beta2) * grad_scale
    for p, g, m, v in _blocks(param, grad, exp_avg, exp_avg_sq):
        m *= beta1
        m += to_m * g
        a = to_v * g
        a *= a
        v *= beta2
        v += a
        xp.sqrt(v, out=a)
        a += eps
        xp.divide(m, a, out=a)
        a *= rate
        p *= 1 - lr * weight_decay
        p -= a


@replaceable
def sgd_update(
    param, grad, buffer, lr, momentum, weight_decay, nesterov=False, grad_scale=1.0
):
    """p ← p − lr m, m ← μ m + g; Nesterov: p ← p − lr (g + μ m).

    g = grad_scale · grad + λ p.

    Parameters
    ----------
    param, grad, buffer : arrays of one shape
        p, g and m; p and m are overwritten. buffer is None without momentum.
    lr, momentum, weight_decay : float
        lr, μ and λ.
    nesterov : bool
        True takes the second form; without momentum they are the same.
    grad_scale : float
        The clipping's factor.
    """
    arrays = (param, grad) if buffer is None else (param, grad, buffer)
    for p, g, *momenta in _blocks(*arrays):
        g = g * grad_scale
        g += weight_decay * p
        for m in momenta:  # one or none
            m *= momentum
            m += g
            g = g + momentum * m if nesterov else m
        p -= lr * g


def _blocks(*arrays):
    """Yield matching views of the arrays, so that temporaries stay small."""
    if all(a.flags.c_contiguous for a in arrays):
        arrays = [a.reshape(-1) for a in arrays]
    first = arrays[0]
    if first.size == 0:
        return
    block = BLOCK if get_xp(first) is np else BLOCK_GPU
    rows = max(1, block * len(first) // first.size)
    for i in range(0, len(first), rows):
        yield [a[i : i + rows] for a in arrays]
