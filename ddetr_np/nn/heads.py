"""The heads: class logits, and boxes relative to a reference (A.3)."""

import math

from .. import ops
from .layers import MLP, Linear

PRIOR = 0.01  # probability of each class to start with


def class_head(config, init):
    """Return the linear map to class logits; its bias starts at σ⁻¹(0.01).

    Parameters
    ----------
    config : Config
        Gives num_classes and C.
    init : Init
        Draws the initial weights.

    Returns
    -------
    Linear
        From C channels to num_classes.
    """
    bias = -math.log((1 - PRIOR) / PRIOR)
    return Linear(*init.linear(config.num_classes, config.C, bias=bias))


def box_head(config, init, wh=None):
    """Return the three-layer network to Δb.

    Its last layer starts at zero: the first guess is the reference itself.

    Parameters
    ----------
    config : Config
        Gives C.
    init : Init
        Draws the initial weights.
    wh : float or None
        First guess of width and height where the reference has none, in (0, 1).

    Returns
    -------
    MLP
        From C channels to 4.
    """
    C = config.C
    last = Linear(init.full((4, C), 0), init.full(4, 0))
    if wh is not None:
        last.bias.data[2:] = math.log(wh / (1 - wh))
    hidden = [Linear(*init.linear(C, C)) for _ in range(2)]
    return MLP([*hidden, last])


def predict(h, p_hat, class_embed, bbox_embed):
    """Return a decoder layer's class logits and boxes.

    Parameters
    ----------
    h : (N, n, C) array
        Queries after the layer.
    p_hat : (N, n, 2 or 4) array
        Reference points or boxes in [0, 1].
    class_embed, bbox_embed : Module
        The heads, from h to logits and to Δb.

    Returns
    -------
    logits : (N, n, classes) array
    boxes : (N, n, 4) array
        cx, cy, w, h in [0, 1].
    cache
    """
    logits, c = class_embed.forward(h)
    delta, b = bbox_embed.forward(h)
    boxes, r = ops.boxes.box_from_reference(delta, p_hat)
    return logits, boxes, (c, b, r)


def predict_backward(dlogits, dboxes, cache, class_embed, bbox_embed):
    """Add to the heads' gradients; return those of h and p_hat.

    Parameters
    ----------
    dlogits, dboxes : like logits and boxes, or None
        ∂loss/∂logits and ∂loss/∂boxes; None for zeros.
    cache
        Of `predict`.
    class_embed, bbox_embed : Module
        The heads of the forward.

    Returns
    -------
    dh : (N, n, C) array or None
        None where both gradients are.
    dp_hat : (N, n, 2 or 4) array or None
        None where dboxes is.
    """
    c, b, r = cache
    dh = dp_hat = None
    if dboxes is not None:
        ddelta, dp_hat = ops.boxes.box_from_reference_backward(dboxes, r)
        dh = bbox_embed.backward(ddelta, b)
    if dlogits is not None:
        d = class_embed.backward(dlogits, c)
        dh = d if dh is None else dh + d
    return dh, dp_hat
