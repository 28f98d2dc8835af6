"""The first stage of the two-stage model (A.4): a proposal from each token."""

from typing import Any, NamedTuple

from .. import ops
from ..backend import constant, get_xp
from .reference_points import pixel_centres

BORDER = 0.01  # a base box must lie in (0.01, 0.99) on all four counts


def base_boxes(shapes, ratios, padding, s):
    """Return σ⁻¹ of each token's base box, +∞ where there is none.

    The centre is the token's place in the unpadded picture, width and height are
    2^(l−1) s (A.4). A padded token, or one whose box leaves (0.01, 0.99), has none: its
    predicted box is σ(∞) = 1.

    Parameters
    ----------
    shapes : sequence of (H, W)
        Of the levels, the finest first; Σ H·W = S.
    ratios : (N, L, 2) array
        Of `valid_ratios`.
    padding : (N, S) bool array or None
        True where a token is padding.
    s : float
        Base object scale.

    Returns
    -------
    guess : (N, S, 4) array
    dropped : (N, S) bool array
        True where there is none.
    """
    xp = get_xp(ratios)
    boxes = []
    for l, (H, W) in enumerate(shapes):
        # the count of valid pixels, which the ratio was made of
        size = xp.rint(ratios[:, l] * constant((W, H), ratios.dtype, ratios))
        centre = pixel_centres(H, W, ratios.dtype, xp) / size[:, None]
        wh = xp.full_like(centre, s * 2.0**l)
        boxes.append(xp.concatenate([centre, wh], -1))
    box = xp.concatenate(boxes, 1)
    dropped = ~((box > BORDER) & (box < 1 - BORDER)).all(-1)
    if padding is not None:
        dropped |= padding
    # any number in (0, 1) will do: the logarithm is not to be warned of
    box = xp.where(dropped[..., None], 0.5, box)
    guess = xp.log(box / (1 - box))
    return xp.where(dropped[..., None], xp.inf, guess), dropped


class ProposalsCache(NamedTuple):
    dropped: Any
    enc_output: Any
    norm: Any
    class_embed: Any
    bbox_embed: Any
    boxes: Any
    top: Any  # (N, Nq) tokens, best first


def propose(memory, guess, dropped, Nq, iou, enc_output, norm, heads, top=None):
    """Predict a box at every token and pick the best.

    Parameters
    ----------
    memory : (N, S, C) array
        The encoder's tokens of all levels.
    guess : (N, S, 4) array
        Of `base_boxes`.
    dropped : (N, S) bool array
        Tokens whose memory is zeroed.
    Nq : int
        How many to pick.
    iou : float
        Two of them overlap by at most so much; 1 picks the best whatever they overlap.
    enc_output, norm : Module
        The linear map and the norm between the memory and the heads.
    heads : (class_embed, bbox_embed)
        The first stage's own.
    top : (N, Nq) int array or None
        Tokens to take whatever their logits.

    Returns
    -------
    logits : (N, S, classes) array
        Logit 0 ranks: it says whether there is an object.
    boxes : (N, S, 4) array
        cx, cy, w, h in [0, 1].
    cache : ProposalsCache
    """
    xp = get_xp(memory)
    x = xp.where(dropped[..., None], 0, memory)
    y, c1 = enc_output.forward(x)
    y, c2 = norm.forward(y)
    class_embed, bbox_embed = heads
    logits, c3 = class_embed.forward(y)
    delta, c4 = bbox_embed.forward(y)
    boxes, _ = ops.activation.sigmoid(delta + guess)
    if top is None:
        if iou < 1:
            top = ops.top.distinct_top(logits[..., 0], boxes, Nq, iou)
        else:
            top = ops.top.top(logits[..., 0], Nq)
    return logits, boxes, ProposalsCache(dropped, c1, c2, c3, c4, boxes, top)


def propose_backward(dlogits, dboxes, cache, enc_output, norm, heads):
    """Add to the gradients; return that of the memory.

    Parameters
    ----------
    dlogits : (N, S, classes) array or None
        ∂loss/∂logits; None for zeros.
    dboxes : (N, S, 4) array or None
        ∂loss/∂boxes; None for zeros. At least one of the two is given.
    cache : ProposalsCache
        Of `propose`.
    enc_output, norm : Module
        Those of the forward.
    heads : (class_embed, bbox_embed)
        Those of the forward.

    Returns
    -------
    dmemory : (N, S, C) array
        Zero at dropped tokens.
    """
    class_embed, bbox_embed = heads
    dy = None
    if dlogits is not None:
        dy = class_embed.backward(dlogits, cache.class_embed)
    if dboxes is not None:
        ddelta = ops.activation.sigmoid_backward(dboxes, cache.boxes)
        d = bbox_embed.backward(ddelta, cache.bbox_embed)
        dy = d if dy is None else dy + d
    dx = enc_output.backward(norm.backward(dy, cache.norm), cache.enc_output)
    return get_xp(dx).where(cache.dropped[..., None], 0, dx)
