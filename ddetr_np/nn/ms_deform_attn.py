"""The module of multi-scale deformable attention (Eq. 3) around its sampling core."""

from typing import Any, NamedTuple

from .. import ops
from ..backend import get_xp, replaceable
from ..module import Module
from .init import offset_bias
from .layers import Linear


class MSDeformAttnCache(NamedTuple):
    offsets: Any
    weights: Any
    value: Any
    padding: Any
    locations: Any
    core: Any  # ops.ms_deform_attn.CoreCache: value, shapes, loc, A
    output: Any


class MSDeformAttn(Module):
    """Σ_m W_m Σ_lk A_mlqk W'_m x^l(φ_l(p̂_q) + Δp_mlqk).

    Parameters
    ----------
    config : Config
        Gives C, M, L, K and init, the order of the initial offsets.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        C, M, L, K = config.C, config.M, config.L, config.K
        self.shape = (M, L, K)
        bias = offset_bias(M, L, K, config.init).astype(init.dtype)
        self.sampling_offsets = Linear(init.full((M * L * K * 2, C), 0), bias.ravel())
        self.attention_weights = Linear(
            init.full((M * L * K, C), 0), init.full(M * L * K, 0)
        )
        self.value_proj = Linear(*init.linear(C, C, xavier=True, bias=0))
        self.output_proj = Linear(*init.linear(C, C, xavier=True, bias=0))

    def forward(self, z, p_hat, x, shapes, padding=None):
        """Attend.

        Parameters
        ----------
        z : (N, Nq, C) array
            Queries, with their positions.
        p_hat : (N, Nq, L, 2 or 4) array
            Reference points or boxes in [0, 1] of the padded map.
        x : (N, S, C) array
            Tokens of all levels.
        shapes : sequence of (H, W)
            Of the levels; Σ H·W = S.
        padding : (N, S) bool array or None
            True where a token is padding: its value is zero.

        Returns
        -------
        y : (N, Nq, C) array
        cache : MSDeformAttnCache
        """
        N, Nq, C = z.shape
        M = self.shape[0]
        value, value_cache = self.value_proj.forward(x)
        if padding is not None:
            value = get_xp(value).where(padding[..., None], 0, value)
        loc, A, (offsets, weights, locations) = self.points(z, p_hat, shapes)
        y, core = ops.ms_deform_attn.ms_deform_attn(
            value.reshape(N, -1, M, C // M), shapes, loc, A
        )
        y, output = self.output_proj.forward(y.reshape(N, Nq, C))
        return y, MSDeformAttnCache(
            offsets, weights, value_cache, padding, locations, core, output
        )

    @replaceable
    def infer(self, z, p_hat, x, shapes, padding=None):
        """Return what `forward` does, without a cache.

        Parameters
        ----------
        z, p_hat, x, shapes, padding
            As in `forward`.

        Returns
        -------
        y : (N, Nq, C) array
        """
        return self.forward(z, p_hat, x, shapes, padding)[0]

    def points(self, z, p_hat, shapes):
        """Return where the queries look, and how much what they find there counts.

        Parameters
        ----------
        z, p_hat, shapes
            As in `forward`.

        Returns
        -------
        loc : (N, Nq, M, L, K, 2) array
            φ_l(p̂_q) + Δp_mlqk, as fractions of the levels' width and height.
        A : (N, Nq, M, L, K) array
            Σ_lk A_mlqk = 1.
        caches : tuple
            Of the offsets, the weights and the locations.
        """
        M, L, K = self.shape
        N, Nq, _ = z.shape
        offset, offsets = self.sampling_offsets.forward(z)
        loc, locations = ops.ms_deform_attn.sampling_locations(
            p_hat, offset.reshape(N, Nq, M, L, K, 2), shapes
        )
        scores, weights = self.attention_weights.forward(z)
        A, _ = ops.activation.softmax(scores.reshape(N, Nq, M, L * K))
        return loc, A.reshape(N, Nq, M, L, K), (offsets, weights, locations)

    def backward(self, dy, cache, need_dp_hat=True):
        """Add to the gradients.

        Parameters
        ----------
        dy : (N, Nq, C) array
            ∂loss/∂y.
        cache : MSDeformAttnCache
            From the forward.
        need_dp_hat : bool
            False where the reference points are constants: dp_hat is None then.

        Returns
        -------
        dz : (N, Nq, C) array
        dp_hat : (N, Nq, L, 2 or 4) array or None
        dx : (N, S, C) array
        """
        dy = self.output_proj.backward(dy, cache.output)
        N, Nq, C = dy.shape
        M, L, K = self.shape
        dvalue, dloc, dA = ops.ms_deform_attn.ms_deform_attn_backward(
            dy.reshape(N, Nq, M, C // M), cache.core
        )
        A = cache.core.A.reshape(N, Nq, M, L * K)
        dscores = ops.activation.softmax_backward(dA.reshape(A.shape), A)
        dz = self.attention_weights.backward(dscores.reshape(N, Nq, -1), cache.weights)
        dp_hat, doffset = ops.ms_deform_attn.sampling_locations_backward(
            dloc, cache.locations, need_dp_hat
        )
        doffset = doffset.reshape(N, Nq, -1)
        by_offset = self.sampling_offsets.backward(doffset, cache.offsets)
        dz = ops.add.add(dz, by_offset)
        dvalue = dvalue.reshape(N, -1, C)
        if cache.padding is not None:
            dvalue = get_xp(dvalue).where(cache.padding[..., None], 0, dvalue)
        return dz, dp_hat, self.value_proj.backward(dvalue, cache.value)
