"""The decoder: queries ask each other and the memory, and refine boxes (A.4)."""

from typing import Any, NamedTuple

from .. import ops
from ..backend import get_xp
from ..module import EVAL, Module, forward_keeping, recall
from .add_norm import AddNorm
from .attention import MultiHeadAttention
from .feed_forward import FeedForward
from .heads import predict, predict_backward
from .layers import Dropout, LayerNorm, Linear
from .ms_deform_attn import MSDeformAttn


class DecoderLayerCache(NamedTuple):
    self_attn: Any
    add_norm2: Any
    cross_attn: Any
    add_norm1: Any
    ffn: Any
    add_norm3: Any


class DecoderLayer(Module):
    """z → norm2(z + self_attn) → norm1(· + cross_attn) → norm3(· + ffn).

    Positions are added to queries and keys, never to values.

    Parameters
    ----------
    config : Config
        Gives C, ffn, dropout and what the two attentions ask for.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        C, F = config.C, config.ffn
        self.cross_attn = MSDeformAttn(config, init)
        self.dropout1 = Dropout(config.dropout)
        self.norm1 = LayerNorm(C, init)
        self.self_attn = MultiHeadAttention(config, init)
        self.dropout2 = Dropout(config.dropout)
        self.norm2 = LayerNorm(C, init)
        self.linear1 = Linear(*init.linear(F, C, xavier=True))
        self.dropout3 = Dropout(config.dropout)
        self.linear2 = Linear(*init.linear(C, F, xavier=True))
        self._ffn = FeedForward(self.linear1, self.linear2, self.dropout3)
        self.dropout4 = Dropout(config.dropout)
        self.norm3 = LayerNorm(C, init)
        self._add_norm1 = AddNorm(self.norm1, self.dropout1)
        self._add_norm2 = AddNorm(self.norm2, self.dropout2)
        self._add_norm3 = AddNorm(self.norm3, self.dropout4)

    def forward(self, z, pos, p_hat, memory, shapes, padding, run=EVAL):
        """Return the layer's queries and its cache.

        Parameters
        ----------
        z, pos : (N, Nq, C) arrays
            Content and position of the queries.
        p_hat : (N, Nq, L, 2 or 4) array
            Reference points or boxes in [0, 1] of the padded maps.
        memory : (N, S, C) array
            The encoder's tokens of all levels.
        shapes : sequence of (H, W)
            Of the levels; Σ H·W = S.
        padding : (N, S) bool array or None
            True where a token is padding.
        run : Run
            What dropout goes by.

        Returns
        -------
        z : (N, Nq, C) array
            The content after the layer.
        cache : DecoderLayerCache
        """
        q = z + pos
        y, self_attn = self.self_attn.forward(q, q, z, run)
        z, add_norm2 = self._add_norm2.forward(z, y, run)
        y, cross_attn = self.cross_attn.forward(
            z + pos, p_hat, memory, shapes, padding
        )
        z, add_norm1 = self._add_norm1.forward(z, y, run)
        y, ffn = self._ffn.forward(z, run)
        z, add_norm3 = self._add_norm3.forward(z, y, run)
        return z, DecoderLayerCache(
            self_attn, add_norm2, cross_attn, add_norm1, ffn, add_norm3
        )

    def backward(self, dz, cache):
        """Add to the gradients.

        Parameters
        ----------
        dz : (N, Nq, C) array
            ∂loss/∂z of the z that came out.
        cache : DecoderLayerCache
            From the forward.

        Returns
        -------
        dz, dpos : (N, Nq, C) arrays
            Of the z and pos that went in.
        dp_hat : like p_hat
        dmemory : like memory
        """
        dz, dy = self._add_norm3.backward(dz, cache.add_norm3)
        dz = dz + self._ffn.backward(dy, cache.ffn)
        dz, dy = self._add_norm1.backward(dz, cache.add_norm1)
        dq, dp_hat, dmemory = self.cross_attn.backward(dy, cache.cross_attn)
        dpos = dq
        dz, dy = self._add_norm2.backward(dz + dq, cache.add_norm2)
        dq, dk, dv = self.self_attn.backward(dy, cache.self_attn)
        dq = dq + dk
        return dz + dq + dv, dpos + dq, dp_hat, dmemory


class DecoderCache(NamedTuple):
    layers: list
    heads: list
    p_hats: list  # each layer's reference (N, Nq, 2 or 4)
    valid_ratios: Any

    def __getitem__(self, d):
        """Return the cache of layer d."""
        return self.layers[d]


class Decoder(Module):
    """A stack of decoder layers, each with its heads; boxes refine from layer to layer.

    Parameters
    ----------
    config : Config
        Gives decoder_layers, refine and what a layer asks for.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        self.layers = [DecoderLayer(config, init) for _ in range(config.decoder_layers)]
        self.refine = config.refine

    def forward(
        self,
        z,
        pos,
        p_hat,
        memory,
        shapes,
        padding,
        valid_ratios,
        heads,
        keep='all',
        run=EVAL,
        held=None,
    ):
        """Decode.

        Parameters
        ----------
        z, pos : (N, Nq, C) arrays
            Content and position of the queries.
        p_hat : (N, Nq, 2 or 4) array
            The first layer's reference points or boxes.
        memory : (N, S, C) array
            The encoder's tokens of all levels.
        shapes : sequence of (H, W)
            Of the levels; Σ H·W = S.
        padding : (N, S) bool array or None
            True where a token is padding.
        valid_ratios : (N, L, 2) array
            Unpadded share of each level's width and height.
        heads : list of (class_embed, bbox_embed)
            For each layer.
        keep : {'all', 'inputs', 'none'}
            What to keep of each layer, as in `forward_keeping`; with 'none' nothing of
            the heads either.
        run : Run
            What dropout goes by.
        held : list of (N, Nq, 4) arrays or None
            References of the layers, in place of the boxes refined in this pass.

        Returns
        -------
        logits : (D, N, Nq, classes) array
        boxes : (D, N, Nq, 4) array
            cx, cy, w, h in [0, 1].
        cache : DecoderCache
        """
        logits, boxes, layers, predictions, p_hats = [], [], [], [], []
        for d, (layer, head) in enumerate(zip(self.layers, heads, strict=True)):
            if held is not None and self.refine and d > 0:
                p_hat = held[d]
            p_hats.append(p_hat)
            reference = p_hat[:, :, None] * _scale(valid_ratios, p_hat)
            z, cache = forward_keeping(
                layer, keep, z, pos, reference, memory, shapes, padding, run=run
            )
            y, box, prediction = predict(z, p_hat, *head)
            layers.append(cache)
            predictions.append(None if keep == 'none' else prediction)
            logits.append(y)
            boxes.append(box)
            if self.refine:
                p_hat = box
        cache = DecoderCache(layers, predictions, p_hats, valid_ratios)
        return _stack(logits), _stack(boxes), cache

    def backward(self, dlogits, dboxes, cache, heads, block=True):
        """Add to the gradients.

        Parameters
        ----------
        dlogits : (D, N, Nq, classes) array, list with None for zeros, or None
            ∂loss/∂logits of each layer.
        dboxes : (D, N, Nq, 4) array, list with None for zeros, or None
            ∂loss/∂boxes of each layer.
        cache : DecoderCache
            From the forward.
        heads : list of (class_embed, bbox_embed)
            Those of the forward; their gradients are added to as well.
        block : bool
            A refined box is a constant to the next layer, as published: both where it
            is the reference of the next box (A.4) and where it places the samples.

        Returns
        -------
        dz, dpos : (N, Nq, C) arrays
        dp_hat : (N, Nq, 2 or 4) array
            Of the first layer's reference.
        dmemory : (N, S, C) array
            All four are None where no gradient came in.
        """
        dz = dpos = dp_hat = dmemory = None
        dnext = None  # what the next layer's use of this layer's box sends back
        for d in range(len(self.layers))[::-1]:
            dbox = _sum(None if dboxes is None else dboxes[d], dnext)
            dh, dp = predict_backward(
                None if dlogits is None else dlogits[d], dbox, cache.heads[d], *heads[d]
            )
            dz = _sum(dz, dh)
            if dz is None:  # nothing is asked of this layer and those above it
                continue
            layer = self.layers[d]
            dz, dpos_d, dreference, dmemory_d = layer.backward(
                dz, recall(layer, cache.layers[d])
            )
            scale = _scale(cache.valid_ratios, dreference)
            dp = _sum(dp, (dreference * scale).sum(2))
            dpos = _sum(dpos, dpos_d)
            dmemory = _sum(dmemory, dmemory_d)
            if not self.refine or d == 0:
                dp_hat = _sum(dp_hat, dp)
            else:
                dnext = None if block else dp
        return dz, dpos, dp_hat, dmemory


def _scale(valid_ratios, p_hat):
    """(N, 1, L, 2 or 4): references are relative to what is valid, maps to all."""
    ratios = valid_ratios[:, None]
    if p_hat.shape[-1] == 4:
        ratios = get_xp(ratios).concatenate([ratios, ratios], -1)
    return ratios


def _stack(arrays):
    """(D, …): of more than eight CuPy's own copies addresses, which no graph may."""
    stacked = get_xp(arrays[0]).empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    for d, a in enumerate(arrays):
        stacked[d] = a
    return stacked


def _sum(a, b):
    """a + b, None counting as zero."""
    if a is None or b is None:
        return b if a is None else a
    return ops.add.add(a, b)
