"""The stem's inference: convolution and pooling in one go, rows by rows.

The convolution's maps are the largest of the whole network. Pooled while they are in
the cache, they never leave it, and nobody asks which pixel was the largest.
"""

import numpy as np

from .. import threads
from ..backend import twin
from ..module import EVAL
from .conv import PIXELS, _forward_windows, _Kernel
from .rows import fits

STRIPS = 8  # tasks of a picture; a row of each is convolved twice


@twin('resnet.infer')
def fast_stem(stem, x, run=EVAL):
    """See `nn.resnet.Stem.infer`.

    Parameters
    ----------
    stem : Stem
        Whose method this stands in for. In training, one whose norm learns is left to
        the plain method.
    x : (N, H, W, 3) array
        Normalised pictures; other than of single or double precision, they are left to
        the plain method.
    run : Run
        What the pass is for.

    Returns
    -------
    y : (N, H/4, W/4, width) array
    """
    W = stem.conv1.weight.data
    if (run.train and not stem.bn1.frozen) or not fits(x, W):
        return type(stem).infer.plain(stem, x, run)
    scale, shift = stem.bn1.affine()
    windows = _forward_windows(x, W, *stem.conv1.geometry)
    W = _Kernel(W, scale).matrix()
    N, (H, columns), C = len(x), (windows.Ho, windows.Wo), W.shape[1]
    y = np.empty((N, (H + 1) // 2, (columns + 1) // 2, C), x.dtype)
    zero = np.zeros(C, x.dtype)
    most = max(1, PIXELS // (2 * columns))

    def convolve(n, rows, out):
        """Write rows of ReLU(convolution) into out, whose left border stays."""
        inside = slice(max(0, rows.start), min(H, rows.stop))
        size = inside.stop - inside.start
        result = threads.scratch('stem', (size, columns, C), x.dtype)
        flat = result.reshape(-1, C)
        np.matmul(windows((slice(n, n + 1), inside)), W, out=flat)
        np.add(flat, shift, out=flat)
        # zeros pool as −∞ would: nothing is less after ReLU
        np.maximum(result, zero, out=out[:size, 1 : 1 + columns])
        out[size:] = 0

    def strip(where):
        n, pooled = where
        # a row above and a column left of the pooled pairs
        width = 2 * y.shape[2] + 1
        band = threads.scratch('stem_band', (2 * most + 1, width, C), x.dtype)
        band[...] = 0
        first = 2 * pooled.start - 1
        if first >= 0:
            convolve(n, slice(first, first + 1), band[:1])
        for part in threads.tiles(pooled.stop - pooled.start, most):
            rows = slice(pooled.start + part.start, pooled.start + part.stop)
            size = rows.stop - rows.start
            convolve(n, slice(2 * rows.start, 2 * rows.stop), band[1 : 2 * size + 1])
            tall = threads.scratch('stem_tall', (size, width, C), x.dtype)
            _largest(band[: 2 * size + 1], tall)
            _largest(tall.swapaxes(0, 1), y[n, rows].swapaxes(0, 1))
            band[0] = band[2 * size]

    strips = threads.even_tiles(y.shape[1], y.shape[1] / STRIPS)
    threads.run(strip, [(n, part) for n in range(N) for part in strips])
    return y


def _largest(a, out):
    """out[i] = the largest of a[2 i], a[2 i + 1] and a[2 i + 2]."""
    np.maximum(a[:-1:2], a[1::2], out=out)
    np.maximum(out, a[2::2], out=out)
