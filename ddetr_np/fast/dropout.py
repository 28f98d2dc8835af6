"""Dropout in tiles: each draws its own part of the mask."""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.dropout import DRAWN, dropout, dropout_backward, kept, scale
from .rows import ELEMENTS, fits


@twin(dropout)
def fast_dropout(x, p, key):
    """See `ops.dropout`."""
    if key is None or p == 0 or not fits(x):
        return dropout.plain(x, p, key)
    flat = np.ascontiguousarray(x).ravel()
    y = np.empty_like(flat)
    factor = scale(p)

    def task(part):
        out, n = y[part], part.stop - part.start
        mask = threads.scratch('dropout', (n,), x.dtype)
        mask[...] = kept(p, key, n, part.start)
        np.multiply(flat[part], mask, out=out)
        np.multiply(out, factor, out=out)

    threads.run(task, threads.tiles(flat.size, ELEMENTS // DRAWN * DRAWN))
    return y.reshape(x.shape), (p, key)


@twin(dropout_backward)
def fast_dropout_backward(dy, cache):
    """See `ops.dropout`."""
    return dy if cache is None else fast_dropout(dy, *cache)[0]
