"""Max pooling."""

from typing import Any, NamedTuple

from ..backend import get_xp, replaceable
from .conv import conv_size


class PoolCache(NamedTuple):
    tap: Any  # (N, Ho, Wo, C) uint8: which of the window's pixels was the largest
    size: tuple  # (H, W) of x
    kernel: int
    stride: int
    padding: int


def _windows(size, kernel, stride, padding):
    """Yield (tap, window) for each pixel of the windows, row by row."""
    Ho, Wo = (conv_size(s, kernel, stride, padding) for s in size)
    for i in range(kernel):
        for j in range(kernel):
            rows = slice(i, i + stride * (Ho - 1) + 1, stride)
            columns = slice(j, j + stride * (Wo - 1) + 1, stride)
            yield i * kernel + j, (slice(None), rows, columns)


@replaceable
def max_pool(x, kernel=3, stride=2, padding=1):
    """y[p] = the largest of x in the window at stride·p − padding.

    Of equal pixels the first, row by row, counts.

    Parameters
    ----------
    x : (N, H, W, C) array
        Each channel is pooled by itself; the padding is −∞.
    kernel, stride, padding : int
        Pixels, the same along both axes.

    Returns
    -------
    y : (N, Ho, Wo, C) array
    cache : PoolCache
    """
    xp = get_xp(x)
    p = padding
    border = ((0, 0), (p, p), (p, p), (0, 0))
    padded = xp.pad(x, border, constant_values=-xp.inf)
    y = tap = None
    for k, window in _windows(x.shape[1:3], kernel, stride, padding):
        pixel = padded[window]
        if y is None:
            y, tap = pixel.copy(), xp.zeros(pixel.shape, 'uint8')
        else:
            larger = pixel > y
            xp.copyto(tap, k, where=larger)  # an index would wait for a GPU to count
            xp.maximum(y, pixel, out=y)
    return y, PoolCache(tap, x.shape[1:3], kernel, stride, padding)


@replaceable
def max_pool_backward(dy, cache):
    """Each window's gradient goes to the pixel it came from.

    Parameters
    ----------
    dy : (N, Ho, Wo, C) array
        ∂loss/∂y.
    cache : PoolCache
        From the forward.

    Returns
    -------
    dx : (N, H, W, C) array
    """
    xp = get_xp(dy)
    (H, W), p = cache.size, cache.padding
    N, C = dy.shape[0], dy.shape[-1]
    dpadded = xp.zeros((N, H + 2 * p, W + 2 * p, C), dy.dtype)
    for k, window in _windows(cache.size, cache.kernel, cache.stride, p):
        dpadded[window] += dy * (cache.tap == k)
    return dpadded[:, p : p + H, p : p + W]
