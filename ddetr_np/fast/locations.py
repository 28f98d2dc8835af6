"""Sampling locations of 2-d reference points, head by head in long loops.

The plain operation's innermost loops run over x and y alone, or over the K keys. Here
a query's points of one head are a row of 2 L K numbers, and what is added to it or
multiplied by is such a row, too.
"""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.ms_deform_attn import sampling_locations, sampling_locations_backward
from .rows import fits, row_tiles


def _unit_row(shapes, K, dtype):
    """Return (2 L K,): 1/W and 1/H of the level, for each point."""
    units = 1 / np.array([(W, H) for H, W in shapes], dtype)
    return np.repeat(units, K, 0).ravel()


@twin(sampling_locations)
def fast_sampling_locations(p_hat, offset, shapes):
    """See `ops.ms_deform_attn`."""
    if not fits(p_hat, offset) or p_hat.shape[-1] != 2:
        return sampling_locations.plain(p_hat, offset, shapes)
    N, Nq, M, L, K, _ = offset.shape
    offsets = np.ascontiguousarray(offset).reshape(N * Nq, M, 2 * L * K)
    points = p_hat.reshape(N * Nq, L, 2)
    loc = np.empty(offsets.shape, offset.dtype)
    unit = _unit_row(shapes, K, offset.dtype)

    def task(part):
        np.multiply(offsets[part], unit, out=loc[part])
        row = np.repeat(points[part], K, 1).reshape(-1, 1, 2 * L * K)
        np.add(loc[part], row, out=loc[part])

    threads.run(task, row_tiles(N * Nq, 2 * M * L * K))
    return loc.reshape(offset.shape), (p_hat, None, shapes)


@twin(sampling_locations_backward)
def fast_sampling_locations_backward(dloc, cache, need_dp_hat=True):
    """See `ops.ms_deform_attn`."""
    p_hat, _, shapes = cache
    if not fits(p_hat, dloc) or p_hat.shape[-1] != 2:
        return sampling_locations_backward.plain(dloc, cache, need_dp_hat)
    N, Nq, M, L, K, _ = dloc.shape
    rows = np.ascontiguousarray(dloc).reshape(N * Nq, M, 2 * L * K)
    doffset = np.empty(rows.shape, dloc.dtype)
    unit = _unit_row(shapes, K, dloc.dtype)

    def task(part):
        np.multiply(rows[part], unit, out=doffset[part])

    threads.run(task, row_tiles(N * Nq, 2 * M * L * K))
    dp_hat = dloc.sum((2, 4)) if need_dp_hat else None
    return dp_hat, doffset.reshape(dloc.shape)
