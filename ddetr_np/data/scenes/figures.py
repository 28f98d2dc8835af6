"""The figures that scenes show: functions that are negative inside."""

import math

import numpy as np


def disc(u, v):
    """u² + v² < 1.

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    return np.hypot(u, v) - 1


def ring(u, v):
    """A disc with a hole of 0.45.

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    return np.abs(np.hypot(u, v) - 0.725) - 0.275


def triangle(u, v):
    """Corners on the unit circle.

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    half = 0.5
    slope = half * math.sqrt(3)
    return np.maximum(v, np.abs(u) * slope - v * half) - half


def square(u, v):
    """Corners a little outside the unit circle, for an area like the others'.

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    return np.maximum(np.abs(u), np.abs(v)) - 0.8


def star(u, v, inner=0.45):
    """Five points on the unit circle, dents at `inner`.

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.
    inner : float
        Radius, in (0, 1).

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    fold = math.pi / 5
    # every tenth of the circle is the same wedge, from a point to a dent
    angle = np.abs((np.arctan2(u, v) + fold) % (2 * fold) - fold)
    r = np.hypot(u, v)
    x, y = r * np.cos(angle), r * np.sin(angle)
    # the line from the point (1, 0) to the dent
    dx, dy = inner * math.cos(fold) - 1, inner * math.sin(fold)
    return (dy * (x - 1) - dx * y) / math.hypot(dx, dy)


def cross(u, v):
    """Two bars of width 0.64.

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1, np.minimum(u, v) - 0.32)


FIGURES = {f.__name__: f for f in (disc, ring, triangle, square, star, cross)}
NAMES = tuple(FIGURES)


def blob(u, v, waves):
    """Return something of no kind: a circle with waves (k, height, phase) around it.

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.
    waves : sequence of (int, float, float)
        k of them go around; height as a share of the radius, which is 0.7; phase in
        radians.

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    angle = np.arctan2(v, u)
    edge = sum(h * np.cos(k * angle + phase) for k, h, phase in waves)
    return np.hypot(u, v) - 0.7 * (1 + edge)


def shard(u, v, corners):
    """Return a thin polygon, convex, given by half-planes (angle, distance).

    Parameters
    ----------
    u, v : (h, w) arrays
        The figure's own coordinates: to the right and down, in radii.
    corners : sequence of (float, float)
        Angle of the way out, radians; distance of the edge from the centre.

    Returns
    -------
    (h, w) array
        Negative inside; about the distance from the edge, in radii.
    """
    return np.max([u * math.cos(a) + v * math.sin(a) - d for a, d in corners], axis=0)


class Patch:
    """Where a figure falls in a picture, pixel by pixel.

    Parameters
    ----------
    figure : callable
        (u, v) → negative inside, about 1 from the centre to the edge.
    x, y, r : float
        Centre and radius, pixels.
    turn : float
        Radians.
    stretch : float
        How many times longer than wide, the area kept.
    size : (H, W)
        Of the picture.

    Attributes
    ----------
    place : (slice, slice)
        Rows and columns of the picture.
    u, v : (h, w) arrays
        The figure's own coordinates.
    d : (h, w) array
        Pixels to the figure's edge, negative inside.
    normal : (2, h, w) array
        The way out, as (x, y) of length 1.
    area : float
        Pixels, of the whole figure, also outside the picture.
    """

    def __init__(self, figure, x, y, r, turn, stretch, size):
        H, W = size
        reach = math.ceil(1.2 * r * max(stretch, 1 / stretch) ** 0.5) + 3
        top, left = math.floor(y) - reach, math.floor(x) - reach
        rows = np.arange(top, top + 2 * reach + 1, dtype=np.float32)[:, None] + 0.5 - y
        columns = np.arange(left, left + 2 * reach + 1, dtype=np.float32) + 0.5 - x
        c, s = math.cos(turn) / r, math.sin(turn) / r
        long = math.sqrt(stretch)
        u = (c * columns + s * rows) / long
        v = (c * rows - s * columns) * long
        f = figure(u, v)
        down, right = np.gradient(f)
        slope = np.hypot(right, down) + 1e-6
        # differences across a crease cancel, where the true slope is still about 1/r
        d = f / np.maximum(slope, 0.8 / (r * max(long, 1 / long)))
        self.area = float((d < 0).sum())
        cut = (
            slice(max(0, -top), max(0, min(2 * reach + 1, H - top))),
            slice(max(0, -left), max(0, min(2 * reach + 1, W - left))),
        )
        self.u, self.v, self.d = u[cut], v[cut], d[cut]
        self.normal = np.stack([right[cut], down[cut]]) / slope[cut]
        top, left = max(0, top), max(0, left)
        h, w = self.d.shape
        self.place = slice(top, top + h), slice(left, left + w)

    @property
    def cover(self):
        """Share of each pixel that the figure covers, (h, w, 1)."""
        return (0.5 - self.d).clip(0, 1)[..., None]

    @property
    def inside(self):
        """Pixels of which the figure covers more than half, (h, w) bool."""
        return self.d < 0
