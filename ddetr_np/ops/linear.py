"""The linear map."""

from ..backend import replaceable
from . import product


@replaceable
def linear(x, W, b):
    """y = x Wᵀ + b.

    Parameters
    ----------
    x : (..., I) array
        I channels in, along the last axis.
    W : (O, I) array
        One row for each of the O channels out.
    b : (O,) array
        Bias.

    Returns
    -------
    y : (..., O) array
    cache
    """
    # one product of two matrices; a product of stacks would be many small ones
    y = product.matmul(x.reshape(-1, x.shape[-1]), W.T)
    y += b
    return y.reshape(x.shape[:-1] + b.shape), (x, W)


@replaceable
def linear_backward(dy, cache, need_dx=True):
    """dx = dy W, dW = dyᵀ x, db = Σ dy.

    Parameters
    ----------
    dy : (..., O) array
        ∂loss/∂y.
    cache
        From the forward.
    need_dx : bool
        False where x is no function of what learns: dx is None then.

    Returns
    -------
    dx : (..., I) array or None
    dW : (O, I) array
    db : (O,) array
    """
    x, W = cache
    dy2 = dy.reshape(-1, dy.shape[-1])
    dx = (dy2 @ W).reshape(x.shape) if need_dx else None
    dW = dy2.T @ x.reshape(-1, x.shape[-1])
    return dx, dW, dy2.sum(0)
