"""Where queries look from, and how their boxes move: p̂ of Eq. 3, A.3 and A.4.

The encoder's tokens look from their own places, on a grid. The decoder's queries look
from learned points, the same in every picture; with refinement, from the box of the
layer before; in the two-stage model, from the best proposals of the first stage.
Points and boxes are fractions of the picture unless they are said to be pixels.
"""

from typing import NamedTuple

import numpy as np

from ..backend import to_host
from ..errors import InputError
from ..nn.multi_scale import level_masks
from ..nn.proposals import base_boxes
from ..nn.reference_points import encoder_reference_points, valid_ratios
from ..ops.activation import sigmoid
from ..ops.boxes import cxcywh_to_xyxy
from .formulas import level_shapes


class Grid(NamedTuple):
    """The encoder's reference points.

    Parameters
    ----------
    p_hat : (N, S, L, 2) array
        x, y of each token on each level, fractions of the padded maps.
    level : (S,) int array
        Which level each token is of.
    ratios : (N, L, 2) array
        The unpadded share of each level's width and height.
    shapes : list of (H, W)
        The levels' maps, padding included.
    """

    p_hat: np.ndarray
    level: np.ndarray
    ratios: np.ndarray
    shapes: list


def token_grid(config, sizes):
    """Return where the tokens of a batch of pictures look from.

    Padding is on the right and at the bottom. A level's valid ratio is a whole number
    of its pixels, so it is the picture's true share only to within one of them, and a
    token's place on another level is off by as much.

    Parameters
    ----------
    config : Config
        Its L and dilation count.
    sizes : sequence of (H, W)
        The pictures' pixels as the model sees them; the batch has the largest of each.

    Returns
    -------
    Grid

    Raises
    ------
    InputError
        There is no picture, or one without pixels.
    """
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes) or sizes.min() < 1:
        raise InputError(
            f'sizes are {sizes.tolist()}; expected (H, W) of each picture, in pixels'
        )
    H, W = sizes.max(0)
    h, w = sizes.T[:, :, None, None]
    mask = (np.arange(H)[:, None] >= h) | (np.arange(W) >= w)  # (N, H, W)
    shapes = level_shapes(config, int(H), int(W))
    ratios = valid_ratios(level_masks(mask, shapes), 'float64')
    return Grid(
        encoder_reference_points(shapes, ratios),
        np.repeat(np.arange(len(shapes)), [h * w for h, w in shapes]),
        ratios,
        shapes,
    )


def learned_points(model):
    """Return p̂ of the learned queries: σ of a linear map of their positions.

    Parameters
    ----------
    model : DeformableDETR
        Not two-stage.

    Returns
    -------
    (Nq, 2) array
        x, y as fractions of the picture, on the host.

    Raises
    ------
    InputError
        The model has none: it is two-stage.
    """
    if model.config.two_stage:
        raise InputError(
            'a two-stage model has no learned reference points: its queries start from '
            'proposals, which a picture makes (see first_stage)'
        )
    position = model.query_embed.weight.data[:, : model.config.C]
    raw, _ = model.transformer.reference_points.forward(position)
    return to_host(sigmoid(raw)[0])


class FirstStage(NamedTuple):
    """What the first stage made of a picture's tokens (A.4).

    Parameters
    ----------
    base : (S, 4) array
        Base boxes cx, cy, w, h before Δb; NaN where a token has none.
    boxes : (S, 4) array
        Proposals; 1, 1, 1, 1 where a token has none.
    scores : (S,) array
        σ of logit 0, which ranks them.
    level : (S,) int array
        Which level each token is of.
    top : (Nq,) int array
        The tokens whose proposals the queries start from, best first.
    """

    base: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    level: np.ndarray
    top: np.ndarray


def first_stage(seen):
    """Return the proposals of a picture that a two-stage model has looked at.

    Parameters
    ----------
    seen : Look
        Of a two-stage model.

    Returns
    -------
    FirstStage
        On the host.

    Raises
    ------
    InputError
        The model is not two-stage.
    """
    config, cache = seen.model.config, seen.cache
    if not config.two_stage:
        raise InputError(
            f'this model ({config.variant or "of no published variant"}) has no first '
            'stage; its queries start from learned points (see learned_points)'
        )
    guess, dropped = base_boxes(
        cache.shapes, cache.ratios, cache.padding, config.base_scale
    )
    base = sigmoid(guess)[0]
    base[dropped] = np.nan
    ranks, _ = sigmoid(seen.out.proposal_logits[..., 0])
    arrays = base, seen.out.proposal_boxes, ranks
    base, boxes, scores = (to_host(a)[0] for a in arrays)
    level = np.repeat(np.arange(len(cache.shapes)), [h * w for h, w in cache.shapes])
    return FirstStage(base, boxes, scores, level, to_host(cache.proposals.top)[0])


class Steps(NamedTuple):
    """How the boxes of some queries move from layer to layer.

    Parameters
    ----------
    queries : (n,) int array
        Which ones.
    p_hat : (D, n, 2 or 4) array
        What each layer looks from: a point, or the box cx, cy, w, h before it. Where a
        first layer's points are followed by boxes, its w and h are NaN.
    boxes : (D, n, 4) array
        x0, y0, x1, y1 of each layer, in pixels of the picture.
    iou : (D, n) array
        With the last layer's box; 1 in the last row.
    shift : (D, n) array
        Pixels that the centre has moved: from p̂ in the first layer, then from the box
        of the layer before.
    """

    queries: np.ndarray
    p_hat: np.ndarray
    boxes: np.ndarray
    iou: np.ndarray
    shift: np.ndarray


def steps(seen, queries=None):
    """Return the boxes of a picture's queries, layer by layer.

    Parameters
    ----------
    seen : Look
        Of any model, with either `keep`.
    queries : sequence of int, optional
        All if not given; `seen.best.queries` has the best detections' first.

    Returns
    -------
    Steps

    Raises
    ------
    InputError
        There is no such query; says what there is.
    """
    box = to_host(seen.out.boxes)[:, 0].astype('float64')  # (D, Nq, 4)
    Nq = box.shape[1]
    chosen = np.arange(Nq) if queries is None else np.asarray(queries)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in 'iu'):
        raise InputError(f'queries are {queries!r}; expected whole numbers')
    wrong = [q for q in chosen.tolist() if not 0 <= q < Nq]
    if wrong:
        raise InputError(f'there is no query {wrong[0]}; this pass has 0 to {Nq - 1}')
    chosen = chosen.astype(np.intp)
    box = box[:, chosen]
    p_hats = [to_host(p)[0][chosen] for p in seen.cache.decoder.p_hats]
    widest = max(p.shape[-1] for p in p_hats)
    p_hat = np.full((len(box), len(chosen), widest), np.nan)
    for d, p in enumerate(p_hats):
        p_hat[d, :, : p.shape[-1]] = p
    H, W = seen.picture.shape[:2]
    centre = np.concatenate([p_hat[:1, :, :2], box[..., :2]]) * (W, H)
    xyxy = cxcywh_to_xyxy(box * (W, H, W, H))
    shift = np.linalg.norm(np.diff(centre, axis=0), axis=-1)
    return Steps(chosen, p_hat, xyxy, iou(xyxy, xyxy[-1]), shift)


def iou(a, b):
    """Return the intersection over union of boxes, pair by pair.

    Parameters
    ----------
    a, b : (..., 4) arrays
        x0, y0, x1, y1; b is broadcast against a.

    Returns
    -------
    (...) array
        In [0, 1]; boxes without area have 0.
    """
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    one, other = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b))
    union = one + other - both
    return np.divide(both, union, out=np.zeros_like(union), where=union > 0)
