"""The two-layer network of an encoder or decoder layer."""

from .. import ops
from ..module import EVAL, Module


class FeedForward(Module):
    """linear2(dropout(ReLU(linear1(x)))), on that layer's own modules.

    Published checkpoints know the two maps by the layer's name: this module has none,
    and stands under a leading underscore in the layer.

    Parameters
    ----------
    linear1, linear2 : Linear
        From C channels to the hidden ones, and back.
    dropout : Dropout
        Of the hidden channels.
    """

    def __init__(self, linear1, linear2, dropout):
        self.linear1, self.linear2, self.dropout = linear1, linear2, dropout

    def _params(self):
        return [p for m in (self.linear1, self.linear2) for p in (m.weight, m.bias)]

    def forward(self, x, run=EVAL):
        """Apply the network to each token or query.

        Parameters
        ----------
        x : (N, n, C) array
            Tokens or queries.
        run : Run
            What dropout goes by.

        Returns
        -------
        y : (N, n, C) array
        cache : ops.feed_forward.FeedForwardCache
        """
        weights = [p.data for p in self._params()]
        drop = self.dropout
        return ops.feed_forward.feed_forward(x, *weights, drop.p, drop.key(run))

    def backward(self, dy, cache):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : ops.feed_forward.FeedForwardCache
            From the forward.

        Returns
        -------
        dx : like x
        """
        dx, *gradients = ops.feed_forward.feed_forward_backward(dy, cache)
        for p, d in zip(self._params(), gradients, strict=True):
            p.grad += d
        return dx
