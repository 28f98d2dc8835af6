"""The optimiser's step on one array, in blocks that threads share."""

import math

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.update import adamw_update, sum_of_squares
from .rows import alike

BLOCK = 1 << 18  # elements: steps long enough for threads beside each other


def _blocks(*arrays):
    """Return slices of the arrays' flat views, or None where there are none."""
    if not all(a.flags.c_contiguous and a.size for a in arrays):
        return None
    return threads.tiles(arrays[0].size, BLOCK)


@twin(sum_of_squares)
def fast_sum_of_squares(a):
    """See `ops.update`; each block's sum by itself, then theirs in order."""
    blocks = _blocks(a)
    if blocks is None:
        return sum_of_squares.plain(a)
    flat = a.reshape(-1)
    sums = np.empty(len(blocks), np.float64)

    def task(i):
        block = threads.scratch('squares', flat[blocks[i]].shape, np.float64)
        block[...] = flat[blocks[i]]
        sums[i] = block @ block

    threads.run(task, range(len(blocks)))
    return sums.sum()


@twin(adamw_update)
def fast_adamw_update(
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
    arrays = (param, grad, exp_avg, exp_avg_sq)
    blocks = _blocks(*arrays) if alike(*arrays) else None
    if blocks is None:
        adamw_update.plain(
            *arrays, lr, beta1, beta2, eps, weight_decay, step, grad_scale
        )
        return
    # as the plain operation has it, step by step: the same bits
    root = math.sqrt(1 - beta2**step)
    rate, eps = lr * root / (1 - beta1**step), eps * root
    to_m, to_v = (1 - beta1) * grad_scale, math.sqrt(1 - beta2) * grad_scale
    keep = 1 - lr * weight_decay
    flat = [a.reshape(-1) for a in arrays]

    def task(part):
        p, g, m, v = (a[part] for a in flat)
        a = threads.scratch('adamw', p.shape, p.dtype)
        np.multiply(g, to_m, out=a)
        np.multiply(m, beta1, out=m)
        np.add(m, a, out=m)
        np.multiply(g, to_v, out=a)
        np.multiply(a, a, out=a)
        np.multiply(v, beta2, out=v)
        np.add(v, a, out=v)
        np.sqrt(v, out=a)
        np.add(a, eps, out=a)
        np.divide(m, a, out=a)
        np.multiply(a, rate, out=a)
        np.multiply(p, keep, out=p)
        np.subtract(p, a, out=p)

    threads.run(task, blocks)
