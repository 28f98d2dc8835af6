"""ReLU, softmax, the sigmoid and its inverse."""

from ..backend import get_xp, replaceable


@replaceable
def relu(x):
    """y = max(x, 0), of x (...); y is its own cache."""
    y = get_xp(x).maximum(x, 0)
    return y, y


@replaceable
def relu_backward(dy, y):
    """dx = dy where y > 0; at the kink 0, as published."""
    return dy * (y > 0)


@replaceable
def softmax(s):
    """A = exp(s) / Σ exp(s) over the last axis.

    Parameters
    ----------
    s : (..., n) array

    Returns
    -------
    A : (..., n) array
        Sums to 1; it is its own cache.
    """
    xp = get_xp(s)
    A = xp.exp(s - s.max(-1, keepdims=True))
    A /= A.sum(-1, keepdims=True)  # in place: A is ours
    return A, A


@replaceable
def softmax_backward(dA, A):
    """ds = A ⊙ (dA − ⟨dA, A⟩); s is not kept."""
    return A * (dA - (dA * A).sum(-1, keepdims=True))


def sigmoid(x):
    """σ(x) = 1 / (1 + exp(−x)) of x (...), without overflow; σ(±∞) is exact.

    Its own cache.
    """
    xp = get_xp(x)
    e = xp.exp(-xp.abs(x))  # in [0, 1]
    y = xp.where(x >= 0, 1, e) / (1 + e)
    return y, y


def sigmoid_backward(dy, y):
    """dx = dy σ (1 − σ)."""
    return dy * y * (1 - y)


INVERSE_SIGMOID_EPS = 1e-5


def inverse_sigmoid(p, eps=INVERSE_SIGMOID_EPS):
    """σ⁻¹(p) = log(p / (1 − p)), p and 1 − p held above eps (A.3, A.4).

    Parameters
    ----------
    p : (...) array
        In [0, 1]; what lies outside is held at the border.
    eps : float

    Returns
    -------
    x : (...) array
    cache
    """
    xp = get_xp(p)
    inside = xp.clip(p, 0, 1)
    x = xp.log(xp.maximum(inside, eps) / xp.maximum(1 - inside, eps))
    return x, (p, eps)


def inverse_sigmoid_backward(dx, cache):
    """dp = dx (1/p + 1/(1 − p)), each term only where it is not held."""
    p, eps = cache
    xp = get_xp(dx)
    slope = xp.where((p >= eps) & (p <= 1), 1 / xp.maximum(p, eps), 0)
    slope += xp.where((1 - p >= eps) & (p >= 0), 1 / xp.maximum(1 - p, eps), 0)
    return (dx * slope).astype(dx.dtype, copy=False)
