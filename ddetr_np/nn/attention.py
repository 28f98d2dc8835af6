"""Multi-head attention (Eq. 1): the decoder's queries among themselves."""

from typing import Any, NamedTuple

from .. import ops
from ..module import EVAL, Module, Param
from .layers import Dropout, Linear


class MultiHeadAttentionCache(NamedTuple):
    U: Any
    V: Any
    value: Any
    core: Any  # ops.attention.AttentionCache
    output: Any


class MultiHeadAttention(Module):
    """Σ_m W_m Σ_k A_mqk W'_m x_k, A_mqk ∝ exp(z_qᵀ U_mᵀ V_m x_k / √C_v).

    Published checkpoints stack U, V and W' in one `in_proj_weight` (3C, C).

    Parameters
    ----------
    config : Config
        Gives C, M and dropout.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        C = config.C
        self.M = config.M
        self.in_proj_weight = Param(init.xavier((3 * C, C)))
        self.in_proj_bias = Param(init.full(3 * C, 0))
        self.out_proj = Linear(*init.linear(C, C, xavier=True, bias=0))
        self.dropout = Dropout(config.dropout)

    def _projections(self):
        W = self.in_proj_weight.data.reshape(3, -1, self.in_proj_weight.data.shape[1])
        return zip(W, self.in_proj_bias.data.reshape(3, -1), strict=True)

    def forward(self, z, x_k, x_v, run=EVAL):
        """Attend.

        Parameters
        ----------
        z : (N, Nq, C) array
            Queries.
        x_k, x_v : (N, Nk, C) arrays
            Keys with their positions; the same without, for the values.
        run : Run
            What the dropout of A goes by.

        Returns
        -------
        y : (N, Nq, C) array
        cache : MultiHeadAttentionCache
        """
        heads, caches = [], []
        for (W, b), a in zip(self._projections(), (z, x_k, x_v), strict=True):
            y, cache = ops.linear.linear(a, W, b)
            heads.append(y.reshape(*y.shape[:2], self.M, -1))
            caches.append(cache)
        drop = self.dropout
        y, core = ops.attention.attention(*heads, drop.p, drop.key(run))
        y, output = self.out_proj.forward(y.reshape(z.shape))
        return y, MultiHeadAttentionCache(*caches, core, output)

    def backward(self, dy, cache):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : MultiHeadAttentionCache
            From the forward.

        Returns
        -------
        dz : like z
        dx_k, dx_v : like x_k and x_v
        """
        dy = self.out_proj.backward(dy, cache.output)
        N, Nq, C = dy.shape
        dheads = ops.attention.attention_backward(
            dy.reshape(N, Nq, self.M, C // self.M), cache.core
        )
        dW = self.in_proj_weight.grad.reshape(3, C, C)
        db = self.in_proj_bias.grad.reshape(3, C)
        dinputs = []
        for i, (dhead, linear) in enumerate(zip(dheads, cache[:3], strict=True)):
            da, dWi, dbi = ops.linear.linear_backward(
                dhead.reshape(N, -1, C), linear
            )
            dW[i] += dWi
            db[i] += dbi
            dinputs.append(da)
        return tuple(dinputs)
