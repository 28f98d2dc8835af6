"""Batch, group and layer normalisation."""

from typing import Any, NamedTuple

from ..backend import get_xp, replaceable

EPS = 1e-5


def frozen_batch_norm(weight, bias, mean, var, eps=EPS):
    """Return (scale, shift) with scale ⊙ x + shift = (x − mean) / √(var + eps) · w + b.

    With constant statistics the norm is an affine map of each channel; the composite
    `conv.conv_norm_relu` applies it.

    Parameters
    ----------
    weight, bias, mean, var : (C,) arrays
        w, b and the statistics of each channel, all constant.
    eps : float
        Added to the variance.

    Returns
    -------
    scale, shift : (C,) arrays
    """
    scale = weight / get_xp(var).sqrt(var + eps)
    return scale, bias - mean * scale


class NormCache(NamedTuple):
    x_hat: Any  # (x − mean) / √(var + eps)
    inv: Any  # 1 / √(var + eps)
    weight: Any


def _normalise(x, axes, eps):
    """Return x_hat, 1/σ, mean and variance over the axes."""
    xp = get_xp(x)
    mean = x.mean(axes, keepdims=True)
    x_hat = x - mean
    var = xp.square(x_hat).mean(axes, keepdims=True)
    inv = 1 / xp.sqrt(var + eps)
    x_hat *= inv
    return x_hat, inv, mean, var


def _normalise_backward(dx_hat, x_hat, inv, axes):
    """dx = (dx̂ − ⟨dx̂⟩ − x̂ ⟨dx̂ x̂⟩) / σ, means over the axes."""
    dx = dx_hat - dx_hat.mean(axes, keepdims=True)
    dx -= x_hat * (dx_hat * x_hat).mean(axes, keepdims=True)
    dx *= inv
    return dx


@replaceable
def layer_norm(x, weight, bias, eps=EPS):
    """y = (x − mean) / √(var + eps) · w + b, over the last axis.

    Parameters
    ----------
    x : (..., C) array
        C channels of each token.
    weight, bias : (C,) arrays
        w and b.
    eps : float
        Added to the variance.

    Returns
    -------
    y : (..., C) array
    cache : NormCache
    """
    x_hat, inv, _, _ = _normalise(x, -1, eps)
    return x_hat * weight + bias, NormCache(x_hat, inv, weight)


@replaceable
def layer_norm_backward(dy, cache):
    """Return dx, dweight and dbias.

    Parameters
    ----------
    dy : (..., C) array
        ∂loss/∂y.
    cache : NormCache
        From the forward.

    Returns
    -------
    dx : (..., C) array
    dweight, dbias : (C,) arrays
    """
    x_hat, inv, weight = cache
    dx = _normalise_backward(dy * weight, x_hat, inv, -1)
    axes = tuple(range(dy.ndim - 1))
    return dx, (dy * x_hat).sum(axes), dy.sum(axes)


@replaceable
def group_norm(x, weight, bias, groups, eps=EPS):
    """Normalise each picture over its pixels and a group of neighbouring channels.

    Padded pixels are part of the statistics, as published.

    Parameters
    ----------
    x : (N, H, W, C) array
        N pictures' maps.
    weight, bias : (C,) arrays
        Factor and summand of each channel, after the norm.
    groups : int
        A divisor of C.
    eps : float
        Added to the variance.

    Returns
    -------
    y : (N, H, W, C) array
    cache : NormCache
        x_hat is (N, H, W, groups, C / groups).
    """
    N, H, W, C = x.shape
    x_hat, inv, _, _ = _normalise(
        x.reshape(N, H, W, groups, C // groups), (1, 2, 4), eps
    )
    y = x_hat.reshape(x.shape) * weight + bias
    return y, NormCache(x_hat, inv, weight)


@replaceable
def group_norm_backward(dy, cache):
    """Return dx, dweight and dbias.

    Parameters
    ----------
    dy : (N, H, W, C) array
        ∂loss/∂y.
    cache : NormCache
        From the forward.

    Returns
    -------
    dx : (N, H, W, C) array
    dweight, dbias : (C,) arrays
    """
    x_hat, inv, weight = cache
    dx_hat = (dy * weight).reshape(x_hat.shape)
    dx = _normalise_backward(dx_hat, x_hat, inv, (1, 2, 4)).reshape(dy.shape)
    dweight = (dy * x_hat.reshape(dy.shape)).sum((0, 1, 2))
    return dx, dweight, dy.sum((0, 1, 2))


def running_batch_norm(x, weight, bias, mean, var, eps=EPS):
    """y = (x − mean) / √(var + eps) · w + b with given statistics, w and b learning.

    Parameters
    ----------
    x : (N, H, W, C) array
        N pictures' maps.
    weight, bias, mean, var : (C,) arrays
        w, b and the given statistics of each channel.
    eps : float
        Added to the variance.

    Returns
    -------
    y : (N, H, W, C) array
    cache : NormCache
    """
    inv = 1 / get_xp(var).sqrt(var + eps)
    x_hat = (x - mean) * inv
    return x_hat * weight + bias, NormCache(x_hat, inv, weight)


def running_batch_norm_backward(dy, cache):
    """Return dx, dweight and dbias; statistics are constants.

    Parameters
    ----------
    dy : (N, H, W, C) array
        ∂loss/∂y.
    cache : NormCache
        From the forward.

    Returns
    -------
    dx : (N, H, W, C) array
    dweight, dbias : (C,) arrays
    """
    x_hat, inv, weight = cache
    return dy * (weight * inv), (dy * x_hat).sum((0, 1, 2)), dy.sum((0, 1, 2))


@replaceable
def batch_norm(x, weight, bias, eps=EPS):
    """Normalise each channel over the batch: a batch norm that learns.

    Parameters
    ----------
    x : (N, H, W, C) array
        N pictures' maps.
    weight, bias : (C,) arrays
        Factor and summand of each channel, after the norm.
    eps : float
        Added to the variance.

    Returns
    -------
    y : (N, H, W, C) array
    cache : NormCache
    mean, var : (C,) arrays
        The batch's; the variance over N·H·W, not N·H·W − 1.
    """
    x_hat, inv, mean, var = _normalise(x, (0, 1, 2), eps)
    y = x_hat * weight + bias
    return y, NormCache(x_hat, inv, weight), mean.ravel(), var.ravel()


@replaceable
def batch_norm_backward(dy, cache):
    """Return dx, dweight and dbias; the statistics depend on x.

    Parameters
    ----------
    dy : (N, H, W, C) array
        ∂loss/∂y.
    cache : NormCache
        From the forward.

    Returns
    -------
    dx : (N, H, W, C) array
    dweight, dbias : (C,) arrays
    """
    x_hat, inv, weight = cache
    dx = _normalise_backward(dy * weight, x_hat, inv, (0, 1, 2))
    return dx, (dy * x_hat).sum((0, 1, 2)), dy.sum((0, 1, 2))
