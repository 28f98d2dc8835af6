"""Max pooling in tiles of output rows."""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.conv import conv_size
from ..ops.pool import PoolCache, max_pool
from .rows import ELEMENTS, fits


@twin(max_pool)
def fast_max_pool(x, kernel=3, stride=2, padding=1):
    """See `ops.pool`."""
    N, H, W, C = x.shape
    Ho, Wo = (conv_size(s, kernel, stride, padding) for s in (H, W))
    if not fits(x) or min(Ho, Wo) < 1:
        return max_pool.plain(x, kernel, stride, padding)
    y = np.empty((N, Ho, Wo, C), x.dtype)
    tap = np.empty(y.shape, np.uint8)
    width = stride * (Wo - 1) + kernel

    def task(where):
        n, part = where
        rows = part.stop - part.start
        top = part.start * stride - padding
        shape = (stride * (rows - 1) + kernel, width, C)
        inside = threads.scratch('pool_inside', shape, x.dtype)
        inside[...] = -np.inf
        y0, y1 = max(0, -top), min(shape[0], H - top)
        x1 = min(width, W + padding)
        inside[y0:y1, padding:x1] = x[n, top + y0 : top + y1, : x1 - padding]
        out, which = y[n, part], tap[n, part]
        larger = threads.scratch('pool_larger', out.shape, bool)
        step = threads.scratch('pool_step', out.shape, np.uint8)
        which[...] = 0
        for k in range(kernel**2):
            i, j = divmod(k, kernel)
            pixel = inside[
                i : i + stride * (rows - 1) + 1 : stride,
                j : j + stride * (Wo - 1) + 1 : stride,
            ]
            if k == 0:
                out[...] = pixel
                continue
            np.greater(pixel, out, out=larger)
            # k where larger, else what was: k only rises, so the maximum will do
            np.multiply(larger.view(np.uint8), np.uint8(k), out=step)
            np.maximum(which, step, out=which)
            np.maximum(out, pixel, out=out)

    parts = threads.tiles(Ho, ELEMENTS // (4 * Wo * C))
    threads.run(task, [(n, part) for n in range(N) for part in parts])
    return y, PoolCache(tap, (H, W), kernel, stride, padding)
