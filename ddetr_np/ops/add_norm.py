"""What ends each sublayer of encoder and decoder: residual, dropout and norm."""

from typing import Any, NamedTuple

from ..backend import replaceable
from .dropout import dropout, dropout_backward
from .norm import EPS, layer_norm, layer_norm_backward


class AddNormCache(NamedTuple):
    norm: Any  # NormCache
    dropped: Any  # of dropout: the mask's key, None where it is off


@replaceable
def add_norm(x, y, weight, bias, p=0.0, key=None, eps=EPS):
    """z = LayerNorm(x + dropout(y)).

    Parameters
    ----------
    x : (..., C) array
        What went into the sublayer.
    y : (..., C) array
        What came out of it.
    weight, bias : (C,) arrays
        Of the norm.
    p, key
        Of the dropout.
    eps : float
        Added to the variance.

    Returns
    -------
    z : (..., C) array
    cache : AddNormCache
    """
    y, dropped = dropout(y, p, key)
    z, norm = layer_norm(x + y, weight, bias, eps)
    return z, AddNormCache(norm, dropped)


@replaceable
def add_norm_backward(dz, cache):
    """The norm's gradient goes to x as it is, and through dropout's mask to y.

    Parameters
    ----------
    dz : (..., C) array
        ∂loss/∂z.
    cache : AddNormCache
        From the forward.

    Returns
    -------
    dx, dy : (..., C) arrays
        One and the same array where nothing is dropped.
    dweight, dbias : (C,) arrays
    """
    dx, dweight, dbias = layer_norm_backward(dz, cache.norm)
    return dx, dropout_backward(dx, cache.dropped), dweight, dbias
