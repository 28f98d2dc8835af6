"""The two-layer network at the end of each encoder and decoder layer."""

from typing import Any, NamedTuple

from ..backend import replaceable
from .activation import relu
from .dropout import dropout, scale
from .linear import linear, linear_backward


class FeedForwardCache(NamedTuple):
    x: Any
    W1: Any
    hidden: Any  # what the second map reads
    W2: Any
    scale: float  # of what dropout kept


@replaceable
def feed_forward(x, W1, b1, W2, b2, p=0.0, key=None):
    """y = W₂ dropout(ReLU(W₁ x + b₁)) + b₂.

    Parameters
    ----------
    x : (..., C) array
        C channels of each token.
    W1 : (F, C) array
        To the F hidden channels.
    b1 : (F,) array
        Bias of the hidden channels.
    W2 : (C, F) array
        Back to C channels.
    b2 : (C,) array
        Bias of the result.
    p, key
        Of the dropout.

    Returns
    -------
    y : (..., C) array
    cache : FeedForwardCache
    """
    hidden, _ = linear(x, W1, b1)
    hidden, _ = relu(hidden)
    hidden, dropped = dropout(hidden, p, key)
    y, _ = linear(hidden, W2, b2)
    return y, FeedForwardCache(x, W1, hidden, W2, scale(p) if dropped else 1.0)


@replaceable
def feed_forward_backward(dy, cache):
    """dhidden comes back where hidden > 0: not where ReLU or dropout made it zero.

    So dropout's mask is not drawn again.

    Parameters
    ----------
    dy : (..., C) array
        ∂loss/∂y.
    cache : FeedForwardCache
        From the forward.

    Returns
    -------
    dx : (..., C) array
    dW1 : (F, C) array
    db1 : (F,) array
    dW2 : (C, F) array
    db2 : (C,) array
    """
    x, W1, hidden, W2, factor = cache
    dhidden, dW2, db2 = linear_backward(dy, (hidden, W2))
    dhidden = dhidden * (hidden > 0)
    dhidden *= factor
    dx, dW1, db1 = linear_backward(dhidden, (x, W1))
    return dx, dW1, db1, dW2, db2
