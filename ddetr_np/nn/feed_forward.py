"""The two-layer network at the end of each encoder and decoder layer."""

from typing import Any, NamedTuple

from .. import ops
from ..module import EVAL


class FeedForwardCache(NamedTuple):
    linear1: Any
    active: Any  # what linear2 reads, by which ReLU's zeros are known, too
    dropout: Any
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
    y, _ = ops.activation.relu(y)
    # ReLU's own y is not kept, the largest array of all: what dropout made of it is as
    # good, because no gradient comes back to what was dropped
    active, dropped = dropout.forward(y, run)
    y, c2 = linear2.forward(active)
    return y, FeedForwardCache(c1, active, dropped, c2)


def feed_forward_backward(dy, cache, linear1, linear2, dropout):
    """Add to the gradients; return dx (N, n, C)."""
    dy = linear2.backward(dy, cache.linear2)
    dy = dropout.backward(dy, cache.dropout)
    dy = ops.activation.relu_backward(dy, cache.active)
    return linear1.backward(dy, cache.linear1)
