"""The module of multi-scale deformable attention (Eq. 3) around its sampling core."""

from typing import Any, NamedTuple

from .. import ops
from ..backend import get_xp, replaceable
from ..module import Module
from ..ops.ms_deform_attn import ReadCache
from .init import offset_bias
from .layers import Linear


class MSDeformAttnCache(NamedTuple):
    offsets: Any
    weights: Any
    locations: Any
    read: Any  # ops.ms_deform_attn.ReadCache
    output: Any

    @property
    def core(self):
        """The sampling core's cache: value, shapes, loc, A."""
        return self.read.core


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
        loc, A, (offsets, weights, locations) = self.points(z, p_hat, shapes)
        y, read = self.read(x, shapes, loc, A, padding)
        y, output = self.output_proj.forward(y.reshape(z.shape))
        return y, MSDeformAttnCache(offsets, weights, locations, read, output)

    @replaceable
    def read(self, x, shapes, loc, A, padding=None):
        """Return what the heads read of the tokens, Σ_lk A_mlqk W'_m x^l(loc).

        Parameters
        ----------
        x, shapes
            As in `forward`.
        loc, A
            As from `points`.
        padding : (N, S) bool array or None
            As in `forward`.

        Returns
        -------
        y : (N, Nq, M, C / M) array
        cache : ReadCache
        """
        value, cache = self._value(x, padding)
        y, core = ops.ms_deform_attn.ms_deform_attn(value, shapes, loc, A)
        return y, ReadCache(cache, padding, core)

    def _value(self, x, padding):
        """W'_m x, (N, S, M, Cv), zero where there is padding; and the map's cache."""
        value, cache = self.value_proj.forward(x)
        if padding is not None:
            value = get_xp(value).where(padding[..., None], 0, value)
        M = self.shape[0]
        return value.reshape(*x.shape[:2], M, value.shape[2] // M), cache

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
        M = self.shape[0]
        dy = dy.reshape(N, Nq, M, C // M)
        dx, dloc, dA = self.read_backward(dy, cache.read)
        return *self.points_backward(dloc, dA, cache, need_dp_hat), dx

    @replaceable
    def read_backward(self, dy, cache):
        """Add to the gradients of W'.

        Parameters
        ----------
        dy : (N, Nq, M, C / M) array
            ∂loss/∂y of `read`.
        cache : ReadCache
            From there.

        Returns
        -------
        dx : (N, S, C) array
        dloc : (N, Nq, M, L, K, 2) array
        dA : (N, Nq, M, L, K) array
        """
        core, padding = cache.core, cache.padding
        if core.value is None:
            value, _ = self._value(cache.value[0], padding)
            core = core._replace(value=value)
        dvalue, dloc, dA = ops.ms_deform_attn.ms_deform_attn_backward(dy, core)
        dvalue = dvalue.reshape(cache.value[0].shape)
        if padding is not None:
            dvalue = get_xp(dvalue).where(padding[..., None], 0, dvalue)
        return self.value_proj.backward(dvalue, cache.value), dloc, dA

    def points_backward(self, dloc, dA, cache, need_dp_hat=True):
        """Add to the gradients of what `points` computed by.

        Parameters
        ----------
        dloc : (N, Nq, M, L, K, 2) array
            ∂loss/∂loc.
        dA : (N, Nq, M, L, K) array
            ∂loss/∂A.
        cache : MSDeformAttnCache
            From the forward.
        need_dp_hat : bool
            False where the reference points are constants.

        Returns
        -------
        dz : (N, Nq, C) array
        dp_hat : (N, Nq, L, 2 or 4) array or None
        """
        N, Nq, M, L, K = dA.shape
        A = cache.core.A.reshape(N, Nq, M, L * K)
        dscores = ops.activation.softmax_backward(dA.reshape(A.shape), A)
        dscores = dscores.reshape(N, Nq, M * L * K)
        dz = self.attention_weights.backward(dscores, cache.weights)
        dp_hat, doffset = ops.ms_deform_attn.sampling_locations_backward(
            dloc, cache.locations, need_dp_hat
        )
        doffset = doffset.reshape(N, Nq, M * L * K * 2)
        by_offset = self.sampling_offsets.backward(doffset, cache.offsets)
        return ops.add.add(dz, by_offset), dp_hat
