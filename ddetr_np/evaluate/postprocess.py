"""Logits and boxes to the best detections of each picture, as published: no NMS."""

from typing import NamedTuple

import numpy as np

from ..backend import to_host
from ..errors import InputError
from ..ops.activation import sigmoid
from ..ops.boxes import cxcywh_to_xyxy


class Best(NamedTuple):
    """The best (query, class) pairs of one picture, best first.

    Parameters
    ----------
    scores : (n,) array
        σ(logit), in [0, 1].
    labels : (n,) int array
        Index of the class.
    boxes : (n, 4) array
        x0, y0, x1, y1 in pixels of the original picture. Not clipped, as published:
        a box may reach past the picture.
    queries : (n,) int array
        Which query each comes from.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    queries: np.ndarray


def postprocess(logits, boxes, sizes, top=100):
    """Return the best detections of each picture.

    All Nq × classes scores compete, so that a query may appear under several classes.
    Equal scores are ordered by their place, the lower query and class first.

    Parameters
    ----------
    logits : (N, Nq, classes) array
        Of one decoder layer, before the sigmoid.
    boxes : (N, Nq, 4) array
        cx, cy, w, h in [0, 1] of the unpadded picture.
    sizes : sequence of N (H, W)
        The original pictures' pixels.
    top : int
        How many; all Nq · classes if there are no more.

    Returns
    -------
    list of N Best

    Raises
    ------
    InputError
        The shapes do not fit together, or `top` is below 1.
    """
    logits, boxes = to_host(logits), to_host(boxes)
    if logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
        raise InputError(
            f'logits {logits.shape} and boxes {boxes.shape} do not fit; expected '
            '(N, Nq, classes) and (N, Nq, 4)'
        )
    if len(sizes) != len(logits):
        raise InputError(
            f'there are {len(sizes)} sizes for {len(logits)} pictures; expected one '
            '(H, W) each'
        )
    if top < 1:
        raise InputError(f'top is {top}; expected at least 1')
    return [
        _best(*picture, int(top)) for picture in zip(sigmoid(logits)[0], boxes, sizes)
    ]


def _best(scores, boxes, size, top):
    H, W = size
    classes = scores.shape[1]
    order = np.argsort(-scores.ravel(), kind='stable')[:top]
    query, label = np.divmod(order, classes)
    corners = cxcywh_to_xyxy(boxes[query])
    scale = np.array([W, H, W, H], corners.dtype)
    return Best(scores.ravel()[order], label, corners * scale, query)
