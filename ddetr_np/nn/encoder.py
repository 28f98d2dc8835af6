"""The encoder: every token of every level asks around itself."""

from typing import Any, NamedTuple

from .. import ops
from ..backend import replaceable
from ..module import EVAL, Module, forward_keeping, recall
from .add_norm import AddNorm
from .feed_forward import FeedForward
from .layers import Dropout, LayerNorm, Linear
from .ms_deform_attn import MSDeformAttn


class EncoderLayerCache(NamedTuple):
    self_attn: Any
    add_norm1: Any
    ffn: Any
    add_norm2: Any


class EncoderLayer(Module):
    """x → norm1(x + self_attn(x + pos, x)) → norm2(· + ffn(·)).

    Parameters
    ----------
    config : Config
        Gives C, ffn, dropout and what `MSDeformAttn` asks for.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        C, F = config.C, config.ffn
        self.self_attn = MSDeformAttn(config, init)
        self.dropout1 = Dropout(config.dropout)
        self.norm1 = LayerNorm(C, init)
        self.linear1 = Linear(*init.linear(F, C, xavier=True))
        self.dropout2 = Dropout(config.dropout)
        self.linear2 = Linear(*init.linear(C, F, xavier=True))
        self._ffn = FeedForward(self.linear1, self.linear2, self.dropout2)
        self.dropout3 = Dropout(config.dropout)
        self.norm2 = LayerNorm(C, init)
        self._add_norm1 = AddNorm(self.norm1, self.dropout1)
        self._add_norm2 = AddNorm(self.norm2, self.dropout3)

    def forward(self, x, pos, p_hat, shapes, padding, run=EVAL):
        """Return the layer's tokens and its cache.

        Parameters
        ----------
        x : (N, S, C) array
            Tokens of all levels.
        pos : (N, S, C) array
            Positions with the level embedding.
        p_hat : (N, S, L, 2) array
            Each token's own place on every level, of `encoder_reference_points`.
        shapes : sequence of (H, W)
            Of the levels; Σ H·W = S.
        padding : (N, S) bool array or None
            True where a token is padding.
        run : Run
            What dropout goes by.

        Returns
        -------
        y : (N, S, C) array
        cache : EncoderLayerCache
        """
        z = ops.add.add(x, pos)
        y, attn = self.self_attn.forward(z, p_hat, x, shapes, padding)
        x, add_norm1 = self._add_norm1.forward(x, y, run)
        y, ffn = self._ffn.forward(x, run)
        x, add_norm2 = self._add_norm2.forward(x, y, run)
        return x, EncoderLayerCache(attn, add_norm1, ffn, add_norm2)

    def backward(self, dy, cache):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : EncoderLayerCache
            From the forward.

        Returns
        -------
        dx, dpos : like x
            There is no dp_hat: the reference points are constants.
        """
        add = ops.add.add
        dx, dy = self._add_norm2.backward(dy, cache.add_norm2)
        dx = add(dx, self._ffn.backward(dy, cache.ffn))
        dx, dy = self._add_norm1.backward(dx, cache.add_norm1)
        # every token's reference point is its own place: a constant
        dz, _, dvalue = self.self_attn.backward(dy, cache.self_attn, False)
        return add(add(dx, dvalue), dz), dz


class Encoder(Module):
    """A stack of encoder layers.

    Parameters
    ----------
    config : Config
        Gives encoder_layers and what a layer asks for.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        self.layers = [EncoderLayer(config, init) for _ in range(config.encoder_layers)]

    def forward(self, x, pos, p_hat, shapes, padding, keep='all', run=EVAL):
        """Return the memory and a cache for each layer.

        Parameters
        ----------
        x, pos, p_hat, shapes, padding
            As in `EncoderLayer.forward`; pos is added again in each layer.
        keep : {'all', 'inputs', 'none'}
            What to keep of each layer, as in `forward_keeping`.
        run : Run
            What dropout goes by.

        Returns
        -------
        memory : (N, S, C) array
        caches : list
            Of each layer: its cache, its inputs or None.
        """
        if keep == 'none':
            x = self.infer(x, pos, p_hat, shapes, padding, run)
            return x, [None] * len(self.layers)
        caches = []
        for layer in self.layers:
            x, cache = forward_keeping(
                layer, keep, x, pos, p_hat, shapes, padding, run=run
            )
            caches.append(cache)
        return x, caches

    @replaceable
    def infer(self, x, pos, p_hat, shapes, padding, run=EVAL):
        """Return the memory alone.

        Parameters
        ----------
        x, pos, p_hat, shapes, padding, run
            As in `forward`.

        Returns
        -------
        memory : (N, S, C) array
        """
        for layer in self.layers:
            x = layer.infer(x, pos, p_hat, shapes, padding, run=run)
        return x

    def backward(self, dx, caches):
        """Add to the gradients.

        Parameters
        ----------
        dx : like memory
            ∂loss/∂memory.
        caches : list
            From the forward.

        Returns
        -------
        dx : like x
        dpos : like pos, or None
            None where there are no layers.
        """
        total = None
        for layer, cache in zip(self.layers[::-1], caches[::-1], strict=True):
            dx, dpos = layer.backward(dx, recall(layer, cache))
            total = dpos if total is None else ops.add.add(total, dpos)
        return dx, total
