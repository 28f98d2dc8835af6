"""What ends each sublayer of encoder and decoder."""

from .. import ops
from ..module import EVAL, Module


class AddNorm(Module):
    """norm(x + dropout(y)), on a layer's own modules.

    Published checkpoints know the norm by the layer's name: like `FeedForward`, this
    module has none, and stands under a leading underscore in the layer.

    Parameters
    ----------
    norm : LayerNorm
        Of the sum.
    dropout : Dropout
        Of what the sublayer adds.
    """

    def __init__(self, norm, dropout):
        self.norm, self.dropout = norm, dropout

    def forward(self, x, y, run=EVAL):
        """Add, and normalise.

        Parameters
        ----------
        x, y : (N, n, C) arrays
            What went into the sublayer, and what came out.
        run : Run
            What dropout goes by.

        Returns
        -------
        z : (N, n, C) array
        cache : ops.add_norm.AddNormCache
        """
        weight, bias = self.norm.weight.data, self.norm.bias.data
        drop = self.dropout
        return ops.add_norm.add_norm(x, y, weight, bias, drop.p, drop.key(run))

    def backward(self, dz, cache):
        """Add to the gradients.

        Parameters
        ----------
        dz : like z
            ∂loss/∂z.
        cache : ops.add_norm.AddNormCache
            From the forward.

        Returns
        -------
        dx, dy : like x
            One and the same array where nothing is dropped.
        """
        dx, dy, dweight, dbias = ops.add_norm.add_norm_backward(dz, cache)
        self.norm.weight.grad += dweight
        self.norm.bias.grad += dbias
        return dx, dy
