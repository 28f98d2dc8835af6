"""The two-layer network at the end of each encoder and decoder layer."""

from typing import Any, NamedTuple

from .. import ops
from ..module import EVAL


class FeedForwardCache(NamedTuple):
    linear1: Any
    active: Any
    hidden: Any
    linear2: Any


def feed_forward(x, linear1, linear2, dropout, run=EVAL):
    """linear2(dropout(ReLU(linear1(x)))).

    The modules are the layer's own, named as published.

    Parameters
    ----------
    x : (N, n, C) array

    Returns
    -------
    y : (N, n, C) array
    cache : FeedForwardCache
    """
    y, c1 = linear1.forward(x)
    y, active = ops.activation.relu(y)
    y, hidden = dropout.forward(y, run)
    y, c2 = linear2.forward(y)
    return y, FeedForwardCache(c1, active, hidden, c2)


def feed_forward_backward(dy, cache, linear1, linear2, dropout):
    """Add to the gradients; return dx (N, n, C)."""
    dy = linear2.backward(dy, cache.linear2)
    dy = dropout.backward(dy, cache.hidden)
    dy = ops.activation.relu_backward(dy, cache.active)
    return linear1.backward(dy, cache.linear1)
