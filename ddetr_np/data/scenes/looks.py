"""Colours, noise and textures."""

import colorsys
import math

import numpy as np
from PIL import Image


def noise(rng, H, W, cells):
    """Return smooth noise in about [0, 1]: random values, interpolated.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the values.
    H, W : int
        Pixels.
    cells : float
        Bumps along the longer side.

    Returns
    -------
    (H, W) float32 array
        Between the values it may pass 0 or 1 a little.
    """
    long = max(H, W)
    rows, columns = (max(2, round(cells * s / long) + 1) for s in (H, W))
    values = rng.random((rows, columns), np.float32)
    return np.asarray(Image.fromarray(values).resize((W, H), Image.Resampling.BICUBIC))


def colour(rng, saturation=(0.35, 1.0), value=(0.25, 1.0)):
    """Return a random colour.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws hue, saturation and value.
    saturation, value : (float, float)
        The least and the largest, in [0, 1].

    Returns
    -------
    (3,) float32 array
        RGB, 0 … 255.
    """
    hsv = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv), np.float32)


def mix(first, second, t):
    """first + t (second − first).

    Parameters
    ----------
    first, second : (3,) arrays
        Colours.
    t : (h, w) array
        Share of the second.

    Returns
    -------
    (h, w, 3) array
        A colour for each pixel.
    """
    return first + t[..., None] * (second - first)


def plain(rng, u, v):
    """One colour.

    Parameters
    ----------
    rng : numpy.random.Generator
        Not used.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    return np.zeros_like(u)


def stripes(rng, u, v):
    """Bars with soft edges.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws their number and place.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    return _wave(u * rng.uniform(2, 4.5) + rng.random())


def checks(rng, u, v):
    """A chessboard.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws number and place of the squares.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    n, shift = rng.uniform(1.5, 3), rng.random()
    a, b = _wave(n * u + shift), _wave(n * v)
    return a + b - 2 * a * b


def dots(rng, u, v):
    """A grid of spots.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws their number.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    n = rng.uniform(1.8, 3.5)
    a, b = (n * u) % 1 - 0.5, (n * v) % 1 - 0.5
    return ((0.36 - np.hypot(a, b)) * 8 + 0.5).clip(0, 1)


def fade(rng, u, v):
    """From one colour into the other.

    Parameters
    ----------
    rng : numpy.random.Generator
        Not used.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    return (0.5 + 0.45 * u).clip(0, 1)


def glow(rng, u, v):
    """Another colour at the centre.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how far it reaches.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    return (np.hypot(u, v) * rng.uniform(0.8, 1.2)).clip(0, 1)


def marble(rng, u, v):
    """Veins.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the noise that bends them.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    n = noise(rng, *u.shape, rng.uniform(2, 5))
    return 0.5 + 0.5 * np.sin(2 * math.pi * (u + 1.8 * n)).astype(np.float32)


def mottle(rng, u, v):
    """Patches.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the noise that they are made of.
    u, v : (h, w) arrays
        The figure's own coordinates, in radii.

    Returns
    -------
    (h, w) array
        Share of the second colour, in [0, 1].
    """
    n = noise(rng, *u.shape, rng.uniform(4, 9))
    return ((n - 0.5) * 4 + 0.5).clip(0, 1)


def _wave(t):
    """0 and 1 by turns, soft between."""
    return (0.5 + 1.6 * np.sin(2 * math.pi * t)).clip(0, 1)


TEXTURES = (plain, plain, stripes, checks, dots, fade, glow, marble, mottle)


def paint(rng, patch, under):
    """Return the colours of a figure's pixels that are seen on `under`.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws texture and colours.
    patch : Patch
        At least a pixel of it is `inside`.
    under : (h, w, 3) array
        What the figure will cover.

    Returns
    -------
    (h, w, 3) array
        0 … 255; the pixels about the figure have colours too.
    """
    inside = patch.inside
    below = under[inside].mean(0)
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    t = texture(rng, patch.u, patch.v)
    strength = rng.uniform(0.3, 0.9)
    for _ in range(8):
        first = colour(rng)
        second = first + strength * (colour(rng) - first)
        pixels = mix(first, second, t)
        # as far from what is below as the eye needs
        if np.abs(pixels[inside].mean(0) - below).sum() > 110:
            break
    return pixels


def shade(rng, pixels, patch, light, r):
    """Give a figure depth: a bevel lit from `light` (x, y), or a dark outline.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws which, how wide and how strong; one in four stays flat.
    pixels : (h, w, 3) array
        As `paint` returns them.
    patch : Patch
        Where the figure is.
    light : (float, float)
        x, y towards the light, of length 1.
    r : float
        The figure's radius, pixels.

    Returns
    -------
    (h, w, 3) array
        Not clipped; `pixels` itself where it stays flat.
    """
    kind = rng.integers(4)
    if kind == 3:
        return pixels
    if kind == 2:
        width = max(1.0, rng.uniform(0.06, 0.14) * r)
        line = (patch.d + width + 0.5).clip(0, 1)[..., None]
        return pixels * (1 - rng.uniform(0.4, 0.8) * line)
    wide = rng.uniform(0.12, 0.45) * r
    rim = (1 + patch.d / wide).clip(0, 1)
    # lit where the surface leans towards the light
    lit = light[0] * patch.normal[0] + light[1] * patch.normal[1]
    return pixels * (1 + rng.uniform(0.25, 0.6) * rim * lit)[..., None]
