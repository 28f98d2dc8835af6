"""Convolutions on the CPU: matrix products of tiles that stay in the cache.

Output rows go in tiles; the windows under a tile are laid out side by side, multiplied
by the kernel at once, and the norm, residual and ReLU are applied while the tile is in
the cache. A frozen norm's scale goes into the kernel.

The gradient of the input is a convolution of the output's gradient. With a stride there
is one for each phase of the input's rows and columns, since each phase meets only some
of the kernel.
"""

import functools
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .. import threads
from ..backend import twin
from ..ops.conv import (
    ConvCache,
    ConvNormCache,
    conv2d,
    conv2d_backward,
    conv_norm_relu,
    conv_norm_relu_backward,
    conv_size,
    joined_conv_norm_relu,
)
from . import winograd
from .rows import ELEMENTS, add_up, fits, matrix, total

WINDOWS = 1 << 20  # elements of a tile's windows
PIXELS = 1 << 10  # output pixels of a tile
LEAST_PIXELS = 1 << 7  # fewer would not pay for arranging the kernel for the product
SHARES = 4  # tasks at least, where there are channels enough,
LEAST_CHANNELS = 1 << 7  # … for each
LEAST_BLOCK = 1 << 6  # channels of a kernel's gradient, or of a small map, in a task
RUNS = 16  # of tiles at most, each with a sum of its own for a kernel's gradient
KERNELS = 1 << 22  # elements of all sums for a kernel's gradient together


class _Axis(NamedTuple):
    """Which pixels meet: output o and tap t meet input o·stride + first + t·step."""

    stride: int
    first: int
    step: int
    taps: int


class _Windows:
    """The windows of x (N, H, W, I) that an output (N, Ho, Wo) sees, tile by tile."""

    def __init__(self, x, Ho, Wo, rows, columns):
        self.x, self.Ho, self.Wo = x, Ho, Wo
        self.rows, self.columns = rows, columns
        N, H, W, I = x.shape
        self.has_outputs = Ho > 0 and Wo > 0
        self.width = rows.taps * columns.taps * I
        same = _Axis(1, 0, 1, 1)
        self.pointwise = (
            rows._replace(step=1) == columns._replace(step=1) == same
            and (Ho, Wo) == (H, W)
            and x.flags.c_contiguous
        )

    def tiles(self, pixels=None, least=None):
        """Return tiles of at most as many pixels: (slice of pictures, of output rows).

        Several pictures share a tile only if each is in it whole.
        """
        most = pixels or min(PIXELS, max(LEAST_PIXELS, WINDOWS // self.width))
        least = least or LEAST_PIXELS
        parts = threads.tapering_tiles(self.Ho, most / self.Wo, least / self.Wo)
        return self._with_pictures(parts, most)

    def winograd_tiles(self, most=winograd.PIXELS):
        """Return the same for Winograd's products, whose short tiles do not pay.

        They take four rows at a time.
        """
        parts = threads.even_tiles(self.Ho, most / self.Wo, winograd.OUT)
        return self._with_pictures(parts, most)

    def _with_pictures(self, parts, most):
        pictures = threads.tiles(len(self.x), most // (self.Ho * self.Wo))
        return [(some, part) for some in pictures for part in parts]

    def __call__(self, tile):
        """Return the tile's windows as a matrix (pixels, taps · I)."""
        pictures, part = tile
        if self.pointwise:
            return self.x[pictures, part].reshape(-1, self.width)
        I = self.x.shape[3]
        r, c = self.rows, self.columns
        n_rows = part.stop - part.start
        inside = self.inside(pictures, part.start, n_rows, self.Wo)
        n, a, b, e = inside.strides
        view = as_strided(
            inside,
            (len(inside), n_rows, self.Wo, r.taps, c.taps, I),
            (n, r.stride * a, c.stride * b, r.step * a, c.step * b, e),
        )
        windows = threads.scratch('conv_windows', view.shape, self.x.dtype)
        windows[...] = view
        return windows.reshape(-1, self.width)

    def inside(self, pictures, start, rows, columns, channels=slice(None)):
        """Return the pixels that output rows from `start` on touch, zeros outside x."""
        r, c = self.rows, self.columns
        height = (rows - 1) * r.stride + (r.taps - 1) * r.step + 1
        width = (columns - 1) * c.stride + (c.taps - 1) * c.step + 1
        x = self.x[pictures, ..., channels]
        shape = (len(x), height, width, x.shape[3])
        inside = threads.scratch('conv_inside', shape, x.dtype)
        _copy_bordered(x, start * r.stride + r.first, c.first, inside)
        return inside

    def suit_winograd(self, O):
        """Whether 4×4 outputs at once are quicker: 3×3, no stride, many channels."""
        plain = _Axis(1, 0, 1, 3)
        return (
            self.rows._replace(first=0) == self.columns._replace(first=0) == plain
            and min(self.x.shape[3], O) >= winograd.LEAST
            and len(self.x) * self.Ho * self.Wo >= winograd.LEAST_PIXELS
        )

    def n_patches(self, pictures, rows):
        """Return how many of Winograd's patches cover rows of some pictures."""
        return pictures * -(-rows // winograd.OUT) * -(-self.Wo // winograd.OUT)

    def patches(self, tile, channels=slice(None), out=None):
        """Return `winograd.patches` of a tile, or of channels of it."""
        pictures, part = tile
        rows, columns = (
            -(-n // winograd.OUT) * winograd.OUT
            for n in (part.stop - part.start, self.Wo)
        )
        inside = self.inside(pictures, part.start, rows, columns, channels)
        return winograd.patches(inside, out)

    def all_patches(self):
        """Return the patches of all pixels, in memory of their own."""
        N, _, _, I = self.x.shape
        n = self.n_patches(N, self.Ho)
        out = np.empty((winograd.PATCH**2, n, I), self.x.dtype)

        def task(tile):
            pictures, part = tile
            start = self.n_patches(pictures.start, self.Ho)
            start += self.n_patches(1, part.start)
            n = pictures.stop - pictures.start, part.stop - part.start
            self.patches(tile, out=out[:, start : start + self.n_patches(*n)])

        size = min(winograd.PIXELS, N * self.Ho * self.Wo // SHARES)
        threads.run(task, self.winograd_tiles(size))
        return out


def _copy_bordered(x, top, left, out):
    """out[n, i, j] = x[n, top + i, left + j], zero where that is outside x."""
    (H, W), (height, width) = x.shape[1:3], out.shape[1:3]
    y0, y1 = max(0, -top), min(height, H - top)
    x0, x1 = max(0, -left), min(width, W - left)
    if y0 >= y1 or x0 >= x1:
        out[...] = 0
        return
    out[:, :y0] = 0
    out[:, y1:] = 0
    out[:, y0:y1, :x0] = 0
    out[:, y0:y1, x1:] = 0
    out[:, y0:y1, x0:x1] = x[:, top + y0 : top + y1, left + x0 : left + x1]


def _forward_windows(x, W, stride, padding, dilation):
    Ho, Wo = (
        conv_size(x.shape[1 + i], W.shape[i], stride, padding, dilation)
        for i in (0, 1)
    )
    rows, columns = (_Axis(stride, -padding, dilation, W.shape[i]) for i in (0, 1))
    return _Windows(x, Ho, Wo, rows, columns)


def _belongs(dy, conv):
    """Whether dy is the gradient of a convolution's output, and a twin takes it."""
    x, W, *geometry = conv
    windows = _forward_windows(x, W, *geometry)
    shape = len(x), windows.Ho, windows.Wo, W.shape[3]
    return fits(dy, x, W) and dy.shape == shape


class _Kernel(NamedTuple):
    """The kernel of a convolution, ⊙ scale over the outputs O of W.

    For the input's gradient it is `turned`: from O to I, and by the taps' indices.
    """

    W: Any  # (taps, taps, I, O)
    scale: Any = None  # (O,)
    turned: Any = None  # taps' indices along rows and columns, in the order they meet

    @property
    def outputs(self):
        return self.W.shape[3 if self.turned is None else 2]

    def part(self, channels):
        """Return the kernel of some of its outputs."""
        W, scale, turned = self
        if turned is not None:
            return _Kernel(W[:, :, channels], scale, turned)
        return _Kernel(W[..., channels], None if scale is None else scale[channels])

    def transformed(self):
        """Return U of `winograd.convolve`."""
        return winograd.transformed(self.W, self.scale, self.turned is not None)

    def matrix(self):
        """Return the matrix (taps · inputs, outputs) that windows are multiplied by."""
        W, scale, turned = self
        I, O = W.shape[2:]
        rows, columns = map(range, W.shape[:2]) if turned is None else turned
        taps = [W[i, j] for i in rows for j in columns]
        if turned is None and scale is None:
            return matrix(W)
        if turned is not None and len(taps) == 1:
            (g,) = taps
            return (g if scale is None else g * scale).T
        shape = (I, O) if turned is None else (O, I)
        out = np.empty((len(taps), *shape), W.dtype)
        factor = 1 if scale is None else scale

        def task(where):
            tap, inputs = where
            g = taps[tap][inputs]
            to = out[tap, inputs] if turned is None else out[tap, :, inputs].T
            np.multiply(g, factor, out=to)

        parts = threads.tiles(I, ELEMENTS // O)
        threads.run(task, [(tap, part) for tap in range(len(taps)) for part in parts])
        return out.reshape(-1, out.shape[2])


class _JoinedWindows(_Windows):
    """The pixels of two maps side by side, of the second some strides apart."""

    def __init__(self, x, other, stride):
        N, H, W, I = x.shape
        one = _Axis(1, 0, 1, 1)
        super().__init__(x, H, W, one, one)
        self.other = other[:, ::stride, ::stride]
        self.width = I + other.shape[3]

    def __call__(self, tile):
        pictures, part = tile
        x, other = self.x[pictures, part], self.other[pictures, part]
        shape = (*x.shape[:3], self.width)
        windows = threads.scratch('conv_windows', shape, x.dtype)
        windows[..., : x.shape[3]] = x
        windows[..., x.shape[3] :] = other
        return windows.reshape(-1, self.width)


class _JoinedKernel(NamedTuple):
    """Two 1×1 kernels with their scales, whose outputs are added."""

    kernels: Any

    @property
    def outputs(self):
        return self.kernels[0].outputs

    def matrix(self):
        """Return them one below the other."""
        Ws = [W[0, 0] for W, _, _ in self.kernels]
        out = np.empty((sum(map(len, Ws)), self.outputs), Ws[0].dtype)
        tasks, start = [], 0
        for W, (_, scale, _) in zip(Ws, self.kernels):
            for part in threads.tiles(len(W), ELEMENTS // self.outputs):
                to = out[start + part.start : start + part.stop]
                tasks.append((W[part], scale, to))
            start += len(W)
        threads.run(lambda task: np.multiply(task[0], task[1], out=task[2]), tasks)
        return out


def _convolve(windows, kernel, y, shift=None, residual=None, relu=False):
    """y = ReLU(windows · kernel + shift + residual)."""
    O = kernel.outputs
    quick = windows.suit_winograd(O)
    N, Ho, Wo, _ = y.shape
    # a large kernel of a small map is transformed by those who multiply by it, and the
    # map before
    few = quick and windows.n_patches(N, Ho) < windows.x.shape[3]
    if few:
        patches, tiles = windows.all_patches(), [(slice(0, N), slice(0, Ho))]
    elif quick:
        W, tiles = kernel.transformed(), windows.winograd_tiles()
    else:
        W, tiles = kernel.matrix(), windows.tiles()

    def task(where):
        *tile, channels = where
        place = (*tile, slice(None), channels)
        out = y[place]
        result = out
        if not out.flags.c_contiguous:
            result = threads.scratch('conv_out', out.shape, y.dtype)
        some = None if shift is None else shift[channels]
        if few:
            U = kernel.part(channels).transformed()
            winograd.convolve(patches, U, result, some)
        elif quick:
            winograd.convolve(windows.patches(tile), W[..., channels], result, some)
        else:
            rows = result.reshape(-1, result.shape[-1])
            np.matmul(windows(tile), W[:, channels], out=rows)
            if shift is not None:
                np.add(rows, some, out=rows)
        if residual is not None:
            np.add(result, residual[place], out=result)
        if relu:
            np.maximum(result, zero[: result.size].reshape(result.shape), out=result)
        if result is not out:
            out[...] = result

    # small maps have few rows to share, but many channels
    size = max(LEAST_CHANNELS, -(-O * len(tiles) // SHARES))
    if few:
        size = min(LEAST_CHANNELS, max(LEAST_BLOCK, -(-O // 2)))
    blocks = threads.tiles(O, size)
    # as long as a tile: NumPy's maximum with a number, or with a row, is slower
    longest = max(y[tile][..., blocks[0]].size for tile in tiles) if relu else 0
    zero = np.zeros(longest, y.dtype)
    threads.run(task, [(*tile, block) for tile in tiles for block in blocks])


@twin(conv2d)
def fast_conv2d(x, W, b=None, stride=1, padding=0, dilation=1):
    """See `ops.conv`."""
    windows = _forward_windows(x, W, stride, padding, dilation)
    if not fits(x, W) or not windows.has_outputs:
        return conv2d.plain(x, W, b, stride, padding, dilation)
    y = np.empty((len(x), windows.Ho, windows.Wo, W.shape[3]), x.dtype)
    _convolve(windows, _Kernel(W), y, b)
    return y, ConvCache(x, W, stride, padding, dilation)


@twin(conv_norm_relu)
def fast_conv_norm_relu(
    x, W, scale, shift, residual=None, relu=True, stride=1, padding=0, dilation=1
):
    """See `ops.conv`."""
    windows = _forward_windows(x, W, stride, padding, dilation)
    shape = len(x), windows.Ho, windows.Wo, W.shape[3]
    fit = fits(x, W, scale, shift) and windows.has_outputs
    fit = fit and scale.shape == shift.shape == shape[3:]
    if not fit or not (residual is None or residual.shape == shape):
        return conv_norm_relu.plain(
            x, W, scale, shift, residual, relu, stride, padding, dilation
        )
    y = np.empty(shape, x.dtype)
    _convolve(windows, _Kernel(W, scale), y, shift, residual, relu)
    conv = ConvCache(x, W, stride, padding, dilation)
    return y, ConvNormCache(conv, scale, y, residual is not None, relu)


@twin(joined_conv_norm_relu)
def fast_joined_conv_norm_relu(x, W, scale, shift, shortcut):
    """See `ops.conv`; the two are one product, their pixels side by side."""
    x2, W2, scale2, shift2, stride = shortcut
    fit = fits(x, W, scale, shift, x2, W2, scale2, shift2)
    fit = fit and x.shape[:3] == x2[:, ::stride, ::stride].shape[:3]
    if not fit or not W.shape[:2] == W2.shape[:2] == (1, 1):
        return joined_conv_norm_relu.plain(x, W, scale, shift, shortcut)
    y = np.empty((*x.shape[:3], W.shape[3]), x.dtype)
    kernel = _JoinedKernel((_Kernel(W, scale), _Kernel(W2, scale2)))
    _convolve(_JoinedWindows(x, x2, stride), kernel, y, shift + shift2, relu=True)
    return y


@twin(conv2d_backward)
def fast_conv2d_backward(dy, cache, need_dx=True, need_dW=True, need_db=True):
    """See `ops.conv`."""
    if not _belongs(dy, cache):
        return conv2d_backward.plain(dy, cache, need_dx, need_dW, need_db)
    dx = _input_gradient(dy, cache) if need_dx else None
    dW = _kernel_gradient(dy, cache) if need_dW else None
    return dx, dW, _channel_sums(dy) if need_db else None


@twin(conv_norm_relu_backward)
def fast_conv_norm_relu_backward(dy, cache, need_dx=True, need_dW=True):
    """See `ops.conv`."""
    conv, scale, y, residual, relu = cache
    if not (_belongs(dy, conv) and fits(dy, scale, y)):
        return conv_norm_relu_backward.plain(dy, cache, need_dx, need_dW)
    if relu:
        # the norm's scale goes in at once, unless the residual takes dy as it is
        early = None if residual else scale
        dy = _active(dy, y, early)
        scale = scale if residual else None
    dx = _input_gradient(dy, conv, scale) if need_dx else None
    dW = _kernel_gradient(dy, conv) if need_dW else None
    if need_dW and scale is not None:
        dW *= scale
    return dx, dW, dy if residual else None


def _active(dy, y, scale=None):
    """Return dy where y > 0, else 0, times the channels' scale."""
    out = np.empty(dy.shape, dy.dtype)
    size = PIXELS * 64 // max(1, dy.shape[2] * dy.shape[3])

    def task(tile):
        d = np.multiply(dy[tile], y[tile] > 0, out=out[tile])
        if scale is not None:
            np.multiply(d, scale, out=d)

    parts = threads.tiles(dy.shape[1], size)
    threads.run(task, [(n, part) for n in range(len(dy)) for part in parts])
    return out


def _phases(size, kernel, stride, padding, dilation):
    """Yield (phase, taps, axis): input pixels phase + stride·a, and what they meet.

    Input h meets tap t of output o where o·stride + t·dilation − padding = h, so one in
    `every` of the taps, and o = a + first − step·t'.
    """
    every = stride // gcd(stride, dilation)
    for phase in range(min(stride, size)):
        outputs = {
            t: (phase + padding - t * dilation) // stride
            for t in reversed(range(kernel))  # so that the outputs rise
            if (phase + padding - t * dilation) % stride == 0
        }
        axis = None
        if outputs:
            first = next(iter(outputs.values()))
            axis = _Axis(1, first, every * dilation // stride, len(outputs))
        yield phase, list(outputs), axis


def _input_gradient(dy, conv, scale=None):
    """dx, by phases: each a convolution of dy with the taps that it meets, turned."""
    x, W, stride, padding, dilation = conv
    dx = np.empty(x.shape, x.dtype)
    kh, kw, I, O = W.shape
    for i, taps_i, rows in _phases(x.shape[1], kh, stride, padding, dilation):
        for j, taps_j, columns in _phases(x.shape[2], kw, stride, padding, dilation):
            out = dx[:, i::stride, j::stride]
            if rows is None or columns is None:  # no output saw these pixels
                out[...] = 0
                continue
            windows = _Windows(dy, *out.shape[1:3], rows, columns)
            _convolve(windows, _Kernel(W, scale, (taps_i, taps_j)), out)
    return dx


def _kernel_gradient(dy, conv):
    """DW = windowsᵀ · dy.

    A task is a run of tiles and a block of channels. It has a sum of its own and adds
    its tiles to it in their order.
    """
    x, W, stride, padding, dilation = conv
    windows = _forward_windows(x, W, stride, padding, dilation)
    kh, kw, I, O = W.shape
    quick = windows.suit_winograd(O)
    if quick:
        tiles = windows.winograd_tiles()
    elif windows.pointwise:  # nothing is laid out for these, so that they may be long
        pixels = dy.size // O
        tiles = windows.tiles(max(PIXELS, pixels // SHARES), pixels // RUNS)
    else:
        tiles = windows.tiles()
    taps = winograd.PATCH**2 if quick else kh * kw
    # runs, as far as their sums are small, and blocks for the rest of the shares
    most = max(1, min(len(tiles), SHARES if quick else RUNS, KERNELS // (taps * I * O)))
    runs = threads.tiles(len(tiles), -(-len(tiles) // most))
    channels = I if quick else O
    blocks = threads.tiles(channels, max(LEAST_BLOCK, -(-channels * most // SHARES)))
    sums = np.empty((len(runs), taps, I, O), W.dtype)

    def winograd_task(which):
        run, block = which
        mine = sums[run, :, block]
        for i, tile in enumerate(tiles[runs[run]]):
            patches = windows.patches(tile, block)
            write = functools.partial(winograd.kernel_products, patches, dy[tile])
            add_up(mine, i == 0, write)

    def task(which):
        run, block = which
        mine = sums[run].reshape(-1, O)[:, block]
        for i, tile in enumerate(tiles[runs[run]]):
            d = dy[tile].reshape(-1, O)[:, block]
            add_up(mine, i == 0, functools.partial(np.matmul, windows(tile).T, d))

    threads.run(
        winograd_task if quick else task,
        [(run, block) for run in range(len(runs)) for block in blocks],
    )
    sums = total(sums)
    return winograd.kernel_gradient(sums) if quick else sums.reshape(W.shape)


def _channel_sums(dy):
    """Σ dy over all but the channels, rows of a picture first."""
    N, H, W, O = dy.shape
    sums = np.empty((N, H, O), dy.dtype)
    one = np.ones((1, W), dy.dtype)

    def task(tile):
        n, part = tile
        np.matmul(one, dy[n, part], out=sums[n, part, None])

    size = PIXELS // max(1, W)
    parts = threads.tiles(H, size)
    threads.run(task, [(n, part) for n in range(N) for part in parts])
    return sums.sum((0, 1))
