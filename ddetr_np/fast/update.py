"""The optimiser's step on one array, in blocks that threads share."""

import math

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.update import adamw_update, sum_of_squares
from .rows import fits

BLOCK = 1 << 16  # elements: the five arrays of a block stay in the cache


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
    blocks = _blocks(*arrays) if fits(*arrays) else None
    if blocks is None:
        adamw_update.plain(
            *arrays, lr, beta1, beta2, eps, weight_decay, step, grad_scale
        )
        return
    rate = lr / (1 - beta1**step)
    root = math.sqrt(1 - beta2**step)
    keep = 1 - lr * weight_decay
    flat = [a.reshape(-1) for a in arrays]

    def task(part):
        p, g, m, v = (a[part] for a in flat)
        a = threads.scratch('adamw', p.shape, p.dtype)
        b = threads.scratch('adamw step', p.shape, p.dtype)
        g = np.multiply(g, grad_scale, out=a)
        np.subtract(g, m, out=b)
        np.multiply(b, 1 - beta1, out=b)
        np.add(m, b, out=m)
        np.multiply(v, beta2, out=v)
        np.multiply(g, g, out=g)
        np.multiply(g, 1 - beta2, out=g)
        np.add(v, g, out=v)
        np.sqrt(v, out=g)
        np.divide(g, root, out=g)
        np.add(g, eps, out=g)
        np.divide(m, g, out=g)
        np.multiply(g, rate, out=g)
        np.multiply(p, keep, out=p)
        np.subtract(p, g, out=p)

    threads.run(task, blocks)
