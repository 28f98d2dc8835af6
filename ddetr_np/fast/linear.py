"""The linear map in tiles of rows, and attention head by head."""

import functools
import math

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.attention import (
    AttentionCache,
    attention,
    attention_backward,
)
from ..ops.dropout import DRAWN
from ..ops.linear import linear, linear_backward
from .activation import softmax_backward_rows, softmax_rows
from .dropout import drop_rows
from .rows import add_up, fits, groups, matrix, row_tiles, total

BLOCK = 1 << 7  # rows of dW: with fewer the BLAS arranges more than it multiplies


@twin(linear)
def fast_linear(x, W, b):
    """See `ops.linear`."""
    if not fits(x, W, b):
        return linear.plain(x, W, b)
    rows = matrix(x)
    y = np.empty((len(rows), len(W)), x.dtype)

    def task(part):
        np.add(np.matmul(rows[part], W.T, out=y[part]), b, out=y[part])

    threads.run(task, row_tiles(len(rows), max(W.shape), work=len(rows) * W.size))
    return y.reshape(x.shape[:-1] + b.shape), (x, W)


@twin(linear_backward)
def fast_linear_backward(dy, cache, need_dx=True):
    """See `ops.linear`; a task is a group of tiles, whose rows are read once."""
    x, W = cache
    if not fits(dy, x, W) or dy.shape != (*x.shape[:-1], len(W)):
        return linear_backward.plain(dy, cache, need_dx)
    rows, drows = matrix(x), matrix(dy)
    dx = np.empty(rows.shape, x.dtype) if need_dx else None
    tiles = row_tiles(len(rows), max(W.shape), work=len(rows) * W.size)
    tasks = groups(tiles)
    dW = np.empty((len(tasks), *W.shape), W.dtype)
    db = np.zeros((len(tasks), 1, len(W)), W.dtype)
    one = np.ones((1, len(rows)), dy.dtype)  # the BLAS sums down the columns
    # few rows are shared out by their outputs
    blocks = threads.tiles(len(W), BLOCK if len(tiles) == 1 else len(W))

    def task(where):
        g, block = where
        mine = dW[g, block]
        for i, part in enumerate(tasks[g]):
            d = drows[part, block]
            add_up(mine, i == 0, functools.partial(np.matmul, d.T, rows[part]))
            db[g, :, block] += one[:, : len(d)] @ d
            if need_dx and block == blocks[-1]:
                np.matmul(drows[part], W, out=dx[part])

    threads.run(task, [(g, block) for g in range(len(tasks)) for block in blocks])
    if need_dx:
        dx = dx.reshape(x.shape)
    return dx, total(dW), db.sum((0, 1))


def _parted(size, dropped):
    """Whether a part of dropout's mask, if there is one, can begin at each head's A."""
    return dropped is None or size % DRAWN == 0


def _dropped(A, dropped, i):
    """Drop elements of the i-th matrix of as many rows; A itself without dropout."""
    if dropped is None:
        return A
    out = threads.scratch('attention', A.shape, A.dtype)
    drop_rows(A, dropped, i * len(A), out)
    return out


@twin(attention)
def fast_attention(q, k, v, p=0.0, key=None):
    """See `ops.attention`; a task is a head of a picture."""
    dropped = (p, key) if key is not None and p > 0 else None
    fit = fits(q, k, v) and k.shape == (len(q), k.shape[1], *q.shape[2:])
    fit = fit and v.shape[:3] == k.shape[:3]
    if not fit or not _parted(q.shape[1] * k.shape[1], dropped):
        return attention.plain(q, k, v, p, key)
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # (N, M, n, Cv)
    N, M, Nq, Cv = q.shape
    A = np.empty((N, M, Nq, k.shape[2]), q.dtype)
    y = np.empty((N, Nq, M, v.shape[3]), q.dtype)
    scale = q.dtype.type(1 / math.sqrt(Cv))

    def head(where):
        n, m = where
        scores = A[n, m]
        np.matmul(q[n, m], k[n, m].T, out=scores)
        np.multiply(scores, scale, out=scores)
        softmax_rows(scores, scores)
        y[n, :, m] = _dropped(scores, dropped, n * M + m) @ v[n, m]

    threads.run(head, [(n, m) for n in range(N) for m in range(M)])
    return y, AttentionCache(q, k, v, A, dropped)


@twin(attention_backward)
def fast_attention_backward(dy, cache):
    """See `ops.attention`."""
    q, k, v, A, dropped = cache
    N, M, Nq, Cv = q.shape
    fit = fits(dy, q, k, v, A) and dy.shape == (N, Nq, M, v.shape[3])
    if not fit or not _parted(A[0, 0].size, dropped):
        return attention_backward.plain(dy, cache)
    dq, dk, dv = (
        np.empty((N, a.shape[2], M, a.shape[3]), a.dtype) for a in (q, k, v)
    )
    scale = q.dtype.type(1 / math.sqrt(Cv))

    def head(where):
        n, m = where
        d = dy[n, :, m]
        dv[n, :, m] = _dropped(A[n, m], dropped, n * M + m).T @ d
        # the mask is its own transpose
        dscores = _dropped(d @ v[n, m].T, dropped, n * M + m)
        softmax_backward_rows(dscores, A[n, m], dscores)
        np.multiply(dscores, scale, out=dscores)
        dq[n, :, m] = dscores @ k[n, m]
        dk[n, :, m] = dscores.T @ q[n, m]

    threads.run(head, [(n, m) for n in range(N) for m in range(M)])
    return dq, dk, dv
