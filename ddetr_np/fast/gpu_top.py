"""The choice of proposals on a GPU, without a sort that the host would wait for."""

import numpy as np

from ..backend import get_xp, twin
from ..ops.top import top
from . import cuda

TYPES = ('float16', 'float32', 'float64')


@twin(top, 'cupy')
def gpu_top(scores, n):
    """See `ops.top`."""
    if scores.dtype.name not in TYPES or scores.size == 0:
        return top.plain(scores, n)
    xp = get_xp(scores)
    N, S = scores.shape
    places = xp.empty((N, min(n, S)), np.int64)
    if places.size:
        cuda.launch(xp, top_launch(xp.ascontiguousarray(scores), places))
    return places


def top_launch(scores, places):
    """Return the launch that writes the places.

    Parameters
    ----------
    scores : (N, S) array
        Contiguous and not empty, of half, single or double precision.
    places : (N, n) int64 array
        Written; 0 < n ≤ S.

    Returns
    -------
    Launch
    """
    (N, S), n = scores.shape, places.shape[1]
    return cuda.Launch(
        'top.cu',
        cuda.template('top', scores.dtype),
        N * cuda.blocks(S),
        (scores, places, np.int32(S), np.int32(n)),
    )
