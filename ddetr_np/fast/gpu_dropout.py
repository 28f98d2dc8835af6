"""Dropout on a GPU: the mask is drawn there, the same one as on the host."""

import functools
from pathlib import Path

import numpy as np

from ..backend import get_xp, twin
from ..ops.dropout import dropout, dropout_backward, scale, threshold

NAMES = {'float32': 'dropout<float>', 'float64': 'dropout<double>'}
THREADS = 256
WORD = 4  # numbers, and elements of a thread


@functools.cache
def _module(xp):
    code = Path(__file__).with_suffix('.cu').read_text(encoding='utf-8')
    return xp.RawModule(
        code=code, options=('-std=c++17',), name_expressions=[*NAMES.values()]
    )


@twin(dropout, 'cupy')
def gpu_dropout(x, p, key):
    """See `ops.dropout`."""
    name = NAMES.get(x.dtype.name)
    if key is None or p == 0 or name is None or x.size == 0:
        return dropout.plain(x, p, key)
    xp = get_xp(x)
    x = xp.ascontiguousarray(x)
    y = xp.empty_like(x)
    seed, step, stream = key
    words = -(-x.size // WORD)
    # a kernel's arguments are taken as they come: their types are those of the source
    arguments = (
        x, y, np.int64(x.size), np.uint64(seed), np.uint64(step << 16 | stream),
        np.int32(threshold(p)), x.dtype.type(scale(p)),
    )  # fmt: skip
    kernel = _module(xp).get_function(name)
    kernel((-(-words // THREADS),), (THREADS,), arguments)
    return y, (p, key)


@twin(dropout_backward, 'cupy')
def gpu_dropout_backward(dy, cache):
    """See `ops.dropout`."""
    return dy if cache is None else gpu_dropout(dy, *cache)[0]
