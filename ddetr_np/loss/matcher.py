"""Which query answers for which target: the Hungarian matching."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..backend import get_xp, to_host
from ..ops.activation import sigmoid
from ..ops.boxes import cxcywh_to_xyxy
from ..ops.losses import giou, l1

EPS = 1e-8  # in the cost's logarithms, as published


class Matches(NamedTuple):
    """Pairs (query (n,), target (n,)) of host indices, queries ascending.

    Parameters
    ----------
    layers : list
        layers[d][i]: the pair of decoder layer d and picture i.
    proposals : list or None
        proposals[i]: the first stage's, its queries being tokens.
    """

    layers: list
    proposals: list | None = None


def focal_cost(x, alpha, gamma):
    """Focal loss of x as a positive minus that as a negative: what choosing it changes.

    Parameters
    ----------
    x : array
        Logits of the targets' classes.
    alpha, gamma : float
        α and γ of the focal loss; a positive is weighted by α, a negative by 1 − α.

    Returns
    -------
    array, shaped like x
    """
    xp = get_xp(x)
    p, _ = sigmoid(x)
    positive = -alpha * (1 - p) ** gamma * xp.log(p + EPS)
    negative = -(1 - alpha) * p**gamma * xp.log(1 - p + EPS)
    return positive - negative


def match_cost(logits, boxes, target, weights, alpha, gamma):
    """What it costs that a query answers for a target.

    Parameters
    ----------
    logits : (..., Nq, classes) array
        One picture's.
    boxes : (..., Nq, 4) array
        The same queries' cx, cy, w, h as fractions of the unpadded picture.
    target : Target
        n labels and boxes, on the host.
    weights : Weights
        Of the three parts of the cost: class, L1 distance and −GIoU.
    alpha, gamma : float
        As of `focal_cost`.

    Returns
    -------
    cost : (..., Nq, n) array
    """
    xp = get_xp(logits)
    a, b = boxes[..., :, None, :], xp.asarray(target.boxes)
    # only this picture's classes and targets: the rest of the batch is never matched
    x = logits[..., xp.asarray(target.labels)]
    cost = weights.ce * focal_cost(x, alpha, gamma)
    cost += weights.bbox * l1(a, b)[0].sum(-1)
    cost -= weights.giou * giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))[0]
    return cost


def hungarian(cost):
    """Return (query, target): the one-to-one pairs of least total cost.

    Parameters
    ----------
    cost : (..., Nq, n) array
        As from `match_cost`, on any device; n may be 0.

    Returns
    -------
    list of ((m,), (m,)) int arrays
        One pair for each leading index; m = min(Nq, n); queries ascending.
    """
    cost = to_host(cost)
    leading = int(np.prod(cost.shape[:-2]))  # −1 has no meaning where n is 0
    return [linear_sum_assignment(c) for c in cost.reshape(leading, *cost.shape[-2:])]
