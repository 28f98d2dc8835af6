"""Focal loss, L1 and generalised IoU: what the set loss is made of.

Each is of single elements or boxes; the sums and their normalisation are the
criterion's.
"""

from typing import Any, NamedTuple

from ..backend import get_xp, replaceable


class FocalCache(NamedTuple):
    q: Any  # 1 − p_t
    nll: Any  # −log p_t
    target: Any
    alpha: float
    gamma: float


@replaceable
def sigmoid_focal_loss(x, target, alpha=0.25, gamma=2.0):
    """y = −α_t (1 − p_t)^γ log p_t, with p_t = σ(x) where target, else 1 − σ(x).

    Written in s = ±x, the logit of the right answer: p_t = σ(s), so that neither form
    overflows nor takes the logarithm of 0.

    Parameters
    ----------
    x : (...) array
        Logits, of any finite size.
    target : bool array, shaped like x
        True where the right answer is yes.
    alpha : float
        α_t is alpha where target, else 1 − alpha.
    gamma : float
        0 or more; 0 is the cross entropy.

    Returns
    -------
    y : array, shaped like x
    cache : FocalCache
    """
    xp = get_xp(x)
    s = xp.where(target, x, -x)
    e = xp.exp(-xp.abs(s))  # in [0, 1]
    nll = xp.log1p(e)
    nll -= xp.minimum(s, 0)
    q = xp.where(s >= 0, e, 1)
    q /= 1 + e
    y = _choose(target, alpha, 1 - alpha, x) * q**gamma
    y *= nll
    return y, FocalCache(q, nll, target, alpha, gamma)


@replaceable
def sigmoid_focal_loss_backward(dy, cache):
    """dx = ∓dy α_t q^γ (γ (1 − q) nll + q): minus where target.

    q = 1 − p_t and nll = −log p_t have dq/ds = −q (1 − q) and dnll/ds = −q.

    Parameters
    ----------
    dy : array or float
        ∂loss/∂y, shaped like y or one number for all of it.
    cache : FocalCache
        From the forward.

    Returns
    -------
    dx : array, shaped like x
    """
    q, nll, target, alpha, gamma = cache
    dx = (1 - q) * nll
    dx *= gamma
    dx += q
    dx *= q**gamma
    dx *= _choose(target, -alpha, 1 - alpha, q)
    dx *= dy
    return dx


def _choose(target, yes, no, like):
    """`yes` where target, else `no`, in the precision of `like`."""
    xp = get_xp(like)
    yes, no = xp.asarray([yes, no], like.dtype)
    return xp.where(target, yes, no)


def l1(a, b):
    """y = |a − b|, element by element.

    Parameters
    ----------
    a, b : (...) arrays
        They broadcast.

    Returns
    -------
    y : array
    cache
        The difference's sign.
    """
    xp = get_xp(a, b)
    difference = a - b
    return xp.abs(difference), xp.sign(difference)


def l1_backward(dy, sign):
    """da = dy sign(a − b), db = −da; at the kink a = b both are 0, as published.

    For a and b of one shape.

    Parameters
    ----------
    dy : array
        ∂loss/∂y, or what broadcasts to it.
    sign : (...) array
        sign(a − b), the forward's cache.

    Returns
    -------
    da, db : (...) arrays
    """
    da = dy * sign
    return da, -da


def giou(a, b):
    """y = I / U + U / H − 1: generalised IoU.

    I is the area of the intersection, U of the union, and H of the smallest box that
    holds both.

    Parameters
    ----------
    a, b : (..., 4) arrays
        x0, y0, x1, y1 with x0 ≤ x1 and y0 ≤ y1, one of the two with an area. They
        broadcast: one shape gives pairs, (n, 1, 4) and (m, 4) all pairs.

    Returns
    -------
    y : (...) array
        In [−1, 1].
    cache
    """
    I, U, H = _areas(a, b)[:3]
    return I / U + U / H - 1, (a, b)


def giou_backward(dy, cache):
    """Each area is a product of two sides, each side a difference of two edges.

    The kinks are treated as published (and as PyTorch does): where two edges coincide,
    max and min give half of the gradient to each; boxes that only touch have the
    gradient of boxes that overlap.

    Parameters
    ----------
    dy : (...) array
        ∂loss/∂y.
    cache
        Of a and b of one shape.

    Returns
    -------
    da, db : (..., 4) arrays
    """
    a, b = cache
    I, U, H, overlap, hull = _areas(a, b)
    xp = get_xp(dy)
    dU = dy * (1 / H - I / (U * U))
    dI = dy / U - dU  # U = |a| + |b| − I
    dH = -dy * U / (H * H)
    doverlap = dI[..., None] * xp.maximum(overlap, 0)[..., ::-1] * (overlap >= 0)
    dhull = dH[..., None] * hull[..., ::-1]
    gradients = []
    for own, other in ((a, b), (b, a)):
        dside = dU[..., None] * (own[..., 2:] - own[..., :2])[..., ::-1]
        # the overlap begins at the larger low edge, the hull at the smaller one
        larger = (xp.sign(own - other) + 1) / 2  # ½ where the edges coincide
        lo, hi = larger[..., :2], larger[..., 2:]
        dlow = -dside - doverlap * lo - dhull * (1 - lo)
        dhigh = dside + doverlap * (1 - hi) + dhull * hi
        gradients.append(xp.concatenate([dlow, dhigh], -1))
    return tuple(gradients)


def _areas(a, b):
    """Return I, U, H (...), and the overlap's and the hull's sides (..., 2): w, h.

    A negative side of the overlap is the gap between the boxes.
    """
    xp = get_xp(a, b)
    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    overlap = xp.minimum(a_high, b_high) - xp.maximum(a_low, b_low)
    hull = xp.maximum(a_high, b_high) - xp.minimum(a_low, b_low)
    I = xp.maximum(overlap, 0).prod(-1)
    U = (a_high - a_low).prod(-1) + (b_high - b_low).prod(-1) - I
    return I, U, hull.prod(-1), overlap, hull
