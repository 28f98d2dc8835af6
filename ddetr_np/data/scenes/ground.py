"""What a scene's figures lie on, and what else lies there."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .figures import Patch, blob, shard
from .looks import colour, mix, noise, paint, shade


def draw_ground(rng, H, W):
    """Return a background.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws colours, pattern and grain.
    H, W : int
        Pixels.

    Returns
    -------
    (H, W, 3) float32 array
        About 0 … 255, not clipped.
    """
    value = (0.15, 0.5) if rng.random() < 0.35 else (0.45, 1.0)
    saturation = (0.0, 0.45)
    first = colour(rng, saturation, value)
    second = first + rng.uniform(0.15, 0.6) * (colour(rng, saturation, value) - first)
    ground = mix(first, second, _pattern(rng, H, W))
    # a slow change over everything, and a fine grain
    slow = noise(rng, H, W, rng.uniform(1, 3)) - 0.5
    grain = noise(rng, H, W, rng.uniform(25, 60)) - 0.5
    ground += (rng.uniform(10, 60) * slow + rng.uniform(0, 16) * grain)[..., None]
    return ground


def _pattern(rng, H, W):
    """Return the share of the second colour, (H, W)."""
    down, right = np.mgrid[0:H, 0:W].astype(np.float32) / max(H, W)
    turn = rng.uniform(0, math.pi)
    u = math.cos(turn) * right + math.sin(turn) * down
    v = math.cos(turn) * down - math.sin(turn) * right
    kind = rng.choice(['cloud', 'slope', 'boards', 'tiles', 'weave', 'hatch'])
    if kind == 'cloud':
        octaves = [noise(rng, H, W, 3 * 2**k) / 2**k for k in range(4)]
        return sum(octaves) / 1.875
    if kind == 'slope':
        return u - u.min()
    if kind == 'boards':
        wide = rng.uniform(0.08, 0.25)
        board = np.floor(u / wide).astype(int)
        shades = rng.random(board.max() - board.min() + 1, np.float32)
        # wood is long along its board
        long = noise(rng, H, W, 40) * 0.15
        gap = (np.abs(u / wide - np.rint(u / wide)) < 0.02) * 0.5
        return shades[board - board.min()] + long + gap.astype(np.float32)
    if kind == 'tiles':
        wide = rng.uniform(0.12, 0.3)
        joint = np.maximum(np.abs((u / wide) % 1 - 0.5), np.abs((v / wide) % 1 - 0.5))
        return (joint > 0.47).astype(np.float32) + 0.3 * noise(rng, H, W, 8)
    if kind == 'weave':
        n = rng.uniform(10, 28)
        return 0.5 + 0.25 * (np.sin(math.pi * n * u) + np.sin(math.pi * n * v))
    n = rng.uniform(8, 30)
    return 0.5 + 0.5 * np.sin(math.pi * n * (u + 0.1 * noise(rng, H, W, 4)))


def draw_lines(rng, canvas, n):
    """Return the canvas with n thin lines and scribbles.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws where they are, and their colours.
    canvas : (H, W, 3) float32 array
        It stays as it is.
    n : int
        0 or more.

    Returns
    -------
    (H, W, 3) float32 array
        With n = 0, `canvas` itself.
    """
    H, W = canvas.shape[:2]
    zoom = 2  # drawn larger, for smooth edges
    for _ in range(n):
        sheet = Image.new('L', (zoom * W, zoom * H))
        draw = ImageDraw.Draw(sheet)
        width = int(rng.integers(zoom, 2 * zoom + 1))
        if rng.random() < 0.4:
            points = rng.uniform(-0.1, 1.1, (2, 2))
        else:
            points = _scribble(rng)
        points = points * (zoom * W, zoom * H)
        draw.line([tuple(p) for p in points.tolist()], 255, width, joint='curve')
        cover = np.asarray(sheet.reduce(zoom), np.float32)[..., None] / 255
        if rng.random() < 0.5:
            cover = cover * rng.uniform(0.5, 1)
        canvas = canvas + cover * (colour(rng, (0, 0.9), (0.1, 1)) - canvas)
    return canvas


def _scribble(rng):
    """Points of an open curve, (24, 2), that never comes round."""
    t = np.linspace(0, 1, 24)
    start, way = rng.uniform(0, 1, 2), rng.normal(0, 0.35, 2)
    bend = rng.normal(0, 0.08, (2, 2))
    waves = np.sin(np.outer(t, rng.uniform(2, 7, 2)))
    return start + t[:, None] * way + waves @ bend


def draw_clutter(rng, canvas, n, light):
    """Draw blobs and shards, which are no figures, and specks; in place.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws what they are, where, and their looks.
    canvas : (H, W, 3) float32 array
        Overwritten.
    n : int
        Blobs and shards together; there are four specks for each.
    light : (float, float)
        x, y towards the light, of length 1.
    """
    H, W = canvas.shape[:2]
    for _ in range(n):
        x, y = rng.uniform(0, W), rng.uniform(0, H)
        r = rng.uniform(0.03, 0.16) * min(H, W)
        if rng.random() < 0.5:
            waves = [
                (k, rng.uniform(0.12, 0.3), rng.uniform(0, 6.3))
                for k in rng.choice([2, 3, 4, 5, 7], 3, replace=False)
            ]
            patch = Patch(
                lambda u, v, w=waves: blob(u, v, w), x, y, r, 0, 1, (H, W)
            )
        else:
            angles = np.arange(5) * 1.257 + rng.uniform(-0.45, 0.45, 5)
            corners = list(zip(angles.tolist(), rng.uniform(0.35, 0.9, 5).tolist()))
            patch = Patch(
                lambda u, v, c=corners: shard(u, v, c), x, y, r,
                rng.uniform(0, 6.3), rng.uniform(3, 5), (H, W),
            )
        if patch.inside.any():
            under = canvas[patch.place]
            pixels = shade(rng, paint(rng, patch, under), patch, light, r)
            canvas[patch.place] = under + patch.cover * (pixels - under)
    rows, columns = rng.integers(0, H, 4 * n), rng.integers(0, W, 4 * n)
    canvas[rows, columns] *= rng.uniform(0.3, 1.7, (4 * n, 1))


def light_and_camera(rng, canvas):
    """Return the picture a camera takes of the canvas.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the lamp and its colour, blur and noise.
    canvas : (H, W, 3) float32 array
        About 0 … 255; it stays as it is.

    Returns
    -------
    (H, W, 3) uint8 array
        RGB.
    """
    H, W = canvas.shape[:2]
    down = np.linspace(-1, 1, H, dtype=np.float32)[:, None]
    right = np.linspace(-1, 1, W, dtype=np.float32)
    x, y = rng.uniform(-0.8, 0.8, 2)
    # a lamp somewhere, and its colour
    far = (right - x) ** 2 + (down - y) ** 2
    gain = rng.uniform(0.85, 1.12) * (1 - rng.uniform(0, 0.18) * far)
    canvas = canvas * gain[..., None] * rng.uniform(0.9, 1.08, 3).astype(np.float32)
    if rng.random() < 0.4:
        soft = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
        radius = rng.uniform(0.3, 0.9)
        canvas = np.asarray(soft.filter(ImageFilter.GaussianBlur(radius)), np.float32)
    canvas = canvas + rng.uniform(1, 9) * rng.standard_normal(
        canvas.shape, np.float32
    )
    return np.rint(canvas.clip(0, 255)).astype(np.uint8)
