"""A picture made of coloured shapes, for the demo."""

import math

import numpy as np
from PIL import Image, ImageDraw

SIDES = {'disc': 0, 'triangle': 3, 'square': 4, 'star': 10}


def draw_shapes(seed=0, H=480, W=640, n=9):
    """Return a picture of n discs, triangles, squares and stars on a soft ground.

    Parameters
    ----------
    seed : int
        The same seed gives the same picture.
    H, W : int
        Pixels.
    n : int
        Shapes; later ones may cover earlier ones.

    Returns
    -------
    picture : (H, W, 3) uint8 array
    """
    rng = np.random.default_rng(seed)
    up, left = np.mgrid[0:1:H * 1j, 0:1:W * 1j][..., None]
    first, second, third = rng.uniform(150, 235, (3, 3))
    ground = first + (second - first) * up / 2 + (third - first) * left / 2
    ground += rng.normal(0, 3, ground.shape)  # a camera's noise
    zoom = 3  # drawn larger and scaled down, for smooth edges
    ground = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    image = ground.resize((zoom * W, zoom * H))
    draw = ImageDraw.Draw(image)
    for _ in range(n):
        sides = int(rng.choice(list(SIDES.values())))
        r = zoom * min(H, W) * rng.uniform(0.06, 0.17)
        x, y = rng.uniform(r, zoom * W - r), rng.uniform(r, zoom * H - r)
        colour = _colour(rng)
        turn = rng.uniform(0, 2 * math.pi)
        for shift, fill in ((0.07 * r, (90, 90, 90)), (0, colour)):  # a shadow first
            _shape(draw, x + shift, y + shift, r, sides, turn, fill)
    return np.array(image.resize((W, H), Image.Resampling.BOX))


def _colour(rng):
    bright, middle, dark = rng.uniform((170, 60, 10), (250, 150, 60))
    return tuple(int(c) for c in rng.permutation([bright, middle, dark]))


def _shape(draw, x, y, r, sides, turn, fill):
    if sides == 0:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        return
    corners = []
    for i in range(sides):
        # every other corner of a star lies further in
        radius = r * (0.45 if sides == SIDES['star'] and i % 2 else 1)
        angle = turn + 2 * math.pi * i / sides
        corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    draw.polygon(corners, fill=fill)
