"""AdamW on a GPU: a parameter's whole step is one launch, with the host's bits.

But for numbers below 1e-38: CuPy has its kernels compiled to take those for zero.
"""

import math

import numpy as np

from ..backend import get_xp, twin
from ..ops.update import adamw_update
from . import cuda

TYPES = ('float32', 'float64')


@twin(adamw_update, 'cupy')
def gpu_adamw_update(
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
    """See `ops.update`."""
    arrays = param, grad, exp_avg, exp_avg_sq
    settings = lr, beta1, beta2, eps, weight_decay, step, grad_scale
    if _takes(arrays):
        cuda.launch(get_xp(param), adamw_launch(arrays, *settings))
    else:
        adamw_update.plain(*arrays, *settings)


def _takes(arrays):
    p = arrays[0]
    alike = all(a.flags.c_contiguous and a.dtype == p.dtype for a in arrays)
    return alike and p.size > 0 and p.dtype.name in TYPES


def adamw_launch(arrays, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """Return the launch that makes a step.

    Parameters
    ----------
    arrays : sequence of four arrays
        p, g, m and v of one shape and type, contiguous and not empty, of single or
        double precision; all but g are overwritten.
    lr, beta1, beta2, eps, weight_decay : float
        lr, β₁, β₂, ε and λ of `ops.update.adamw_update`.
    step : int
        t, counted from 1.
    grad_scale : float
        The clipping's factor, by which g is multiplied.

    Returns
    -------
    Launch
    """
    p = arrays[0]
    root = math.sqrt(1 - beta2**step)
    numbers = (
        beta1,
        beta2,
        (1 - beta1) * grad_scale,
        math.sqrt(1 - beta2) * grad_scale,
        eps * root,
        lr * root / (1 - beta1**step),
        1 - lr * weight_decay,
    )
    return cuda.Launch(
        'adamw.cu',
        cuda.template('adamw', p.dtype),
        cuda.blocks(p.size),
        (*arrays, np.int64(p.size), *map(p.dtype.type, numbers)),
    )
