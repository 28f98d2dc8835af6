"""The two-layer network tile by tile: its hidden channels stay in the cache.

The gradients of the weights are sums over all tiles. A task is a group of tiles with
sums of its own, and the groups are added in their order, so that the number of threads
does not change the result.
"""

import functools

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.dropout import DRAWN, scale
from ..ops.feed_forward import (
    FeedForwardCache,
    feed_forward,
    feed_forward_backward,
)
from .dropout import mask_rows
from .rows import LEAST_ROWS, add_up, fits, groups, matrix, product_shares, total

HIDDEN = 1 << 20  # elements of a tile


def _tiles(n, F, C):
    rows = min(HIDDEN / F, n / max(1, product_shares(n, n * F * C)))
    # a part of dropout's mask begins at a multiple of what is drawn at once
    return threads.tapering_tiles(n, rows, min(rows, LEAST_ROWS), DRAWN)


@twin(feed_forward)
def fast_feed_forward(x, W1, b1, W2, b2, p=0.0, key=None):
    """See `ops.feed_forward`."""
    if not fits(x, W1, b1, W2, b2):
        return feed_forward.plain(x, W1, b1, W2, b2, p, key)
    rows = matrix(x)
    n, F = len(rows), len(W1)
    hidden = np.empty((n, F), x.dtype)
    y = np.empty((n, len(W2)), x.dtype)
    zero = np.zeros(F, x.dtype)  # NumPy's maximum with a number is slow
    drops = key is not None and p > 0
    factor = scale(p) if drops else 1.0
    if drops:  # s ReLU(W₁ x + b₁) = ReLU(s W₁ x + s b₁), which is less work
        scaled, b1 = (a * a.dtype.type(factor) for a in (W1, b1))
    else:
        scaled = W1

    def task(part):
        h = hidden[part]
        np.matmul(rows[part], scaled.T, out=h)
        np.add(h, b1, out=h)
        np.maximum(h, zero, out=h)
        if drops:
            mask_rows(h, (p, key), part.start, h)
        np.add(np.matmul(h, W2.T, out=y[part]), b2, out=y[part])

    threads.run(task, _tiles(n, F, len(W2)))
    shape = x.shape[:-1]
    cache = FeedForwardCache(x, W1, hidden.reshape(*shape, F), W2, factor)
    return y.reshape(*shape, -1), cache


@twin(feed_forward_backward)
def fast_feed_forward_backward(dy, cache):
    """See `ops.feed_forward`."""
    x, W1, hidden, W2, factor = cache
    fit = fits(dy, x, W1, hidden, W2)
    if not fit or dy.shape != (*x.shape[:-1], len(W2)):
        return feed_forward_backward.plain(dy, cache)
    rows, hidden, drows = matrix(x), matrix(hidden), matrix(dy)
    n, F = hidden.shape
    dx = np.empty(rows.shape, x.dtype)
    tiles = _tiles(n, F, len(W2))
    tasks = groups(tiles)
    dW1 = np.empty((len(tasks), *W1.shape), x.dtype)
    dW2 = np.empty((len(tasks), *W2.shape), x.dtype)
    db1 = np.zeros((len(tasks), 1, F), x.dtype)
    db2 = np.zeros((len(tasks), 1, len(W2)), x.dtype)
    scaled = W2 if factor == 1 else W2 * W2.dtype.type(factor)
    one = np.ones((1, max(part.stop - part.start for part in tiles)), x.dtype)

    def task(g):
        for i, part in enumerate(tasks[g]):
            h, d = hidden[part], drows[part]
            add_up(dW2[g], i == 0, functools.partial(np.matmul, d.T, h))
            dh = threads.scratch('ffn_dh', h.shape, x.dtype)
            np.matmul(d, scaled, out=dh)
            np.multiply(dh, h > 0, out=dh)
            np.matmul(dh, W1, out=dx[part])
            add_up(dW1[g], i == 0, functools.partial(np.matmul, dh.T, rows[part]))
            # a product with ones: the BLAS sums down the columns
            ones = one[:, : len(d)]
            db1[g] += ones @ dh
            db2[g] += ones @ d

    threads.run(task, range(len(tasks)))
    sums = map(total, (dW1, db1[:, 0], dW2, db2[:, 0]))
    return dx.reshape(x.shape), *sums
