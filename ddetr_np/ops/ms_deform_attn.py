"""Multi-scale deformable attention (Eqs. 2 and 3), written to be read.

Eq. 2 is the case of one level. `fast` holds quicker twins; these judge them.
"""

from typing import Any, NamedTuple

from ..backend import constant, get_xp, replaceable, scatter_add
from .bilinear import corners

TILE = 1 << 22  # gathered elements at a time: what is gathered is never kept


class CoreCache(NamedTuple):
    value: Any  # (N, S, M, Cv)
    shapes: tuple  # ((H, W), …)
    loc: Any  # (N, Nq, M, L, K, 2)
    A: Any  # (N, Nq, M, L, K)


class ReadCache(NamedTuple):  # of nn.ms_deform_attn.MSDeformAttn.read
    value: Any  # of the linear map: x, W'
    padding: Any  # (N, S) bool, or None
    core: CoreCache  # its value None where a twin did without it
    sums: Any = None  # what such a twin kept instead


@replaceable
def sampling_locations(p_hat, offset, shapes):
    """φ_l(p̂_q) + Δp_mlqk, as fractions of level l's width and height.

    Parameters
    ----------
    p_hat : (N, Nq, L, 2 or 4) array
        Reference points x, y, or boxes x, y, w, h (centre and size), in [0, 1].
    offset : (N, Nq, M, L, K, 2) array
        Δp as x, y: in pixels of level l, or with boxes in units of wh / 2K (A.4).
    shapes : sequence of (H, W)
        The L levels' sizes, pixels.

    Returns
    -------
    loc : (N, Nq, M, L, K, 2) array
        x, y; (0, 0) is the top-left corner of the map and (1, 1) the bottom-right.
    cache
    """
    p = p_hat[:, :, None, :, None, :]  # one reference for all heads and keys
    unit = _offset_unit(p_hat, offset, shapes)
    loc = p[..., :2] + offset * unit
    # of a point, the backward pass has no use for the offsets
    return loc, (p_hat, offset if p_hat.shape[-1] == 4 else None, shapes)


def _offset_unit(p_hat, offset, shapes):
    """What an offset of 1 is, broadcast against (N, Nq, M, L, K, 2)."""
    if p_hat.shape[-1] == 2:
        sizes = tuple((W, H) for H, W in shapes)
        return 1 / constant(sizes, offset.dtype, offset)[:, None]
    K = offset.shape[4]
    return p_hat[:, :, None, :, None, 2:] * (0.5 / K)


@replaceable
def sampling_locations_backward(dloc, cache, need_dp_hat=True):
    """doffset = dloc · unit; dp̂_xy = Σ_mk dloc; dp̂_wh = Σ_mk dloc Δp / 2K.

    Parameters
    ----------
    dloc : (N, Nq, M, L, K, 2) array
        ∂loss/∂loc.
    cache
        From the forward.
    need_dp_hat : bool
        False where the reference points are constants.

    Returns
    -------
    dp_hat : (N, Nq, L, 2 or 4) array or None
    doffset : (N, Nq, M, L, K, 2) array
    """
    p_hat, offset, shapes = cache
    doffset = dloc * _offset_unit(p_hat, dloc, shapes)
    if not need_dp_hat:
        return None, doffset
    dp_hat = dloc.sum((2, 4))
    if p_hat.shape[-1] == 4:
        dwh = (dloc * offset).sum((2, 4)) * (0.5 / offset.shape[4])
        dp_hat = get_xp(dloc).concatenate([dp_hat, dwh], -1)
    return dp_hat, doffset


@replaceable
def ms_deform_attn(value, shapes, loc, A):
    """Σ_l Σ_k A_mlqk · W'_m x^l(φ_l(p̂_q) + Δp_mlqk): Eq. 3 inside its W_m.

    Parameters
    ----------
    value : (N, S, M, Cv) array
        W'_m x of the tokens of all levels, level after level, row by row.
    shapes : sequence of (H, W)
        Each level's; Σ H·W = S.
    loc : (N, Nq, M, L, K, 2) array
        Sampling points x, y as fractions of the level's width and height; (0, 0) is the
        map's top-left edge. Outside the map it is zero.
    A : (N, Nq, M, L, K) array
        Attention weights, Σ_lk A = 1 (not checked).

    Returns
    -------
    y : (N, Nq, M, Cv) array
    cache : CoreCache

    Raises
    ------
    ValueError
        The arrays' shapes do not belong together.
    """
    check_shapes(value, shapes, loc, A)
    shapes = tuple((int(H), int(W)) for H, W in shapes)
    y = get_xp(value).zeros(loc.shape[:3] + value.shape[3:], value.dtype)
    for part, l, rows, g, _, _ in _reads(value, shapes, loc):
        weight = g * A[:, part, :, l]
        y[:, part] += (weight[..., None] * value[rows]).sum(3)
    return y, CoreCache(value, shapes, loc, A)


@replaceable
def ms_deform_attn_backward(dy, cache):
    """The gradients of Eq. 3, from u = ⟨dy_mq, value⟩ at each corner that was read.

    dvalue += A g dy at the corner; dA = Σ_corner g u;
    dloc = A Σ_corner (W ∂g/∂x, H ∂g/∂y) u.

    Parameters
    ----------
    dy : (N, Nq, M, Cv) array
        ∂loss/∂y.
    cache : CoreCache
        From the forward.

    Returns
    -------
    dvalue : (N, S, M, Cv) array
    dloc : (N, Nq, M, L, K, 2) array
    dA : (N, Nq, M, L, K) array
    """
    value, shapes, loc, A = cache
    xp = get_xp(dy)
    dvalue, dloc, dA = xp.zeros_like(value), xp.zeros_like(loc), xp.zeros_like(A)
    for part, l, rows, g, g_x, g_y in _reads(value, shapes, loc):
        H, W = shapes[l]
        d = dy[:, part, :, None]  # (N, q, M, 1, Cv): one for all keys
        weight = A[:, part, :, l]
        scatter_add(dvalue, rows, (g * weight)[..., None] * d)
        u = (d * value[rows]).sum(-1)
        dA[:, part, :, l] += g * u
        dloc[:, part, :, l, :, 0] += weight * u * g_x * W
        dloc[:, part, :, l, :, 1] += weight * u * g_y * H
    return dvalue, dloc, dA


def _reads(value, shapes, loc):
    """Yield what is read of `value`, in tiles of queries: (part, l, rows, g, g_x, g_y).

    rows index value as (picture, token, head), one for each of (N, q, M, K).
    """
    xp = get_xp(value)
    N, _, M, Cv = value.shape
    Nq, K = loc.shape[1], loc.shape[4]
    n = xp.arange(N)[:, None, None, None]
    m = xp.arange(M)[:, None]
    tile = max(1, TILE // max(1, N * M * K * Cv))
    for q in range(0, Nq, tile):
        part = slice(q, q + tile)
        start = 0
        for l, (H, W) in enumerate(shapes):
            for row, g, g_x, g_y in corners(loc[:, part, :, l], H, W):
                yield part, l, (n, start + row, m), g, g_x, g_y
            start += H * W


def check_shapes(value, shapes, loc, A):
    """Raise ValueError unless the arguments of `ms_deform_attn` belong together.

    Parameters
    ----------
    value, shapes, loc, A
        As of `ms_deform_attn`.
    """
    if value.ndim != 4 or loc.ndim != 6 or A.ndim != 5:
        raise ValueError(
            'expected value (N, S, M, Cv), loc (N, Nq, M, L, K, 2) and A '
            f'(N, Nq, M, L, K); got {value.shape}, {loc.shape} and {A.shape}'
        )
    S = sum(H * W for H, W in shapes)
    if value.shape[1] != S:
        raise ValueError(
            f'value has {value.shape[1]} tokens, shapes {tuple(shapes)} sum to {S}; '
            'take both from the same feature maps'
        )
    N, _, M, _ = value.shape
    expected = (N, loc.shape[1], M, len(shapes), loc.shape[4])
    if loc.shape != (*expected, 2) or A.shape != expected:
        raise ValueError(
            f'value has N = {N} pictures and M = {M} heads, shapes L = {len(shapes)} '
            f'levels: loc must be (N, Nq, M, L, K, 2) and A (N, Nq, M, L, K); got '
            f'{loc.shape} and {A.shape}'
        )
