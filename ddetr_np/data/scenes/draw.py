"""One scene: figures on a ground, among other things, under some light."""

import math
from typing import NamedTuple

import numpy as np

from ...errors import InputError
from .figures import FIGURES, NAMES, Patch
from .ground import draw_clutter, draw_ground, draw_lines, light_and_camera
from .looks import paint, shade

TRIES = 12  # places tried for a figure
IN_PICTURE = 0.7  # of a figure's area, at least
VISIBLE = 0.5  # of what is in the picture, at least, whatever lies on top


class Scene(NamedTuple):
    """A drawn picture and what is seen in it.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        RGB.
    boxes : (n, 4) float64 array
        x0, y0, x1, y1 in pixels: tight on the pixels that are seen.
    labels : (n,) int array
        Indices of `NAMES`.
    areas : (n,) float64 array
        Pixels that are seen.
    """

    picture: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray


def draw_scene(seed=0, H=192, W=192, figures=(2, 10), radius=(10, 58)):
    """Draw a scene.

    Figures of `NAMES`, textured, turned, stretched, of many sizes, lie on a ground,
    over and under each other, with things among them that are no figures. A figure is
    drawn only where enough of it, and of those below it, is seen: none is there that
    has no box.

    Parameters
    ----------
    seed : int, sequence of int, or numpy.random.Generator
        What `numpy.random.default_rng` takes; equal seeds draw equal scenes.
    H, W : int
        Pixels, at least 32.
    figures : (int, int)
        The least and the largest number; fewer where there is no place.
    radius : (float, float)
        Of figures, pixels; drawn so that each doubling is as frequent.

    Returns
    -------
    Scene

    Raises
    ------
    InputError
        A side is less than 32 pixels, a radius less than 4, or a range is none.
    """
    if min(H, W) < 32 or not 0 <= figures[0] <= figures[1]:
        raise InputError(
            f'a scene of {W} × {H} pixels with {figures} figures; expected at least 32 '
            'pixels on each side and 0 ≤ least ≤ largest'
        )
    if not 4 <= radius[0] <= radius[1]:
        raise InputError(f'radius is {radius}; expected 4 ≤ least ≤ largest')
    rng = np.random.default_rng(seed)
    canvas = draw_ground(rng, H, W)
    angle = rng.uniform(0, 2 * math.pi)
    light = math.cos(angle), math.sin(angle)
    draw_clutter(rng, canvas, int(rng.integers(0, 9)), light)
    canvas = draw_lines(rng, canvas, int(rng.integers(0, 4)))
    drawn = _Drawn(H, W)
    for _ in range(int(rng.integers(figures[0], figures[1] + 1))):
        _draw_figure(rng, canvas, drawn, light, radius)
    picture = light_and_camera(rng, canvas)
    return Scene(picture, *drawn.seen())


class _Drawn:
    """Which figure is seen at each pixel, and how much of each would be."""

    def __init__(self, H, W):
        self.owner = np.full((H, W), -1, np.int32)
        self.labels, self.areas = [], []

    def hides_too_much(self, patch):
        """Whether a new figure there would leave too little of one below."""
        below = self.owner[patch.place]
        n = len(self.labels)
        seen = np.bincount(self.owner.ravel() + 1, minlength=n + 1)[1:]
        hidden = np.bincount(below[patch.inside] + 1, minlength=n + 1)[1:]
        touched = hidden > 0
        return (seen - hidden < VISIBLE * np.array(self.areas))[touched].any()

    def add(self, patch, label):
        self.owner[patch.place][patch.inside] = len(self.labels)
        self.labels.append(label)
        self.areas.append(int(patch.inside.sum()))

    def seen(self):
        """Return boxes (n, 4), labels and areas of what is seen."""
        boxes, areas = [], []
        for k in range(len(self.labels)):
            rows, columns = np.nonzero(self.owner == k)
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes.append(edges)
            areas.append(len(rows))
        boxes = np.array(boxes, np.float64).reshape(-1, 4)
        labels = np.array(self.labels, np.int64)
        return boxes, labels, np.array(areas, np.float64)


def _draw_figure(rng, canvas, drawn, light, radius):
    """Draw one more figure where there is a place; in place."""
    size = H, W = canvas.shape[:2]
    label = int(rng.integers(len(NAMES)))
    for _ in range(TRIES):
        most = min(radius[1], 0.3 * min(H, W))
        r = math.exp(rng.uniform(math.log(min(radius[0], most)), math.log(most)))
        x, y = rng.uniform(0, W), rng.uniform(0, H)
        turn, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(-0.25, 0.25))
        patch = Patch(FIGURES[NAMES[label]], x, y, r, turn, stretch, size)
        if patch.inside.sum() < IN_PICTURE * patch.area:
            continue
        if not drawn.hides_too_much(patch):
            break
    else:
        return
    if rng.random() < 0.7:
        _cast_shadow(rng, canvas, patch, light, r)
    under = canvas[patch.place]
    pixels = shade(rng, paint(rng, patch, under), patch, light, r)
    canvas[patch.place] = under + patch.cover * (pixels - under)
    drawn.add(patch, label)


def _cast_shadow(rng, canvas, patch, light, r):
    """Darken the ground on the side away from the light."""
    far, soft = rng.uniform(0.06, 0.25) * r, rng.uniform(1.5, 0.25 * r + 2)
    cover = (0.5 - patch.d / soft).clip(0, 1) * rng.uniform(0.25, 0.6)
    rows, columns = patch.place
    down, right = round(-light[1] * far), round(-light[0] * far)
    H, W = canvas.shape[:2]
    top, left = rows.start + down, columns.start + right
    cut = (
        slice(max(0, -top), max(0, H - top)), slice(max(0, -left), max(0, W - left))
    )
    cover = cover[cut]
    h, w = cover.shape
    top, left = max(0, top), max(0, left)
    canvas[top : top + h, left : left + w] *= (1 - cover)[..., None]
