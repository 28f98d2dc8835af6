"""Convolution, and convolution · norm · residual · ReLU as the backbone has it."""

from typing import Any, NamedTuple

from ..backend import get_xp, replaceable
from . import product


class ConvCache(NamedTuple):
    x: Any
    W: Any
    stride: int
    padding: int
    dilation: int


def conv_size(size, kernel, stride=1, padding=0, dilation=1):
    """Return the length of a convolution's output along one axis.

    Parameters
    ----------
    size : int
        Of the input along the axis, pixels, without its padding.
    kernel : int
        Number of taps.
    stride, padding, dilation : int
        Pixels: from window to window, added at either end, from tap to tap.

    Returns
    -------
    int
    """
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _pad(x, p):
    return get_xp(x).pad(x, ((0, 0), (p, p), (p, p), (0, 0))) if p else x


def _taps(x, W, stride, padding, dilation):
    """Yield (i, j, window): what kernel element (i, j) meets, as slices of padded x."""
    kh, kw = W.shape[:2]
    Ho = conv_size(x.shape[1], kh, stride, padding, dilation)
    Wo = conv_size(x.shape[2], kw, stride, padding, dilation)
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation, j * dilation
            rows = slice(top, top + stride * (Ho - 1) + 1, stride)
            columns = slice(left, left + stride * (Wo - 1) + 1, stride)
            yield i, j, (slice(None), rows, columns)


@replaceable
def conv2d(x, W, b=None, stride=1, padding=0, dilation=1):
    """y[p] = Σ_ij x[stride·p + dilation·(i, j) − padding] W[i, j] + b, zeros outside.

    Parameters
    ----------
    x : (N, H, W, I) array
        Maps of I channels.
    W : (kh, kw, I, O) array
        W[i, j] is the matrix of the tap in row i, column j.
    b : (O,) array or None
        None adds nothing.
    stride, padding, dilation : int
        Pixels, the same along both axes.

    Returns
    -------
    y : (N, Ho, Wo, O) array
    cache : ConvCache
    """
    xp = get_xp(x)
    padded = _pad(x, padding)
    y = None
    for i, j, window in _taps(x, W, stride, padding, dilation):
        pixels = padded[window]  # (N, Ho, Wo, I)
        # one product of all of them; of stacks it would be one for each row
        part = product.matmul(pixels.reshape(-1, pixels.shape[-1]), W[i, j])
        y = part if y is None else xp.add(y, part, out=y)
    y = y.reshape(pixels.shape[:-1] + W.shape[-1:])
    if b is not None:
        y += b
    return y, ConvCache(x, W, stride, padding, dilation)


@replaceable
def conv2d_backward(dy, cache, need_dx=True, need_dW=True, need_db=True):
    """Each tap of the forward product, transposed.

    Parameters
    ----------
    dy : (N, Ho, Wo, O) array
        ∂loss/∂y.
    cache : ConvCache
        From the forward.
    need_dx, need_dW, need_db : bool
        What is not needed is None.

    Returns
    -------
    dx : (N, H, W, I) array or None
    dW : (kh, kw, I, O) array or None
    db : (O,) array or None
    """
    x, W, stride, padding, dilation = cache
    xp = get_xp(dy)
    H, Wd = x.shape[1:3]
    padded = _pad(x, padding) if need_dW else None
    dW = xp.empty_like(W) if need_dW else None
    dpadded = None
    if need_dx:
        size = (x.shape[0], H + 2 * padding, Wd + 2 * padding, x.shape[3])
        dpadded = xp.zeros(size, x.dtype)
    for i, j, window in _taps(x, W, stride, padding, dilation):
        if need_dW:
            dW[i, j] = xp.tensordot(padded[window], dy, ((0, 1, 2), (0, 1, 2)))
        if need_dx:
            dpadded[window] += xp.tensordot(dy, W[i, j].T, 1)
    dx = dpadded
    if need_dx and padding:
        dx = dpadded[:, padding : padding + H, padding : padding + Wd]
    return dx, dW, dy.sum((0, 1, 2)) if need_db else None


class ConvNormCache(NamedTuple):
    conv: ConvCache
    scale: Any
    y: Any
    residual: bool
    relu: bool


@replaceable
def conv_norm_relu(
    x, W, scale, shift, residual=None, relu=True, stride=1, padding=0, dilation=1
):
    """y = ReLU(scale ⊙ conv(x, W) + shift + residual): conv and frozen batch norm.

    Parameters
    ----------
    x : (N, H, W, I) array
        Maps of I channels.
    W : (kh, kw, I, O) array
        W[i, j] is the matrix of the tap in row i, column j.
    scale, shift : (O,) arrays
        Constants.
    residual : (N, Ho, Wo, O) array or None
        None adds nothing.
    relu : bool
        False leaves the ReLU out.
    stride, padding, dilation : int
        Pixels, the same along both axes.

    Returns
    -------
    y : (N, Ho, Wo, O) array
    cache : ConvNormCache
    """
    y, conv = conv2d.plain(x, W, None, stride, padding, dilation)
    y *= scale
    y += shift
    if residual is not None:
        y += residual
    if relu:
        get_xp(y).maximum(y, 0, out=y)
    return y, ConvNormCache(conv, scale, y, residual is not None, relu)


@replaceable
def joined_conv_norm_relu(x, W, scale, shift, shortcut):
    """y = ReLU of two maps' sum, each a 1×1 convolution and a batch norm.

    The end of a residual block whose shortcut is a convolution, without a cache.

    Parameters
    ----------
    x, W, scale, shift
        As of `conv_norm_relu`; W is (1, 1, I, O).
    shortcut : (x, W, scale, shift, stride)
        The other's, of as many channels O, and how many pixels apart it takes x's.

    Returns
    -------
    y : (N, H, W, O) array
    """
    x2, W2, scale2, shift2, stride = shortcut
    residual, _ = conv_norm_relu(x2, W2, scale2, shift2, None, False, stride)
    return conv_norm_relu(x, W, scale, shift, residual)[0]


@replaceable
def conv_norm_relu_backward(dy, cache, need_dx=True, need_dW=True):
    """dresidual = dy where y > 0; the convolution sees scale times that.

    Parameters
    ----------
    dy : (N, Ho, Wo, O) array
        ∂loss/∂y.
    cache : ConvNormCache
        From the forward.
    need_dx, need_dW : bool
        What is not needed is None.

    Returns
    -------
    dx : (N, H, W, I) array or None
    dW : (kh, kw, I, O) array or None
    dresidual : (N, Ho, Wo, O) array or None
        None where the forward had no residual.
    """
    if cache.relu:
        dy = dy * (cache.y > 0)
    dx, dW, _ = conv2d_backward.plain(
        dy * cache.scale, cache.conv, need_dx, need_dW, need_db=False
    )
    return dx, dW, dy if cache.residual else None
