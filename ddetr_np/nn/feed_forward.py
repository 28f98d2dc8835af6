"""The two-layer network of an encoder or decoder layer, on that layer's own Params."""

from .. import ops
from ..module import EVAL


def feed_forward(x, linear1, linear2, dropout, run=EVAL):
    """linear2(dropout(ReLU(linear1(x)))).

    The modules are the layer's, named as published.

    Parameters
    ----------
    x : (N, n, C) array

    Returns
    -------
    y : (N, n, C) array
    cache : ops.feed_forward.FeedForwardCache
    """
    weights = [p.data for m in (linear1, linear2) for p in (m.weight, m.bias)]
    return ops.feed_forward.feed_forward(x, *weights, dropout.p, dropout.key(run))


def feed_forward_backward(dy, cache, linear1, linear2):
    """Add to the gradients; return dx (N, n, C)."""
    dx, *gradients = ops.feed_forward.feed_forward_backward(dy, cache)
    params = [p for m in (linear1, linear2) for p in (m.weight, m.bias)]
    for p, d in zip(params, gradients, strict=True):
        p.grad += d
    return dx
