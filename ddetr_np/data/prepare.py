"""From a picture to what the detector sees: resize → normalise → pad_batch."""

import numpy as np
from PIL import Image

from ..backend import get_xp
from ..errors import InputError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, RGB in [0, 1]
STD = np.array([0.229, 0.224, 0.225], np.float32)


def resized_size(H, W, short=800, long=1333):
    """Return the size (H, W) to which the released code resizes a picture.

    The short side becomes `short`; if the long side would then pass `long`, the short
    side is round(long · min / max). The other side is truncated, not rounded.

    Parameters
    ----------
    H, W : int
        Pixels.
    short, long : int
        Pixels, at least 1; `short` may not exceed `long`.

    Returns
    -------
    (int, int)
        Pixels.

    Raises
    ------
    InputError
        They are not.
    """
    if not 1 <= short <= long:
        raise InputError(
            f'short is {short} and long is {long}; expected 1 ≤ short ≤ long'
        )
    low, high = min(H, W), max(H, W)
    if high / low * short > long:
        short = max(1, round(long * low / high))
    other = int(short * high / low)
    return (short, other) if H <= W else (other, short)


def resize(picture, short=800, long=1333):
    """Resize as published: Pillow's bilinear filter, antialiased, on 8 bits.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        RGB.
    short, long : int
        See `resized_size`.

    Returns
    -------
    (H', W', 3) uint8 array
    """
    H, W = resized_size(*picture.shape[:2], short, long)
    bilinear = Image.Resampling.BILINEAR
    return np.array(Image.fromarray(picture).resize((W, H), bilinear))


def normalise(picture):
    """Return (picture / 255 − mean) / deviation, ImageNet's, as float32.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        RGB.

    Returns
    -------
    (H, W, 3) float32 array

    Raises
    ------
    InputError
        The picture is not of bytes.
    """
    if picture.dtype != np.uint8:
        raise InputError(
            f'the picture has type {picture.dtype}; expected uint8 from read_picture'
        )
    return (picture.astype(np.float32) / np.float32(255) - MEAN) / STD


def pad_batch(images, dtype=None):
    """Stack pictures of different sizes, with zeros on the right and below.

    Parameters
    ----------
    images : sequence of (H, W, 3) float arrays
        Normalised pictures.
    dtype : dtype, optional
        Of the batch; the pictures' common type if not given.

    Returns
    -------
    images : (N, H, W, 3) array
        H and W are the largest of the batch.
    mask : (N, H, W) bool array
        True on padding.

    Raises
    ------
    InputError
        There is no picture, one has another shape, or is not normalised yet.
    """
    images = list(images)
    if not images:
        raise InputError('there are no pictures; expected at least one')
    xp = get_xp(*images)
    images = [xp.asarray(image) for image in images]
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f'picture {i} has shape {image.shape}; expected (H, W, 3), channels '
                'last'
            )
        if image.dtype.kind != 'f':
            raise InputError(
                f'picture {i} has type {image.dtype}; expected floats: normalise first'
            )
    if dtype is None:
        dtype = np.result_type(*(image.dtype for image in images))
    H = max(image.shape[0] for image in images)
    W = max(image.shape[1] for image in images)
    batch = xp.zeros((len(images), H, W, 3), dtype)
    mask = xp.ones((len(images), H, W), bool)
    for image, place, padding in zip(images, batch, mask):
        h, w = image.shape[:2]
        place[:h, :w] = image
        padding[:h, :w] = False
    return batch, mask
