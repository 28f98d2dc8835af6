"""What a training picture shows: labels and boxes, checked once."""

from typing import Any, NamedTuple

import numpy as np

from ..backend import to_host
from ..errors import InputError


class Target(NamedTuple):
    labels: Any  # (n,) int
    boxes: Any  # (n, 4) cx, cy, w, h


def read_targets(targets, N, num_classes, dtype):
    """Return a checked Target for each picture, on the host, boxes in `dtype`.

    Parameters
    ----------
    targets : sequence of dict, one a picture
        'labels' (n,) integers in [0, num_classes) and 'boxes' (n, 4) with cx, cy, w, h
        as fractions of the unpadded picture; n may be 0.
    N, num_classes : int
        Of the prediction: pictures and classes.
    dtype : dtype
        That of the predicted boxes; w · h must stay above 0 in it.

    Returns
    -------
    list of N Target

    Raises
    ------
    InputError
        Naming the picture and what is wrong with its target.
    """
    if len(targets) != N:
        raise InputError(
            f'{len(targets)} targets for a batch of {N} pictures; give one dict each, '
            "{'labels': (n,), 'boxes': (n, 4)}, with n = 0 where nothing is to be found"
        )
    return [_read(i, t, num_classes, dtype) for i, t in enumerate(targets)]


def _read(i, target, num_classes, dtype):
    try:
        labels, boxes = to_host(target['labels']), to_host(target['boxes'])
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"target of picture {i}: expected a dict with 'labels' (n,) and 'boxes' "
            f'(n, 4); got {type(target).__name__} without {error}'
        ) from error
    if labels.size == 0 and boxes.size == 0:  # an empty list has no second axis
        labels, boxes = np.zeros(0, int), np.zeros((0, 4), dtype)
    if labels.ndim != 1 or boxes.shape != (len(labels), 4):
        raise InputError(
            f'target of picture {i}: expected labels (n,) and boxes (n, 4); '
            f'got {labels.shape} and {boxes.shape}'
        )
    if labels.dtype.kind not in 'iu':
        raise InputError(
            f'target of picture {i}: labels are {labels.dtype}; expected integers'
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise InputError(
            f'target of picture {i}: label {labels[wrong[0]]} of box {wrong[0]} is '
            f'not in [0, {num_classes}); set num_classes or map the labels'
        )
    _check_boxes(i, boxes)
    boxes = boxes.astype(dtype)
    _check_area(i, boxes)
    return Target(labels.astype(np.intp), boxes)


def _check_boxes(i, boxes):
    if boxes.dtype.kind not in 'iuf':
        raise InputError(
            f'target of picture {i}: boxes are {boxes.dtype}; expected real numbers'
        )
    wrong = np.flatnonzero(~np.isfinite(boxes).all(1))
    if wrong.size:
        raise InputError(
            f'target of picture {i}: box {wrong[0]} is {boxes[wrong[0]].tolist()}, '
            'which is not finite'
        )
    # boxes may reach over the border, but no fraction is as large as a pixel's number
    wrong = np.flatnonzero((np.abs(boxes) > 2).any(1))
    if wrong.size:
        raise InputError(
            f'target of picture {i}: box {wrong[0]} is {boxes[wrong[0]].tolist()}; '
            'expected cx, cy, w, h as fractions of the picture: divide pixels by its '
            'width and height'
        )


def _check_area(i, boxes):
    w, h = boxes[:, 2], boxes[:, 3]
    wrong = np.flatnonzero(~((w > 0) & (h > 0) & (w * h > 0)))
    if wrong.size:
        raise InputError(
            f'target of picture {i}: box {wrong[0]} (cx, cy, w, h) is '
            f'{boxes[wrong[0]].tolist()}; expected w and h above 0: leave boxes that '
            'have no area out'
        )
