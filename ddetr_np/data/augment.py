"""Pictures changed for training, their boxes with them.

Each function takes a picture (H, W, 3) uint8 and a target: a dict of 'boxes' (n, 4),
which are x0, y0, x1, y1 in pixels, 'labels' (n,), and whatever else has n rows. It
returns both anew. Only those with `rng` draw lots. `Augment` puts them together.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .dataset import clip_boxes
from .prepare import resize, resized_size

SCALES = tuple(range(480, 801, 32))  # 480, 512 … 800
MIDDLE = (400, 500, 600)
CROP = (384, 600)
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as Pillow's grey


def flip_x(picture, target):
    """Swap left and right.

    Parameters
    ----------
    picture, target : (H, W, 3) uint8 array, dict
        'boxes' (n, 4) are x0, y0, x1, y1 in pixels; see the module's docstring.

    Returns
    -------
    picture, target
        Mirrored: x becomes W − x.
    """
    W = picture.shape[1]
    x0, y0, x1, y1 = target['boxes'].T
    boxes = np.stack([W - x1, y0, W - x0, y1], 1)
    return np.ascontiguousarray(picture[:, ::-1]), {**target, 'boxes': boxes}


def flip_y(picture, target):
    """Swap top and bottom.

    Parameters
    ----------
    picture, target : (H, W, 3) uint8 array, dict
        'boxes' (n, 4) are x0, y0, x1, y1 in pixels; see the module's docstring.

    Returns
    -------
    picture, target
        Mirrored: y becomes H − y.
    """
    H = picture.shape[0]
    x0, y0, x1, y1 = target['boxes'].T
    boxes = np.stack([x0, H - y1, x1, H - y0], 1)
    return np.ascontiguousarray(picture[::-1]), {**target, 'boxes': boxes}


def crop(picture, target, top, left, H, W, visible=0.0):
    """Cut a region out; its boxes are clipped, those without area in it are dropped.

    Parameters
    ----------
    picture, target : (h, w, 3) uint8 array, dict
        'boxes' (n, 4) are x0, y0, x1, y1 in pixels; see the module's docstring.
    top, left, H, W : int
        Pixels; the region lies within the picture.
    visible : float
        In [0, 1]: boxes of which no more than this share is left are dropped. The
        released code keeps all that have area: 0.

    Returns
    -------
    picture, target
        The region, (H, W, 3); boxes count from its corner. A dropped box takes its row
        of everything else with it.
    """
    boxes = target['boxes'] - np.array([left, top, left, top])
    inside = clip_boxes(boxes, (H, W))
    left_over = (inside[:, 2:] - inside[:, :2]).clip(0).prod(1)
    keep = left_over > visible * (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = {key: value[keep] for key, value in {**target, 'boxes': inside}.items()}
    return np.ascontiguousarray(picture[top : top + H, left : left + W]), kept


def resize_with_boxes(picture, target, short, long=math.inf):
    """Resize as published (`prepare.resize`); boxes scale by the sizes that result.

    Parameters
    ----------
    picture, target : (H, W, 3) uint8 array, dict
        'boxes' (n, 4) are x0, y0, x1, y1 in pixels; see the module's docstring.
    short, long : int
        Pixels; see `prepare.resized_size`. Without `long` the long side is free.

    Returns
    -------
    picture, target
        (h, w, 3) uint8; boxes in its pixels.
    """
    H, W = picture.shape[:2]
    small = resize(picture, short, long)
    h, w = small.shape[:2]
    boxes = target['boxes'] * np.array([w / W, h / H, w / W, h / H])
    return small, {**target, 'boxes': boxes}


def random_size_crop(picture, target, rng, least=CROP[0], most=CROP[1]):
    """Cut out a region of random size and place, as published.

    Width, then height, are drawn from least … min(side, most), both ends included; a
    side shorter than `least` stays whole.

    Parameters
    ----------
    picture, target : (H, W, 3) uint8 array, dict
        'boxes' (n, 4) are x0, y0, x1, y1 in pixels; see the module's docstring.
    rng : numpy.random.Generator
        Width, height, top and left are drawn, in this order.
    least, most : int
        Pixels of a side.

    Returns
    -------
    picture, target
        As `crop` returns them, (h, w, 3).
    """
    H, W = picture.shape[:2]
    w = int(rng.integers(min(W, least), min(W, most) + 1))
    h = int(rng.integers(min(H, least), min(H, most) + 1))
    top = int(rng.integers(0, H - h + 1))
    left = int(rng.integers(0, W - w + 1))
    return crop(picture, target, top, left, h, w)


def random_share_crop(picture, target, rng, share, visible=0.0):
    """Cut out a region whose sides are shares of the picture's.

    Parameters
    ----------
    picture, target : (H, W, 3) uint8 array, dict
        'boxes' (n, 4) are x0, y0, x1, y1 in pixels; see the module's docstring.
    rng : numpy.random.Generator
        Shares of height and width, then top and left, are drawn.
    share : (float, float)
        The least and the largest share, in (0, 1]; drawn for each side.
    visible : float
        As for `crop`.

    Returns
    -------
    picture, target
        As `crop` returns them, (h, w, 3).
    """
    H, W = picture.shape[:2]
    h, w = (max(1, round(s * rng.uniform(*share))) for s in (H, W))
    top = int(rng.integers(0, H - h + 1))
    left = int(rng.integers(0, W - w + 1))
    return crop(picture, target, top, left, h, w, visible)


def change_colours(picture, brightness=1, contrast=1, saturation=1, hue=0):
    """Return the picture with its colours changed; boxes do not care.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        RGB.
    brightness : float
        A factor of all values.
    contrast : float
        A factor of their distance from the mean grey.
    saturation : float
        A factor of each pixel's distance from its own grey; 0 is a grey picture.
    hue : float
        A turn of the colour circle, 1 is a whole one: a rotation about the grey axis.

    Returns
    -------
    (H, W, 3) uint8 array
        Rounded, clipped to 0 … 255.
    """
    pixels = picture.astype(np.float32) * np.float32(brightness)
    if contrast != 1:
        mean = _mix(pixels, GREY).mean()
        pixels = mean + (pixels - mean) * np.float32(contrast)
    if saturation != 1 or hue:
        columns = _colour_matrix(saturation, hue).T
        pixels = np.stack([_mix(pixels, column) for column in columns], -1)
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def _mix(pixels, weights):
    # no matrix product: its last bit may depend on the number of threads
    r, g, b = weights
    return pixels[..., 0] * r + pixels[..., 1] * g + pixels[..., 2] * b


def _colour_matrix(saturation, hue):
    """What rows of RGB are multiplied by: first saturation, then hue."""
    to_grey = np.outer(GREY, np.ones(3))
    saturate = to_grey + saturation * (np.eye(3) - to_grey)
    # Rodrigues' rotation about (1, 1, 1)
    c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    k = 1 / math.sqrt(3)
    cross = k * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turn = c * np.eye(3) + s * cross + (1 - c) / 3
    return (saturate @ turn.T).astype(np.float32)


def random_colours(picture, rng, brightness=0, contrast=0, saturation=0, hue=0):
    """Change the colours at random: factors from [1 − a, 1 + a], hue from [−a, a].

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        RGB.
    rng : numpy.random.Generator
        Draws once for each a that is not 0.
    brightness, contrast, saturation : float
        a of each factor, in [0, 1]; 0 leaves it at 1.
    hue : float
        a in turns of the colour circle, in [0, 0.5].

    Returns
    -------
    (H, W, 3) uint8 array
        As `change_colours` returns it.
    """
    factors = [
        rng.uniform(1 - a, 1 + a) if a else 1
        for a in (brightness, contrast, saturation)
    ]
    return change_colours(picture, *factors, rng.uniform(-hue, hue) if hue else 0)


def published(picture, target, rng):
    """The released code's training augmentation: flip, then one of two at random.

    Flipped left to right with probability ½. Then either the short side is resized to
    one of 480, 512 … 800 (long at most 1333); or the short side is resized to one of
    400, 500, 600, a region of 384 to 600 is cut out, and then resized as the first.

    Parameters
    ----------
    picture, target : (H, W, 3) uint8 array, dict
        'boxes' (n, 4) are x0, y0, x1, y1 in pixels; see the module's docstring.
    rng : numpy.random.Generator
        The lots come from it alone.

    Returns
    -------
    picture, target
        (h, w, 3) uint8; boxes in its pixels, fewer where the region left some out.
    """
    if rng.random() < 0.5:
        picture, target = flip_x(picture, target)
    if rng.random() >= 0.5:
        picture, target = resize_with_boxes(picture, target, int(rng.choice(MIDDLE)))
        picture, target = random_size_crop(picture, target, rng)
    return resize_with_boxes(picture, target, int(rng.choice(SCALES)), 1333)


@dataclass(frozen=True)
class Augment:
    """What is done to a training picture; made of numbers, so that a file can hold it.

    Calling it takes and returns what the functions of this module do. Parts that are
    0 are left out.

    Parameters
    ----------
    scales : tuple of int
        The short side is resized to one of these, drawn at random.
    long : int
        At most so many pixels of the long side.
    flip_x, flip_y : float
        Probabilities. Microscopes know no up: there both may be ½.
    crop : float
        Probability that a region is cut out first.
    share : (float, float)
        The region's sides as shares of the picture's.
    visible : float
        Boxes of which no more than this share is left by the crop are dropped.
    brightness, contrast, saturation, hue : float
        As for `random_colours`.
    """

    scales: tuple = (800,)
    long: int = 1333
    flip_x: float = 0.5
    flip_y: float = 0.0
    crop: float = 0.0
    share: tuple = (0.6, 1.0)
    visible: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, 'scales', tuple(self.scales))
        object.__setattr__(self, 'share', tuple(self.share))
        for short in self.scales:
            resized_size(short, short, short, self.long)
        need = {
            'scales': (len(self.scales) > 0, 'at least one size'),
            'share': (
                len(self.share) == 2 and 0 < self.share[0] <= self.share[1] <= 1,
                'two numbers, 0 < least ≤ largest ≤ 1',
            ),
            'visible': (0 <= self.visible < 1, 'in [0, 1)'),
            'hue': (0 <= self.hue <= 0.5, 'in [0, 0.5]'),
        }
        for name in ('flip_x', 'flip_y', 'crop'):
            need[name] = (0 <= getattr(self, name) <= 1, 'a probability')
        for name in ('brightness', 'contrast', 'saturation'):
            need[name] = (0 <= getattr(self, name) <= 1, 'in [0, 1]')
        for name, (holds, expected) in need.items():
            if not holds:
                value = getattr(self, name)
                raise InputError(f'augment: {name} is {value}; it must be {expected}')

    def __call__(self, picture, target, rng):
        """Return a changed picture and its target."""
        if self.flip_x and rng.random() < self.flip_x:
            picture, target = flip_x(picture, target)
        if self.flip_y and rng.random() < self.flip_y:
            picture, target = flip_y(picture, target)
        if self.crop and rng.random() < self.crop:
            picture, target = random_share_crop(
                picture, target, rng, self.share, self.visible
            )
        short = int(rng.choice(self.scales))
        picture, target = resize_with_boxes(picture, target, short, self.long)
        colours = (self.brightness, self.contrast, self.saturation, self.hue)
        if any(colours):
            picture = random_colours(picture, rng, *colours)
        return picture, target


@dataclass(frozen=True)
class Plain:
    """What evaluation does to a picture: it is resized, nothing else.

    Parameters
    ----------
    short, long : int
        Pixels; see `prepare.resized_size`.
    """

    short: int = 800
    long: int = 1333

    def __call__(self, picture, target, rng=None):
        """Return the resized picture and its target."""
        return resize_with_boxes(picture, target, self.short, self.long)
