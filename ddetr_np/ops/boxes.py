"""Boxes: their two forms, and the prediction relative to a reference (A.3, A.4)."""

from ..backend import get_xp
from .activation import (
    inverse_sigmoid,
    inverse_sigmoid_backward,
    sigmoid,
    sigmoid_backward,
)


def box_from_reference(delta, p_hat):
    """b̂ = σ(Δb + σ⁻¹(p̂)); with 2-d reference points only x and y are relative.

    Parameters
    ----------
    delta : (..., 4) array
        Δb_x, Δb_y, Δb_w, Δb_h of the box head.
    p_hat : (..., 2 or 4) array
        Reference point (A.3) or box (A.4) in [0, 1].

    Returns
    -------
    box : (..., 4) array
        cx, cy, w, h in [0, 1].
    cache
    """
    n = p_hat.shape[-1]
    guess, inverse = inverse_sigmoid(p_hat)
    s = delta.copy()
    s[..., :n] += guess
    box, _ = sigmoid(s)
    return box, (box, inverse, n)


def box_from_reference_backward(dbox, cache):
    """Return ddelta and dp_hat.

    Parameters
    ----------
    dbox : (..., 4) array
        ∂loss/∂box.
    cache
        From the forward.

    Returns
    -------
    ddelta : (..., 4) array
    dp_hat : (..., 2 or 4) array
    """
    box, inverse, n = cache
    ddelta = sigmoid_backward(dbox, box)
    return ddelta, inverse_sigmoid_backward(ddelta[..., :n], inverse)


def cxcywh_to_xyxy(box):
    """(cx, cy, w, h) → (x0, y0, x1, y1), over the last axis.

    Parameters
    ----------
    box : (..., 4) array
        In any unit, which is kept.

    Returns
    -------
    (..., 4) array
    """
    centre, half = box[..., :2], box[..., 2:] / 2
    return get_xp(box).concatenate([centre - half, centre + half], -1)


def cxcywh_to_xyxy_backward(dxyxy):
    """Return dbox, centre: both corners' sum; size: half their difference.

    Parameters
    ----------
    dxyxy : (..., 4) array
        ∂loss/∂(x0, y0, x1, y1).

    Returns
    -------
    dbox : (..., 4) array
        Of cx, cy, w, h.
    """
    low, high = dxyxy[..., :2], dxyxy[..., 2:]
    return get_xp(dxyxy).concatenate([low + high, (high - low) / 2], -1)


def xyxy_to_cxcywh(box):
    """(x0, y0, x1, y1) → (cx, cy, w, h), over the last axis.

    Parameters
    ----------
    box : (..., 4) array
        In any unit, which is kept.

    Returns
    -------
    (..., 4) array
    """
    low, high = box[..., :2], box[..., 2:]
    return get_xp(box).concatenate([(low + high) / 2, high - low], -1)
