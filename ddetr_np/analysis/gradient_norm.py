"""What a detection looks at (A.5, Figure 5): its gradient by every pixel.

By Taylor's theorem ‖∂item/∂I‖ tells how much an item of the prediction, a coordinate of
its box or its score, would change with a pixel of the picture I. The paper finds by eye
that x and w rest on an object's left and right edges, y and h on its top and bottom,
and the score on its inside too; `gradient_shares` puts that
into numbers.
"""

import contextlib
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from .. import ops
from ..backend import get_xp, to_host
from ..errors import InputError
from ..nn.ddetr import Output
from .look import index_of

BOX = ('x', 'y', 'w', 'h')  # centre and size, in the order of the box head
ITEMS = (*BOX, 'c')  # and the score of its class


class GradientNorms(NamedTuple):
    """How much each pixel moves each item of a detection.

    Parameters
    ----------
    items : tuple of str
        Which ones, of `ITEMS`, in the order they were asked for.
    maps : dict
        Item → (H, W) array: at each pixel of the picture as the model saw it, the norm
        over the channels of ∂item/∂I. I is normalised: its unit is a standard deviation
        of ImageNet's pixels. x, y, w, h are fractions of the picture, c is in [0, 1].
    box : (float, float, float, float)
        x0, y0, x1, y1 in pixels of the maps, not clipped to them.
    label : int
        Index of the class.
    score : float
        Of that class, σ of its logit, in [0, 1].
    query : int
        Index of the decoder's query that predicts it.
    values : dict
        Item → float: what is differentiated.
    """

    items: tuple
    maps: dict
    box: tuple
    label: int
    score: float
    query: int
    values: dict


def gradient_norms(
    seen, detection=0, items=ITEMS, *, block=False, smooth=0.0, progress=None
):
    """Return ‖∂item/∂pixel‖ for items of a detection, by one backward pass each.

    The model's gradients are left as they were.

    Parameters
    ----------
    seen : Look
        Of `look(…, keep='all')` where a training pass fits into memory; with 'inputs'
        each item computes the layers again.
    detection : int
        Index into `seen.best`: 0 is the best; negative ones count from the last.
    items : sequence of {'x', 'y', 'w', 'h', 'c'}
        One backward pass each: the box's centre and size, and the score of its class.
    block : bool
        Stop where training stops gradients: at refined boxes and at proposals. False
        gives the derivative of the prediction, with only the choice of proposals held.
    smooth : float
        Standard deviation, in pixels, of a Gaussian over the maps; 0 leaves them. The
        sum of a map stays what it is.
    progress : callable, optional
        Called with the number of items done after each.

    Returns
    -------
    GradientNorms

    Raises
    ------
    InputError
        There is no such detection or item, or `smooth` is negative.
    """
    i = index_of(detection, len(seen.best.scores), 'detection')
    items = check_items(items)
    if not 0 <= smooth < np.inf:
        raise InputError(f'smooth is {smooth}; expected pixels, 0 for none')
    query, label = int(seen.best.queries[i]), int(seen.best.labels[i])
    box, score = to_host(seen.out.boxes[-1][0, query]), float(seen.best.scores[i])
    maps = {}
    with _nothing_learns(seen.model):
        for item in items:
            dout = _ask(item, seen.out, query, label)
            dimages = seen.model.backward(dout, seen.cache, images=True, block=block)
            norm = np.linalg.norm(to_host(dimages[0]), axis=-1)
            maps[item] = gaussian_filter(norm, smooth) if smooth else norm
            if progress:
                progress(len(maps))
    H, W = seen.images.shape[1:3]
    corners = ops.boxes.cxcywh_to_xyxy(box) * (W, H, W, H)
    known = {**dict(zip(BOX, box.tolist())), 'c': score}
    values = {item: known[item] for item in items}
    return GradientNorms(
        items, maps, tuple(corners.tolist()), label, score, query, values
    )


def check_items(items):
    """Return the items as a tuple, each once.

    Parameters
    ----------
    items : iterable of {'x', 'y', 'w', 'h', 'c'}
        Repeated ones count at their first place.

    Returns
    -------
    tuple of str
        In the order given.

    Raises
    ------
    InputError
        There is none, or one that is not in `ITEMS`.
    """
    items = tuple(dict.fromkeys(items))
    for item in items:
        if item not in ITEMS:
            raise InputError(
                f'there is no item {item!r}; choose from x, y, w, h (the box) and c '
                '(the score of its class)'
            )
    if not items:
        raise InputError(f'there are no items; choose from {", ".join(ITEMS)}')
    return items


def _ask(item, out, query, label):
    """Return the Output that asks for one item of a query's last prediction alone."""
    xp = get_xp(out.boxes)
    above = [None] * (len(out.boxes) - 1)  # layers that are not asked
    if item == 'c':
        scores, cache = ops.activation.sigmoid(out.logits[-1])
        dscores = xp.zeros_like(scores)
        dscores[0, query, label] = 1
        dlogits = ops.activation.sigmoid_backward(dscores, cache)
        return Output([*above, dlogits], None)
    dboxes = xp.zeros_like(out.boxes[-1])
    dboxes[0, query, BOX.index(item)] = 1
    return Output(None, [*above, dboxes])


@contextlib.contextmanager
def _nothing_learns(model):
    """Put the Params' gradients aside within the block, and do without the kernels'."""
    before = [(p, p._grad, p.learns) for _, p in model.named_params()]
    for p, _, _ in before:
        p.grad, p.learns = None, False
    try:
        yield
    finally:
        for p, grad, learns in before:
            p.grad, p.learns = grad, learns
