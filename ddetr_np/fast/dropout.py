"""Dropout in tiles: each draws its own part of the mask."""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.dropout import DRAWN, dropout, dropout_backward, kept, scale
from .rows import ELEMENTS, fits


def drop_rows(x, cache, first, out):
    """Write x ⊙ mask / (1 − p) of a tile of rows, as `mask_rows` does x ⊙ mask.

    Parameters
    ----------
    x, cache, first, out
        As of that.
    """
    mask_rows(x, cache, first, out)
    np.multiply(out, scale(cache[0]), out=out)


def mask_rows(x, cache, first, out):
    """Write x ⊙ mask of a tile of rows.

    Parameters
    ----------
    x : (rows, C) array
        Rows of a larger matrix.
    cache : (p, key)
        As of `dropout`.
    first : int
        Where the rows begin there: `first` · C is a multiple of `DRAWN`.
    out : (rows, C) array
        Written; it may be x.
    """
    p, key = cache
    mask = kept(p, key, x.size, first * x.shape[1]).reshape(x.shape)
    np.multiply(x, mask, out=out)


@twin(dropout)
def fast_dropout(x, p, key):
    """See `ops.dropout`."""
    if key is None or p == 0 or not fits(x):
        return dropout.plain(x, p, key)
    flat = np.ascontiguousarray(x).reshape(-1, 1)
    y = np.empty_like(flat)

    def task(part):
        drop_rows(flat[part], (p, key), part.start, y[part])

    threads.run(task, threads.tiles(flat.size, ELEMENTS // DRAWN * DRAWN))
    return y.reshape(x.shape), (p, key)


@twin(dropout_backward)
def fast_dropout_backward(dy, cache):
    """See `ops.dropout`."""
    return dy if cache is None else fast_dropout(dy, *cache)[0]
