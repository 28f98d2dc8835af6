"""Any picture, from a file, a PIL image or an array, as 8-bit RGB."""

import contextlib
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..backend import to_host
from ..errors import InputError

MIN_SIDE = 16  # pixels; less is not a picture of anything
MAX_SIDE = 30_000
MAX_PIXELS = 120_000_000  # 360 MB once decoded
MAX_ASPECT = 40  # beyond it the short side has less than 33 pixels at 1333


def read_picture(source, upright=True):
    """Return a picture as 8-bit RGB, upright.

    EXIF rotation is applied. Transparent pixels are laid over white. 16-bit grey is
    scaled by 1/257, so that 65535 becomes 255. CMYK is converted without its colour
    profile. Of an animation, the first frame is taken.

    Parameters
    ----------
    source : path, PIL image or array
        An array is (H, W), (H, W, 1), (H, W, 2) grey and alpha, (H, W, 3) RGB or
        (H, W, 4) RGBA; bool, uint8, uint16, other integers in 0…255, or float in
        [0, 1].
    upright : bool
        False leaves the rows and columns as they are stored, whatever EXIF says: many
        annotations count them so.

    Returns
    -------
    picture : (H, W, 3) uint8 array

    Raises
    ------
    InputError
        The file is missing, empty, truncated or not a picture; a side is shorter than
        16 pixels or longer than 30,000; there are more than 120 million pixels; one
        side is more than 40 times the other; the range of an array is ambiguous.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), upright)
    if isinstance(source, Image.Image):
        name = getattr(source, 'filename', '') or 'the picture'
        _check_size(source.height, source.width, name)
        return _decode(source, name, upright)
    if hasattr(source, '__array__') or hasattr(source, '__cuda_array_interface__'):
        return _from_array(to_host(source))
    raise InputError(
        f'a picture is a path, a PIL image or an array, not {type(source).__name__}'
    )


def _read_file(path, upright):
    try:
        if path.is_dir():
            raise InputError(f'{path} is a folder; expected a picture file')
        if path.stat().st_size == 0:
            raise InputError(f'{path} is empty (0 bytes); expected a picture')
    except FileNotFoundError as error:
        raise InputError(f'{path}: there is no such file') from error
    except OSError as error:  # no permission, an impossible name
        raise InputError(f'{path} cannot be opened: {error.strerror}') from error
    try:
        with warnings.catch_warnings():
            # a size past Pillow's limit is refused below, in our words
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            picture = Image.open(path)
    except Image.DecompressionBombError as error:
        raise InputError(
            f'{path} declares more than {MAX_PIXELS:,} pixels; scale it down first'
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f'{path} is not a picture, or of a kind Pillow cannot read; '
            'expected JPEG, PNG, WebP, TIFF, BMP, GIF …'
        ) from error
    except Exception as error:  # a broken header can break a reader in any way
        raise InputError(f'{path} is a broken picture: {_words(error)}') from error
    with picture:
        # the header is read, the pixels are not yet
        _check_size(picture.height, picture.width, path)
        return _decode(picture, path, upright)


def _check_size(H, W, name):
    if min(H, W) < MIN_SIDE:
        raise InputError(
            f'{name} has {W} × {H} pixels; the detector needs at least {MIN_SIDE} '
            'on each side'
        )
    if max(H, W) > MAX_SIDE or H * W > MAX_PIXELS:
        raise InputError(
            f'{name} has {W:,} × {H:,} pixels; at most {MAX_SIDE:,} on a side and '
            f'{MAX_PIXELS:,} in all are read: scale it down or cut it into tiles'
        )
    if max(H, W) > MAX_ASPECT * min(H, W):
        raise InputError(
            f'{name} has {W:,} × {H:,} pixels; one side is more than {MAX_ASPECT} '
            'times the other: cut it into tiles'
        )


def _decode(picture, name, upright):
    """Return a PIL image's pixels; whatever a damaged file does becomes one error."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's remarks on metadata
        try:
            picture.load()
        except Exception as error:
            raise InputError(
                f'{name} is damaged or truncated and cannot be decoded '
                f'({_words(error)}); get the file again'
            ) from error
        if upright:
            with contextlib.suppress(Exception):  # unreadable EXIF: taken as upright
                picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] == 'I':  # I;16, I;16B, or I with 16-bit values
        return _from_array(_from_16_bit(np.asarray(picture), name), name)
    if picture.mode == 'F':
        return _from_array(np.asarray(picture), name)
    return _to_rgb(picture, name)


def _to_rgb(picture, name):
    try:
        if picture.has_transparency_data:
            picture = picture.convert('RGBA')
            white = Image.new('RGBA', picture.size, 'white')
            picture = Image.alpha_composite(white, picture)
        return np.array(picture.convert('RGB'))
    except (ValueError, OSError) as error:
        raise InputError(
            f'{name} has colour mode {picture.mode}, which cannot be made RGB; '
            'convert it first'
        ) from error


def _from_16_bit(pixels, name):
    """0…65535 → 0…255, rounded."""
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise InputError(
            f'{name} has grey values from {low} to {high}; 16 bits (0 to 65535) are '
            'the most that is read: scale it first'
        )
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_float(pixels, name):
    """[0, 1] → 0…255, rounded."""
    if not np.isfinite(pixels).all():
        raise InputError(f'{name} has NaN or infinite values; expected 0 to 1')
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise InputError(
            f'{name} has floating-point values from {low:.4g} to {high:.4g}; expected '
            '0 to 1, not normalised: scale them, or give uint8 for 0 to 255'
        )
    return np.rint(pixels * 255).astype(np.uint8)


def _from_array(pixels, name='the array'):
    """Return any array of the kinds `read_picture` takes as uint8 (H, W, 3)."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] > 4):
        hint = ''
        if pixels.ndim == 4:
            hint = '; give several pictures as a list'
        elif pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
            hint = '; channels go last: picture.transpose(1, 2, 0)'
        raise InputError(
            f'{name} has shape {pixels.shape}; expected (H, W), (H, W, 1), (H, W, 3) '
            f'or (H, W, 4){hint}'
        )
    _check_size(*pixels.shape[:2], name)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif pixels.dtype == np.uint16:
        pixels = _from_16_bit(pixels, name)
    elif pixels.dtype.kind == 'f':
        pixels = _from_float(pixels, name)
    elif pixels.dtype.kind not in 'iu':
        raise InputError(
            f'{name} has type {pixels.dtype}; expected uint8, uint16, bool or float'
        )
    elif pixels.dtype != np.uint8:
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 255:
            raise InputError(
                f'{name} has {pixels.dtype} values from {low} to {high}; expected 0 to '
                '255, or uint16 for 0 to 65535'
            )
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    # grey, grey with alpha, RGB or RGBA, by the number of channels
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name)


def _words(error):
    """What an exception says, or its name if it says nothing."""
    return str(error) or type(error).__name__
