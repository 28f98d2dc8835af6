"""The choice of the best proposals (A.4)."""

import numpy as np

from ..backend import get_xp, replaceable


@replaceable
def top(scores, n):
    """Return where the n largest scores are, best first; of equals the first.

    A choice has no gradient.

    Parameters
    ----------
    scores : (N, S) array
        Of each picture's tokens. NaN comes after all numbers.
    n : int
        At most S.

    Returns
    -------
    places : (N, n) int64 array
        From 0 to S − 1.
    """
    return get_xp(scores).argsort(-scores, axis=1, kind='stable')[:, :n]


def distinct_top(scores, boxes, n, iou):
    """Return where the n best scores are, leaving out boxes that better ones cover.

    The best is taken, then the best of those that overlap none taken by more than
    `iou`, and so on. Where fewer than n are left, the best of those left out follow.
    A choice has no gradient.

    Parameters
    ----------
    scores : (N, S) array
        As for `top`.
    boxes : (N, S, 4) array
        cx, cy, w, h; w and h are not negative.
    n : int
        At most S.
    iou : float
        In [0, 1].

    Returns
    -------
    places : (N, n) int64 array
        From 0 to S − 1, each once.
    """
    xp = get_xp(scores)
    N, S = scores.shape
    # ranks: small whole numbers, so that three bands of them cannot run together
    rows = xp.arange(N)
    rank = xp.empty((N, S), np.int64)
    rank[rows[:, None], top(scores, S)] = xp.arange(S)
    cx, cy, w, h = (xp.ascontiguousarray(boxes[..., i]) for i in range(4))
    corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    area = w * h
    places = xp.empty((N, min(n, S)), np.int64)
    for i in range(places.shape[1]):
        best = rank.argmin(axis=1)
        places[:, i] = best
        x0, y0, x1, y1 = (c[rows, best][:, None] for c in corners)
        width = xp.minimum(corners[2], x1) - xp.maximum(corners[0], x0)
        height = xp.minimum(corners[3], y1) - xp.maximum(corners[1], y0)
        common = xp.maximum(width, 0) * xp.maximum(height, 0)
        union = area + area[rows, best][:, None] - common
        covered = (common > iou * union) & (rank < S)
        rank += S * covered
        rank[rows, best] = 3 * S
    return places
