"""Convolution on a GPU: one product for all taps, in tiles (im2col).

The plain operation has a product for each tap, each of which reads and writes the whole
output. Here the pixels under the kernel are laid side by side first, a tile of output
rows at a time, so that memory stays bounded. Kernels of one tap need no such copy and
stay with the plain operation. Where cuDNN is installed, it takes the others.
"""

from ..backend import get_xp, twin
from ..ops import product
from ..ops.conv import (
    ConvCache,
    ConvNormCache,
    _pad,
    conv2d,
    conv2d_backward,
    conv_norm_relu,
    conv_norm_relu_backward,
    conv_size,
)
from . import gpu_cudnn

TILE = 1 << 27  # elements laid side by side at a time: half a gigabyte in float32


@twin(conv2d, 'cupy')
def gpu_conv2d(x, W, b=None, stride=1, padding=0, dilation=1):
    """See `ops.conv`."""
    kh, kw, _, O = W.shape
    if kh * kw == 1:
        return conv2d.plain(x, W, b, stride, padding, dilation)
    y = gpu_cudnn.fprop(x, W, stride, padding, dilation)
    if y is None:
        Ho = conv_size(x.shape[1], kh, stride, padding, dilation)
        Wo = conv_size(x.shape[2], kw, stride, padding, dilation)
        xp = get_xp(x)
        y = xp.empty((len(x), Ho, Wo, O), x.dtype)
        kernel = W.reshape(-1, O)
        for part, columns in _tiles(x, W, stride, padding, dilation):
            # whole pictures, or rows of one: a view
            product.matmul(columns, kernel, out=y[part].reshape(-1, O))
    if b is not None:
        y += b
    return y, ConvCache(x, W, stride, padding, dilation)


def _tiles(x, W, stride, padding, dilation):
    """Yield (part, columns): of which outputs, and their (pixels, kh·kw·I) inputs."""
    xp = get_xp(x)
    kh, kw, I, _ = W.shape
    N, H, Wd, _ = x.shape
    Ho = conv_size(H, kh, stride, padding, dilation)
    Wo = conv_size(Wd, kw, stride, padding, dilation)
    padded = _pad(x, padding)
    picture, down, right, channel = padded.strides
    # CuPy's sliding_window_view is a view as well, but asks the device for its sizes
    windows = xp.lib.stride_tricks.as_strided(
        padded,
        (N, Ho, Wo, kh, kw, I),
        (picture, stride * down, stride * right, dilation * down, dilation * right,
         channel),
    )  # fmt: skip
    row = Wo * kh * kw * I
    pictures = min(N, max(1, TILE // (Ho * row)))
    rows = min(Ho, max(1, TILE // row)) if pictures == 1 else Ho
    for n in range(0, N, pictures):
        for h in range(0, Ho, rows):
            part = slice(n, n + pictures), slice(h, h + rows)
            yield part, windows[part].reshape(-1, kh * kw * I)


@twin(conv2d_backward, 'cupy')
def gpu_conv2d_backward(dy, cache, need_dx=True, need_dW=True, need_db=True):
    """See `ops.conv`."""
    W = cache.W
    if W.shape[:2] == (1, 1):
        return conv2d_backward.plain(dy, cache, need_dx, need_dW, need_db)
    dx = _dx(dy, cache) if need_dx else None
    dW = _dW(dy, cache) if need_dW else None
    return dx, dW, dy.sum((0, 1, 2)) if need_db else None


def _dx(dy, cache):
    x, W, stride, padding, dilation = cache
    kh, kw = W.shape[:2]
    dx = gpu_cudnn.dgrad(dy, x.shape, W, stride, padding, dilation)
    if dx is not None:
        return dx
    border = dilation * (kh - 1) - padding
    if stride == 1 and kh == kw and border >= 0:
        # the transpose is a convolution too, by the kernel turned around
        W_t = W[::-1, ::-1].transpose(0, 1, 3, 2)
        return gpu_conv2d(dy, W_t, None, 1, border, dilation)[0]
    return conv2d_backward.plain(dy, cache, need_dW=False, need_db=False)[0]


def _dW(dy, cache):
    x, W, stride, padding, dilation = cache
    dW = gpu_cudnn.wgrad(x, dy, W.shape, stride, padding, dilation)
    if dW is not None:
        return dW
    O = W.shape[3]
    dW = get_xp(W).zeros((W[..., 0].size, O), W.dtype)
    for part, columns in _tiles(x, W, stride, padding, dilation):
        dW += columns.T @ dy[part].reshape(-1, O)
    return dW.reshape(W.shape)


@twin(conv_norm_relu, 'cupy')
def gpu_conv_norm_relu(
    x, W, scale, shift, residual=None, relu=True, stride=1, padding=0, dilation=1
):
    """See `ops.conv`: the norm is folded into the kernel, which is small."""
    y, conv = gpu_conv2d(x, W * scale, shift, stride, padding, dilation)
    if residual is not None:
        y += residual
    if relu:
        get_xp(y).maximum(y, 0, out=y)
    return y, ConvNormCache(conv._replace(W=W), scale, y, residual is not None, relu)


@twin(conv_norm_relu_backward, 'cupy')
def gpu_conv_norm_relu_backward(dy, cache, need_dx=True, need_dW=True):
    """See `ops.conv`."""
    if cache.relu:
        dy = dy * (cache.y > 0)
    dx, dW, _ = gpu_conv2d_backward(
        dy * cache.scale, cache.conv, need_dx, need_dW, need_db=False
    )
    return dx, dW, dy if cache.residual else None
