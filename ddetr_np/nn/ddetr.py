"""The whole detector: pictures in, class logits and boxes out, and all the way back."""

from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..backend import get_xp, pooled
from ..config import make_config
from ..errors import InputError
from ..module import KEEP, NOTHING_KEPT, Module, Param, Run
from .decoder import Decoder
from .encoder import Encoder
from .finite import first_not_finite
from .heads import box_head, class_head
from .init import Init
from .layers import Dropout, LayerNorm, Linear
from .multi_scale import MultiScale, level_masks
from .proposals import base_boxes, propose, propose_backward
from .reference_points import encoder_reference_points, valid_ratios
from .resnet import ResNet

STEPS = 1 << 48  # that dropout's keys tell apart


class Output(NamedTuple):
    """What the detector says, or the gradients of it (None where there is none).

    Parameters
    ----------
    logits : (D, N, Nq, classes) array
        Of each decoder layer.
    boxes : (D, N, Nq, 4) array
        cx, cy, w, h as fractions of the unpadded picture.
    proposal_logits : (N, S, classes) array or None
        Two-stage: of each token.
    proposal_boxes : (N, S, 4) array or None
        Two-stage: of each token, in the form of `boxes`; all 1 where it has none.
    """

    logits: Any
    boxes: Any
    proposal_logits: Any = None
    proposal_boxes: Any = None


class Held(NamedTuple):
    """Choices and constants of one forward pass, to be held in another.

    Finite differences need them: the derivative holds the choice of proposals, and the
    blocked one also what the released code detaches.

    Parameters
    ----------
    top : (N, Nq) int array or None
        Tokens whose proposals go to the decoder.
    p_hats : list of (N, Nq, 2 or 4) arrays or None
        Each decoder layer's reference where it is blocked: the refined boxes, and the
        proposals.
    """

    top: Any = None
    p_hats: Any = None


class Cache(NamedTuple):
    """What the backward pass and the views need of a forward pass.

    Parameters
    ----------
    images : (N, H, W, 3) array
        The pictures, in the model's type.
    shapes : tuple of (H, W)
        Of the levels.
    ratios : (N, L, 2) array
        Of `valid_ratios`.
    padding : (N, S) bool array or None
        True where a token is padding; None where none is.
    backbone : ResNetCache
        Of the backbone.
    multi_scale : list or None
        Of the levels' maps; None if nothing was kept.
    encoder : list
        Of each encoder layer.
    proposals : ProposalsCache or None
        Two-stage, if anything was kept.
    start : tuple or None
        How the decoder's queries came about; None if nothing was kept.
    decoder : DecoderCache
        Of the decoder's layers and heads.
    again : tuple
        Model, mask, train, step and held: what this pass was called with.
    """

    images: Any  # (N, H, W, 3), in the model's type
    shapes: tuple  # ((H, W), …) of the levels
    ratios: Any  # (N, L, 2) valid ratios
    padding: Any  # (N, S) or None
    backbone: Any
    multi_scale: Any
    encoder: list
    proposals: Any
    start: Any  # how the decoder's queries came about
    decoder: Any
    again: Any  # (model, mask, train, step, held): what this pass was called with

    def hold(self, block=True):
        """Return what `forward(held=…)` holds of this pass.

        Parameters
        ----------
        block : bool
            As in `DeformableDETR.backward`: hold what is blocked there, or only the
            choice of proposals.

        Returns
        -------
        Held
        """
        top = None if self.proposals is None else self.proposals.top
        return Held(top, self.decoder.p_hats if block else None)

    def first_not_finite(self):
        """Return where a NaN or infinity of this pass began (see `nn.finite`).

        Returns
        -------
        NotFinite or None
            None where all is finite.
        """
        model, *arguments = self.again
        return first_not_finite(model, self.images, *arguments)


class QueryEmbedding(Module):
    """The learned queries: position and content, C channels each.

    Parameters
    ----------
    weight : (Nq, 2 C) array
        Position in the first C columns, content in the others.
    """

    def __init__(self, weight):
        self.weight = Param(weight)


class Transformer(Module):
    """What the published checkpoints hold under `transformer.`.

    Parameters
    ----------
    config : Config
        Gives C, L, two_stage and what encoder and decoder ask for.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        C = config.C
        self.level_embed = Param(init.normal((config.L, C)))
        self.encoder = Encoder(config, init)
        self.decoder = Decoder(config, init)
        if config.two_stage:
            self.enc_output = Linear(*init.linear(C, C, xavier=True))
            self.enc_output_norm = LayerNorm(C, init)
            self.pos_trans = Linear(*init.linear(2 * C, 2 * C, xavier=True))
            self.pos_trans_norm = LayerNorm(2 * C, init)
        else:
            self.reference_points = Linear(*init.linear(2, C, xavier=True, bias=0))


class DeformableDETR(Module):
    """Deformable DETR.

    Parameters
    ----------
    config : Config
        Which model, and its sizes.
    dtype : {'float32', 'float64'}
        Of the weights and all that is computed.
    seed : int
        Of the initial weights and of dropout.
    empty : bool
        Draw no weights: they are about to be loaded.
    """

    def __init__(self, config, dtype='float32', seed=0, empty=False):
        self.config, self.seed, self.dtype = config, seed, np.dtype(dtype)
        init = Init(None if empty else seed, dtype)
        self.transformer = Transformer(config, init)
        self.class_embed, self.bbox_embed = _heads(config, init)
        # the published names of shared modules
        if config.refine:
            self.transformer.decoder.bbox_embed = self.bbox_embed
        if config.two_stage:
            self.transformer.decoder.class_embed = self.class_embed
        else:
            self.query_embed = QueryEmbedding(init.normal((config.Nq, 2 * config.C)))
        body = ResNet(config, init)
        self._multi_scale = MultiScale(config, body.channels, init)
        self.input_proj = self._multi_scale.projections
        self.backbone = [_Body(body)]
        for stream, dropout in enumerate(self.modules(Dropout)):
            dropout.stream = stream

    @property
    def _layer_heads(self):
        """(class_embed, bbox_embed) of each decoder layer."""
        D = self.config.decoder_layers
        return list(zip(self.class_embed[:D], self.bbox_embed[:D], strict=True))

    @property
    def _proposal_heads(self):
        return self.class_embed[-1], self.bbox_embed[-1]

    @pooled()
    def forward(
        self, images, mask=None, train=False, keep='all', step=0, held=None
    ):
        """Detect.

        Parameters
        ----------
        images : (N, H, W, 3) array
            Normalised pictures, padded on the right and at the bottom.
        mask : (N, H, W) bool array or None
            True = padding.
        train : bool
            Dropout on, and learning batch norms use the batch's statistics.
        keep : {'all', 'inputs', 'none'}
            For the backward pass: everything; only the layers' inputs, the rest being
            computed again, bit for bit; or nothing.
        step : int
            With the model's seed, the key of dropout's random numbers; in [0, 2⁴⁸).
        held : Held or None
            Of another pass (`Cache.hold`): choices and constants to keep.

        Returns
        -------
        out : Output
        cache : Cache

        Raises
        ------
        InputError
            The arrays' shapes or types do not fit, or keep or step is out of range.
        """
        padded = mask is not None
        images, mask = self._check(images, mask, keep)
        if not (hasattr(step, '__index__') and 0 <= step < STEPS):
            raise InputError(f'step is {step!r}; expected a whole number in [0, 2⁴⁸)')
        run = Run(train, self.seed, step)
        held = held or Held()
        t = self.transformer
        features, backbone = self.backbone[0].body.forward(images, keep, run)
        maps, multi_scale = self._multi_scale.forward(features)
        del features
        shapes = tuple(m.shape[1:3] for m in maps)
        masks = level_masks(mask, shapes)
        ratios = valid_ratios(masks, self.dtype)
        x, pos, padding = self._tokens(maps, masks)
        # without a mask a GPU is asked for nothing on its way through the pass
        if not (padded and padding.any()):
            padding = None
        del maps
        p_hat = encoder_reference_points(shapes, ratios)
        memory, encoder = t.encoder.forward(
            x, pos, p_hat, shapes, padding, keep, run
        )
        del x, pos, p_hat
        proposal_logits = proposal_boxes = proposals = None
        if self.config.two_stage:
            guess, dropped = base_boxes(shapes, ratios, padding, self.config.base_scale)
            proposal_logits, proposal_boxes, proposals = propose(
                memory,
                guess,
                dropped,
                self.config.Nq,
                self.config.proposal_iou,
                t.enc_output,
                t.enc_output_norm,
                self._proposal_heads,
                held.top,
            )
        z, z_pos, p_hat, start = self._queries(len(images), proposals, held)
        logits, boxes, decoder = t.decoder.forward(
            z,
            z_pos,
            p_hat,
            memory,
            shapes,
            padding,
            ratios,
            self._layer_heads,
            keep,
            run,
            held.p_hats,
        )
        if proposal_logits is not None:
            proposal_logits = proposal_logits.astype(self.dtype, copy=False)
        # in mixed precision logits may have come out half
        logits = logits.astype(self.dtype, copy=False)
        out = Output(logits, boxes, proposal_logits, proposal_boxes)
        if keep == 'none':
            multi_scale = proposals = start = None
        return out, Cache(
            images,
            shapes,
            ratios,
            padding,
            backbone,
            multi_scale,
            encoder,
            proposals,
            start,
            decoder,
            (self, mask, train, step, held),
        )

    def _check(self, images, mask, keep):
        xp = get_xp(images)
        images = xp.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise InputError(
                f'images are {images.shape}; expected (N, H, W, 3), as pad_batch makes'
            )
        if images.dtype.kind != 'f':
            raise InputError(
                f'images are {images.dtype}; expected normalised values, not raw '
                'pixels: see normalise and pad_batch'
            )
        if keep not in KEEP:
            raise InputError(f'keep is {keep!r}; choose one of {", ".join(KEEP)}')
        images = images.astype(self.dtype, copy=False)
        if mask is None:
            return images, xp.zeros(images.shape[:3], bool)
        mask = xp.asarray(mask)
        if mask.shape != images.shape[:3] or mask.dtype != bool:
            raise InputError(
                f'mask is {mask.dtype} {mask.shape}; expected bool '
                f'{images.shape[:3]}, True where a pixel is padding'
            )
        if mask[:, 0, 0].any():
            raise InputError(
                'mask says that the first pixel of a picture is padding; pictures '
                'stand at the top left, padding on the right and at the bottom'
            )
        return images, mask

    def _tokens(self, maps, masks):
        """Return tokens and positions (N, S, C), and padding (N, S)."""
        xp = get_xp(maps[0])
        N, C = maps[0].shape[0], self.config.C
        x = xp.concatenate([m.reshape(N, -1, C) for m in maps], 1)
        e = self.transformer.level_embed.data
        pos = xp.empty_like(x)
        start = 0
        for l, mask in enumerate(masks):
            end = start + mask[0].size
            level = ops.position.sine_position(mask, C, self.dtype)
            xp.add(level.reshape(N, -1, C), e[l], out=pos[:, start:end])
            start = end
        padding = xp.concatenate([m.reshape(N, -1) for m in masks], 1)
        return x, pos, padding

    def _queries(self, N, proposals, held):
        """Content and position (N, Nq, C), reference (N, Nq, 2 or 4), and a cache."""
        t, C = self.transformer, self.config.C
        if proposals is None:
            weight = self.query_embed.weight.data
            xp = get_xp(weight)
            raw, linear = t.reference_points.forward(weight[:, :C])
            p_hat, _ = ops.activation.sigmoid(raw)
            z_pos, z, p_hat = (
                xp.broadcast_to(a, (N, *a.shape))
                for a in (weight[:, :C], weight[:, C:], p_hat)
            )
            return z, z_pos, p_hat, (linear, p_hat)
        xp = get_xp(proposals.boxes)
        p_hat = xp.take_along_axis(proposals.boxes, proposals.top[..., None], 1)
        if held.p_hats is not None:
            p_hat = held.p_hats[0]
        pos, position = ops.position.box_position(p_hat, C)
        y, linear = t.pos_trans.forward(pos)
        y, norm = t.pos_trans_norm.forward(y)
        return y[..., C:], y[..., :C], p_hat, (position, linear, norm)

    @pooled()
    def backward(self, dout, cache, images=False, block=True):
        """Add the gradients of ⟨dout, out⟩ to every Param's.

        Parameters
        ----------
        dout : Output
            Gradients, shaped like the output; None for zeros, also inside a list of
            the decoder layers' gradients.
        cache : Cache
            Of the forward pass, with keep = 'all' or 'inputs'.
        images : bool
            Go on to the pictures.
        block : bool
            Stop gradients where the released code stops them: at each refined box, and
            at the proposals. False gives the true derivative, the choice of proposals
            held.

        Returns
        -------
        dimages : (N, H, W, 3) array or None

        Raises
        ------
        ValueError
            The forward pass kept nothing.
        InputError
            Gradients of proposals, of a model that makes none.
        """
        if cache.start is None:
            raise ValueError(NOTHING_KEPT)
        dlogits, dboxes = dout.proposal_logits, dout.proposal_boxes
        if cache.proposals is None and not (dlogits is None and dboxes is None):
            raise InputError(
                'dout has gradients of proposals; only a two-stage model makes them'
            )
        t = self.transformer
        dz, dpos, dp_hat, dmemory = t.decoder.backward(
            dout.logits, dout.boxes, cache.decoder, self._layer_heads, block
        )
        dtop = self._queries_backward(dz, dpos, dp_hat, cache.start, block)
        if dtop is not None:
            xp = get_xp(dtop)
            full = xp.zeros_like(cache.proposals.boxes)
            full[xp.arange(len(full))[:, None], cache.proposals.top] = dtop
            dboxes = full if dboxes is None else dboxes + full
        if dlogits is not None or dboxes is not None:
            d = propose_backward(
                dlogits,
                dboxes,
                cache.proposals,
                t.enc_output,
                t.enc_output_norm,
                self._proposal_heads,
            )
            dmemory = d if dmemory is None else dmemory + d
        if dmemory is None:  # all of dout are zeros
            return get_xp(cache.images).zeros_like(cache.images) if images else None
        dx, dpos = t.encoder.backward(dmemory, cache.encoder)
        dmaps = self._tokens_backward(dx, dpos, cache.shapes)
        body = self.backbone[0].body
        learns = images or body.learns
        dfeatures = self._multi_scale.backward(dmaps, cache.multi_scale, learns)
        return body.backward(dfeatures, cache.backbone, images) if learns else None

    def _queries_backward(self, dz, dpos, dp_hat, start, block):
        """Add to the gradients; return those of the chosen proposals, if any."""
        if dz is None:
            return None
        t, C = self.transformer, self.config.C
        xp = get_xp(dz)
        if not self.config.two_stage:
            linear, p_hat = start
            dweight = self.query_embed.weight.grad
            dweight[:, C:] += dz.sum(0)
            dweight[:, :C] += dpos.sum(0)
            if dp_hat is not None:
                draw = ops.activation.sigmoid_backward(dp_hat, p_hat).sum(0)
                dweight[:, :C] += t.reference_points.backward(draw, linear)
            return None
        position, linear, norm = start
        dy = t.pos_trans_norm.backward(xp.concatenate([dpos, dz], -1), norm)
        dy = t.pos_trans.backward(dy, linear, need_dx=not block)
        if block:
            return None
        dtop = ops.position.box_position_backward(dy, position)
        return dtop if dp_hat is None else dtop + dp_hat

    def _tokens_backward(self, dx, dpos, shapes):
        """Add to the level embedding's gradient; return those of the maps."""
        de = self.transformer.level_embed.grad
        dmaps = []
        start = 0
        for l, (H, W) in enumerate(shapes):
            end = start + H * W
            if dpos is not None:
                de[l] += dpos[:, start:end].sum((0, 1))
            dmaps.append(dx[:, start:end].reshape(len(dx), H, W, -1))
            start = end
        return dmaps


class _Body(Module):
    """The `body` in the published name `backbone.0.body`."""

    def __init__(self, body):
        self.body = body


def _heads(config, init):
    """Return the lists of class and box heads as the published names count them.

    Without refinement the decoder's layers share one pair; the first stage has its own.
    """
    D = config.decoder_layers
    # only the first reference lacks a width and height
    first = None if config.two_stage else config.initial_wh
    if config.refine:
        class_embed = [class_head(config, init) for _ in range(D)]
        bbox_embed = [box_head(config, init, None if d else first) for d in range(D)]
    else:
        class_embed = [class_head(config, init)] * D
        bbox_embed = [box_head(config, init, first)] * D
    if config.two_stage:
        class_embed.append(class_head(config, init))
        bbox_embed.append(box_head(config, init))
    return class_embed, bbox_embed


def build_model(variant, *, dtype='float32', seed=0, **fields):
    """Build a model with initial weights.

    Parameters
    ----------
    variant : {'single_scale', 'single_scale_dc5', 'multi_scale', 'refine', 'two_stage'}
    dtype : {'float32', 'float64'}
        Of the weights and all that is computed.
    seed : int
        Of the initial weights and of dropout, from 0 to 2⁶⁴ − 1.
    **fields
        Any field of `Config`.

    Returns
    -------
    DeformableDETR

    Raises
    ------
    InputError
        Something is unknown or impossible, with the reason.

    Examples
    --------
    >>> small = {'backbone': 'resnet18', 'width': 8, 'C': 32, 'M': 4, 'ffn': 64}
    >>> model = build_model('refine', num_classes=5, Nq=20, **small)
    >>> images = np.zeros((1, 96, 128, 3), 'float32')
    >>> out, cache = model.forward(images, np.zeros((1, 96, 128), bool))
    >>> out.logits.shape, out.boxes.shape
    ((6, 1, 20, 5), (6, 1, 20, 4))
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise InputError(f"dtype is {dtype!r}; choose 'float32' or 'float64'")
    if not hasattr(seed, '__index__') or not 0 <= seed < 2**64:
        raise InputError(f'seed is {seed!r}; choose a whole number from 0 to 2^64 − 1')
    return DeformableDETR(make_config(variant, **fields), dtype, seed)
