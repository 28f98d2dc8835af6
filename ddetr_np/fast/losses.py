"""The focal loss in tiles that stay in the cache, each by the plain operation."""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.losses import (
    FocalCache,
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
)
from .rows import fits

LOGITS = 1 << 15  # of a tile: ten such arrays fit the cache


@twin(sigmoid_focal_loss)
def fast_sigmoid_focal_loss(x, target, alpha=0.25, gamma=2.0):
    """See `ops.losses`."""
    if not fits(x) or np.shape(target) != x.shape:
        return sigmoid_focal_loss.plain(x, target, alpha, gamma)
    logits, hits = x.ravel(), np.asarray(target).ravel()
    y, q, nll = (np.empty(logits.shape, x.dtype) for _ in range(3))

    def task(part):
        of_tile = sigmoid_focal_loss.plain(logits[part], hits[part], alpha, gamma)
        y[part], (q[part], nll[part], *_) = of_tile

    threads.run(task, threads.tiles(logits.size, LOGITS))
    y, q, nll = (a.reshape(x.shape) for a in (y, q, nll))
    return y, FocalCache(q, nll, target, alpha, gamma)


@twin(sigmoid_focal_loss_backward)
def fast_sigmoid_focal_loss_backward(dy, cache):
    """See `ops.losses`; dy may be one number for all."""
    q, nll, target, alpha, gamma = cache
    alike = np.shape(target) == q.shape and np.ndim(dy) in (0, q.ndim)
    if not fits(q, nll) or not alike:
        return sigmoid_focal_loss_backward.plain(dy, cache)
    one = np.ndim(dy) == 0
    flat = [np.asarray(a).ravel() for a in (q, nll, target)]
    drow = dy if one else np.broadcast_to(dy, q.shape).ravel()
    dx = np.empty(flat[0].shape, q.dtype)

    def task(part):
        of_tile = FocalCache(*(a[part] for a in flat), alpha, gamma)
        d = drow if one else drow[part]
        dx[part] = sigmoid_focal_loss_backward.plain(d, of_tile)

    threads.run(task, threads.tiles(dx.size, LOGITS))
    return dx.reshape(q.shape)
