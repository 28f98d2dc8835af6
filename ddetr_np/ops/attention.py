"""Multi-head attention (Eq. 1)."""

import math
from typing import Any, NamedTuple

from ..backend import get_xp, replaceable
from . import product
from .activation import softmax, softmax_backward
from .dropout import dropout, dropout_backward


class AttentionCache(NamedTuple):
    q: Any
    k: Any
    v: Any
    A: Any  # A_mqk (N, M, Nq, Nk)
    dropout: Any


@replaceable
def attention(q, k, v, p=0.0, key=None):
    """Σ_k A_mqk v_mk with A_mqk ∝ exp(q_mq · k_mk / √C_v): the inside of Eq. 1.

    W_m is the linear map after it.

    Parameters
    ----------
    q : (N, Nq, M, Cv) array
        The heads' U_m z.
    k, v : (N, Nk, M, Cv) arrays
        The heads' V_m x and W'_m x.
    p, key
        Dropout of the weights A.

    Returns
    -------
    y : (N, Nq, M, Cv) array
    cache : AttentionCache
    """
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # (N, M, n, Cv)
    scores = product.matmul(q, k.transpose(0, 1, 3, 2))
    scores /= math.sqrt(q.shape[-1])
    A, _ = softmax(scores)
    kept, drop = dropout(A, p, key)
    # in mixed precision a softmax is wider than what is multiplied, here and below
    y = product.matmul(kept.astype(v.dtype, copy=False), v)
    return y.transpose(0, 2, 1, 3), AttentionCache(q, k, v, A, drop)


@replaceable
def attention_backward(dy, cache):
    """Return dq, dk and dv.

    Parameters
    ----------
    dy : (N, Nq, M, Cv) array
        ∂loss/∂y.
    cache : AttentionCache
        From the forward.

    Returns
    -------
    dq : (N, Nq, M, Cv) array
    dk, dv : (N, Nk, M, Cv) arrays
    """
    q, k, v, A, drop = cache
    xp = get_xp(dy)
    dy = dy.transpose(0, 2, 1, 3)
    # the mask is its own transpose
    kept = dropout_backward(A, drop).astype(dy.dtype, copy=False)
    dA = dropout_backward(xp.matmul(dy, v.transpose(0, 1, 3, 2)), drop)
    dv = xp.matmul(kept.transpose(0, 1, 3, 2), dy)
    dscores = softmax_backward(dA, A)
    dscores /= math.sqrt(q.shape[-1])
    dscores = dscores.astype(q.dtype, copy=False)
    dq = xp.matmul(dscores, k)
    dk = xp.matmul(dscores.transpose(0, 1, 3, 2), q)
    return tuple(a.transpose(0, 2, 1, 3) for a in (dq, dk, dv))
