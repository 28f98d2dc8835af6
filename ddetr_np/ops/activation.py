"""ReLU, softmax, the sigmoid and its inverse."""

from ..backend import get_xp, replaceable


@replaceable
def relu(x):
    """y = max(x, 0), element by element.

    Parameters
    ----------
    x : (...) array
        Of any shape.

    Returns
    -------
    y : like x
        It is its own cache.
    """
    y = get_xp(x).maximum(x, 0)
    return y, y


@replaceable
def relu_backward(dy, y):
    """dx = dy where y > 0; at the kink 0, as published.

    Parameters
    ----------
    dy : like y
        ∂loss/∂y.
    y : (...) array
        From the forward.

    Returns
    -------
    dx : like y
    """
    return dy * (y > 0)


@replaceable
def softmax(s):
    """A = exp(s) / Σ exp(s) over the last axis.

    Parameters
    ----------
    s : (..., n) array
        Logits of any finite size: the largest is subtracted first.

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
    """ds = A ⊙ (dA − ⟨dA, A⟩); s is not kept.

    Parameters
    ----------
    dA : (..., n) array
        ∂loss/∂A.
    A : (..., n) array
        From the forward.

    Returns
    -------
    ds : (..., n) array
    """
    return A * (dA - (dA * A).sum(-1, keepdims=True))


def sigmoid(x):
    """σ(x) = 1 / (1 + exp(−x)), without overflow; σ(±∞) is exact.

    Parameters
    ----------
    x : (...) array
        Of any shape and size.

    Returns
    -------
    y : like x
        In [0, 1]; it is its own cache.
    """
    xp = get_xp(x)
    e = xp.exp(-xp.abs(x))  # in [0, 1]
    y = xp.where(x >= 0, 1, e) / (1 + e)
    return y, y


def sigmoid_backward(dy, y):
    """dx = dy σ (1 − σ).

    Parameters
    ----------
    dy : like y
        ∂loss/∂y.
    y : (...) array
        σ, from the forward.

    Returns
    -------
    dx : like y
    """
    return dy * y * (1 - y)


INVERSE_SIGMOID_EPS = 1e-5


def inverse_sigmoid(p, eps=INVERSE_SIGMOID_EPS):
    """σ⁻¹(p) = log(p / (1 − p)), p and 1 − p held above eps (A.3, A.4).

    Parameters
    ----------
    p : (...) array
        In [0, 1]; what lies outside is held at the border.
    eps : float
        Above 0; |x| is at most log(1 / eps).

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
    """dp = dx (1/p + 1/(1 − p)), each term only where it is not held.

    Parameters
    ----------
    dx : (...) array
        ∂loss/∂x.
    cache
        From the forward.

    Returns
    -------
    dp : like dx
    """
    p, eps = cache
    xp = get_xp(dx)
    slope = xp.where((p >= eps) & (p <= 1), 1 / xp.maximum(p, eps), 0)
    slope += xp.where((1 - p >= eps) & (p >= 0), 1 / xp.maximum(1 - p, eps), 0)
    return (dx * slope).astype(dx.dtype, copy=False)
