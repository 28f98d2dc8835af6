"""Where the gradients of detections lie: what A.5 finds by eye, as numbers."""

from typing import NamedTuple

import numpy as np

from ..data.dataset import Example
from ..errors import InputError
from .gradient_norm import ITEMS, check_items, gradient_norms
from .look import look

EDGE = 0.1  # of a side: what counts as near an edge
MARGIN = 0.25  # of a side: how far around the box is looked
REGIONS = ('left, right', 'top, bottom', 'inside')


class GradientShares(NamedTuple):
    """Which share of the gradients lies where in and around the boxes.

    It prints as a table: for each item the mean share in each region, and how many
    times a uniform map's share that is. Any map that sits on the object has more inside
    and less near the edges than a uniform one. So compare rows too: what the paper
    claims is that x and w lie nearer to left and right than y and h do, which lie
    nearer to top and bottom, and that c lies inside.

    Parameters
    ----------
    items : tuple of str
        The second axis of `shares`: which of x, y, w, h and c.
    regions : tuple of str
        'left, right': near either of these edges; 'top, bottom'; and 'inside': in the
        box and near no edge. The first two share the corners.
    shares : (n, items, regions) array
        For each of n detections, of the sum of its map over the window around the box.
    uniform : (n, regions) array
        The regions' shares of the window's pixels.
    pictures : int
        How many were looked into.
    edge, margin : float
        See `regions_of`.
    """

    items: tuple
    regions: tuple
    shares: np.ndarray
    uniform: np.ndarray
    pictures: int
    edge: float
    margin: float

    def __repr__(self):
        n = len(self.shares)
        head = (
            f'{n} detections in {self.pictures} pictures: shares of the gradient in a '
            f'box and {self.margin:g} of its\nside around; near an edge: within '
            f'{self.edge:g} of the side; ×: times the share of a uniform map'
        )
        if not n:
            return head
        uniform = self.uniform.mean(0)
        rows = [['', *self.regions]]
        for item, share in zip(self.items, self.shares.mean(0)):
            # a box of a few pixels may have no pixel inside
            times = share / np.where(uniform > 0, uniform, np.nan)
            rows.append([item, *(f'{s:.3f} ×{t:.2f}' for s, t in zip(share, times))])
        rows.append(['uniform', *(f'{u:.3f}      ' for u in uniform)])
        return '\n'.join([head, *(_row(row) for row in rows)])


def _row(words):
    first, *others = words
    return f'{first:8}' + ''.join(f'{word:>15}' for word in others)


def gradient_shares(
    model,
    pictures,
    *,
    items=ITEMS,
    threshold=0.5,
    top=100,
    edge=EDGE,
    margin=MARGIN,
    block=False,
    short=None,
    long=None,
    keep='all',
    progress=None,
):
    """Tell where the gradients of a model's detections lie: the paper's A.5 in numbers.

    Parameters
    ----------
    model : DeformableDETR
        Whose detections are looked into; its gradients are left as they were.
    pictures : Dataset, or iterable of Example or of what `read_picture` takes
        Of an Example only the picture is used, not its objects.
    items : sequence of {'x', 'y', 'w', 'h', 'c'}
        The box's centre and size, and the score of its class.
    threshold : float
        In [0, 1]: detections with a lower score are not looked into.
    top : int
        At most so many detections of a picture are.
    edge, margin : float
        See `regions_of`.
    block : bool
        As for `gradient_norms`.
    short, long : int, optional
        Pixels to which the sides are resized; the model's if not given.
    keep : {'all', 'inputs'}
        As for `look`.
    progress : callable, optional
        Called with the number of pictures done after each.

    Returns
    -------
    GradientShares
        Without detections of which nothing is in the picture, or whose score is so near
        1 that its gradient is 0.

    Raises
    ------
    InputError
        A picture cannot be used, there is no such item, or a number is out of range.
    """
    items = check_items(items)
    _check_numbers(threshold, top, edge, margin)
    shares, uniform, done = [], [], 0
    for picture in pictures:
        if isinstance(picture, Example):
            picture = picture.picture()
        seen = look(model, picture, short, long, keep)
        n = min(top, int((seen.best.scores >= threshold).sum()))
        for i in range(n):
            norms = gradient_norms(seen, i, items, block=block)
            share, area = _shares(norms, edge, margin)
            if np.isfinite(share).all():
                shares.append(share)
                uniform.append(area)
        done += 1
        if progress:
            progress(done)
    I, R = len(items), len(REGIONS)
    return GradientShares(
        items,
        REGIONS,
        np.reshape(shares, (-1, I, R)),
        np.reshape(uniform, (-1, R)),
        done,
        edge,
        margin,
    )


def _check_numbers(threshold, top, edge, margin):
    if not 0 <= threshold <= 1:
        raise InputError(f'threshold is {threshold}; expected 0 (all) to 1')
    if top < 1:
        raise InputError(f'top is {top}; expected at least 1')
    if not 0 < edge < 0.5:
        raise InputError(
            f'edge is {edge}; expected a fraction of the side, above 0 and below 0.5'
        )
    if not edge <= margin < np.inf:
        raise InputError(
            f'margin is {margin}; expected a fraction of the side, at least the '
            f'edge, {edge}'
        )


def _shares(norms, edge, margin):
    """Return shares (items, regions) of the maps and (regions,) of a uniform one."""
    maps = np.stack([norms.maps[item] for item in norms.items]).astype(np.float64)
    window, regions = regions_of(norms.box, maps.shape[1:], edge, margin)

    def share(a):
        with np.errstate(invalid='ignore'):  # 0 / 0: nothing to be shared
            return (a[..., None, :, :] * regions).sum((-2, -1)) / (
                (a * window).sum((-2, -1))[..., None]
            )

    return share(maps), share(np.ones_like(maps[0]))


def regions_of(box, size, edge=EDGE, margin=MARGIN):
    """Return the window around a box, and its regions.

    Parameters
    ----------
    box : (x0, y0, x1, y1)
        Pixels; (0, 0) is the top left of the first.
    size : (H, W)
        Of the picture, in pixels.
    edge : float
        A pixel is near an edge if its centre is within this part of the box's width
        (left, right) or height (top, bottom) of it, on either side, in the window.
    margin : float
        The window is the box with this part of its width and height around it, as far
        as the picture goes.

    Returns
    -------
    window : (H, W) bool array
        True in the box and the margin around it.
    regions : (3, H, W) bool array
        As `REGIONS`.
    """
    H, W = size
    x0, y0, x1, y1 = box
    x, y = np.arange(W) + 0.5, np.arange(H)[:, None] + 0.5
    # signed distance to the nearer edge in sides of the box: −½ in its middle
    u = np.maximum(x0 - x, x - x1) / (x1 - x0)
    v = np.maximum(y0 - y, y - y1) / (y1 - y0)
    window = (u <= margin) & (v <= margin)
    sides, ends = abs(u) <= edge, abs(v) <= edge
    inside = (u < -edge) & (v < -edge)
    return window, np.stack([sides & window, ends & window, inside])
