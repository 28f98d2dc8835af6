"""Sine positions: of a map's pixels, and of boxes (A.4)."""

import math
from typing import Any, NamedTuple

from ..backend import get_xp, replaceable

TEMPERATURE = 10_000
SCALE = 2 * math.pi


def _wavelengths(n, dtype, xp):
    """Return (n,): temperature^(2⌊i/2⌋/n), a sine and a cosine of each wavelength."""
    i = xp.arange(n, dtype=dtype)
    return TEMPERATURE ** (2 * xp.floor(i / 2) / n)


def _sines(angle, xp):
    """Interleave: sine at even channels, cosine at odd ones."""
    out = xp.empty_like(angle)
    xp.sin(angle[..., 0::2], out=out[..., 0::2])
    xp.cos(angle[..., 1::2], out=out[..., 1::2])
    return out


@replaceable
def sine_position(mask, C, dtype='float32'):
    """Position embedding of a map's pixels, counted over unpadded ones.

    Parameters
    ----------
    mask : (N, H, W) bool array
        True = padding.
    C : int
        A multiple of 4.
    dtype : {'float32', 'float64'}

    Returns
    -------
    pos : (N, H, W, C) array
        C/2 channels of y, then C/2 of x.
    """
    sines = [place_sines(places, C // 2) for places in pixel_places(mask, dtype)]
    return get_xp(mask).concatenate(sines, -1)


def pixel_places(mask, dtype):
    """Return y and x of a map's pixels, from 0 to 2π of what is not padding.

    Parameters
    ----------
    mask : (N, H, W) bool array
        True = padding.
    dtype : {'float32', 'float64'}

    Returns
    -------
    list of two (N, H, W) arrays
    """
    valid = (~mask).astype(dtype)
    places = []
    for axis in (1, 2):
        count = valid.cumsum(axis)
        last = count[:, -1:] if axis == 1 else count[:, :, -1:]
        places.append((count - 0.5) / (last + 1e-6) * SCALE)
    return places


def place_sines(places, n):
    """Return n channels of places along an axis: sines and cosines by turns.

    Parameters
    ----------
    places : array
        As of `pixel_places`.
    n : int
        Even.

    Returns
    -------
    (..., n) array
    """
    xp = get_xp(places)
    return _sines(places[..., None] / _wavelengths(n, places.dtype, xp), xp)


class BoxPositionCache(NamedTuple):
    pos: Any
    wavelengths: Any


def box_position(box, C):
    """Position embedding of boxes: what `pos_trans` of the two-stage model reads.

    Parameters
    ----------
    box : (..., 4) array
        cx, cy, w, h in [0, 1].
    C : int
        A multiple of 4.

    Returns
    -------
    pos : (..., 2 C) array
        C/2 channels for each of x, y, w, h.
    cache : BoxPositionCache
    """
    xp = get_xp(box)
    wavelengths = _wavelengths(C // 2, box.dtype, xp)
    angle = (box * SCALE)[..., None] / wavelengths
    pos = _sines(angle, xp)
    return pos.reshape(box.shape[:-1] + (2 * C,)), BoxPositionCache(pos, wavelengths)


def box_position_backward(dpos, cache):
    """d sin = cos, d cos = −sin: each channel's slope is its neighbour's value.

    Parameters
    ----------
    dpos : (..., 2 C) array
        ∂loss/∂pos.
    cache : BoxPositionCache
        From the forward.

    Returns
    -------
    dbox : (..., 4) array
    """
    pos, wavelengths = cache
    dpos = dpos.reshape(pos.shape)
    sin, cos = pos[..., 0::2], pos[..., 1::2]
    dangle = dpos[..., 0::2] * cos - dpos[..., 1::2] * sin
    return (dangle / wavelengths[0::2]).sum(-1) * SCALE
