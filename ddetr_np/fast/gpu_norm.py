"""Layer normalisation on a GPU: a row is normalised by one warp, in one launch.

The plain operation is ten launches, each of which reads and writes all tokens.
"""

import numpy as np

from ..backend import get_xp, twin
from ..ops.norm import EPS, NormCache, layer_norm, layer_norm_backward
from . import cuda

TYPES = ('float32', 'float64')
ROWS = cuda.THREADS // 32  # of a block


@twin(layer_norm, 'cupy')
def gpu_layer_norm(x, weight, bias, eps=EPS):
    """See `ops.norm`."""
    if not _takes(x, weight, bias):
        return layer_norm.plain(x, weight, bias, eps)
    xp = get_xp(x)
    x, weight, bias = (xp.ascontiguousarray(a) for a in (x, weight, bias))
    y, x_hat = (xp.empty(x.shape, x.dtype) for _ in range(2))
    inv = xp.empty((*x.shape[:-1], 1), x.dtype)
    cuda.launch(xp, layer_norm_launch(x, weight, bias, y, x_hat, inv, eps))
    return y, NormCache(x_hat, inv, weight)


@twin(layer_norm_backward, 'cupy')
def gpu_layer_norm_backward(dy, cache):
    """See `ops.norm`."""
    x_hat, inv, weight = cache
    if not _takes(dy, x_hat, inv, weight):
        return layer_norm_backward.plain(dy, cache)
    xp = get_xp(dy)
    arrays = (xp.ascontiguousarray(a) for a in (dy, x_hat, inv, weight))
    dx = xp.empty(dy.shape, dy.dtype)
    cuda.launch(xp, layer_norm_backward_launch(*arrays, dx))
    axes = tuple(range(dy.ndim - 1))
    return dx, (dy * x_hat).sum(axes), dy.sum(axes)


def _takes(*arrays):
    x = arrays[0]
    alike = all(a.dtype == x.dtype for a in arrays)
    return alike and x.size > 0 and x.dtype.name in TYPES


def layer_norm_launch(x, weight, bias, y, x_hat, inv, eps=EPS):
    """Return the launch that writes y, x_hat and inv.

    Parameters
    ----------
    x : (..., C) array
        Contiguous and not empty, of single or double precision, as all of these.
    weight, bias : (C,) arrays
        Factor and summand.
    y, x_hat : like x
        Written.
    inv : (..., 1) array
        Written.
    eps : float
        Added to the variance.

    Returns
    -------
    Launch
    """
    C = x.shape[-1]
    rows = x.size // C
    return cuda.Launch(
        'norm.cu',
        cuda.template('layer_norm', x.dtype),
        -(-rows // ROWS),
        (x, weight, bias, y, x_hat, inv, *map(np.int32, (rows, C)), x.dtype.type(eps)),
    )


def layer_norm_backward_launch(dy, x_hat, inv, weight, dx):
    """Return the launch that writes dx.

    Parameters
    ----------
    dy, x_hat : (..., C) arrays
        Contiguous and not empty, of single or double precision, as all of these.
    inv : (..., 1) array
        Of the forward.
    weight : (C,) array
        Of the forward.
    dx : like dy
        Written.

    Returns
    -------
    Launch
    """
    C = dy.shape[-1]
    rows = dy.size // C
    return cuda.Launch(
        'norm.cu',
        cuda.template('layer_norm_backward', dy.dtype),
        -(-rows // ROWS),
        (dy, x_hat, inv, weight, dx, *map(np.int32, (rows, C))),
    )
