"""Dropout on a GPU: the mask is drawn there, the same one as on the host."""

import operator

import numpy as np

from ..backend import get_xp, twin
from ..ops.dropout import dropout, dropout_backward, scale, threshold
from . import cuda

TYPES = ('float16', 'float32', 'float64')
WORD = 4  # numbers, and elements of a thread


@twin(dropout, 'cupy')
def gpu_dropout(x, p, key):
    """See `ops.dropout`."""
    if key is None or p == 0 or x.dtype.name not in TYPES or x.size == 0:
        return dropout.plain(x, p, key)
    xp = get_xp(x)
    x = xp.ascontiguousarray(x)
    y = xp.empty_like(x)
    cuda.launch(xp, dropout_launch(x, y, p, key))
    return y, (p, key)


@twin(dropout_backward, 'cupy')
def gpu_dropout_backward(dy, cache):
    """See `ops.dropout`."""
    return dy if cache is None else gpu_dropout(dy, *cache)[0]


def dropout_launch(x, y, p, key):
    """Return the launch that writes y.

    Parameters
    ----------
    x : (...) array
        Contiguous and not empty, of half, single or double precision.
    y : like x
        Written.
    p : float
        Probability to drop, in [0, 1).
    key : (int, int, int)
        Seed, step and stream (< 2¹⁶), as for `ops.dropout`.

    Returns
    -------
    Launch
    """
    seed, step, stream = map(operator.index, key)
    return cuda.Launch(
        'dropout.cu',
        cuda.template('dropout', x.dtype),
        cuda.blocks(-(-x.size // WORD)),
        (
            x,
            y,
            np.int64(x.size),
            np.uint64(seed),
            np.uint64(step << 16 | stream),
            np.int32(threshold(p)),
            np.promote_types(x.dtype, np.float32).type(scale(p)),
        ),
    )
