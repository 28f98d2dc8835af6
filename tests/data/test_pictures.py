import io
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from ddetr_np.data.pictures import MAX_PIXELS, read_picture
from ddetr_np.errors import InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def colours():
    """24 × 32: red and green above, blue and white below; no symmetry."""
    a = np.zeros((24, 32, 3), np.uint8)
    a[:12, :16], a[:12, 16:], a[12:, :16], a[12:, 16:] = RED, GREEN, BLUE, WHITE
    return a


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def stored(path):
    with Image.open(path) as image:
        image.load()
        return image


# ---- kinds of pictures


def test_rgb_file_image_and_array_agree(tmp_path, colours):
    image = Image.fromarray(colours)
    path = saved(tmp_path, image, 'a.png')
    for source in (path, str(path), image, colours):
        got = read_picture(source)
        assert got.dtype == np.uint8
        assert_array_equal(got, colours)


def test_the_callers_array_is_copied(colours):
    got = read_picture(colours)
    got[:] = 7
    assert colours.max() == 255


@pytest.mark.parametrize(
    ('orientation', 'undo'),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation(tmp_path, colours, orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(colours), 'a.png', exif=exif)
    assert_array_equal(read_picture(path), undo(colours))


def test_broken_exif_is_passed_over(tmp_path, colours):
    path = saved(tmp_path, Image.fromarray(colours), 'a.png', exif=b'Exif\0\0II*\0\xff')
    assert_array_equal(read_picture(path), colours)


def test_grey_file(tmp_path):
    a = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    got = read_picture(saved(tmp_path, Image.fromarray(a), 'a.png'))
    assert_array_equal(got, np.repeat(a[..., None], 3, -1))


def test_16_bit_is_scaled_not_clipped(tmp_path):
    a = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    wanted = np.rint(a / 257).astype(np.uint8)
    assert wanted.min() == 0
    assert wanted.max() == 255
    for name in ('a.png', 'a.tif'):
        got = read_picture(saved(tmp_path, Image.fromarray(a), name))
        assert_array_equal(got, np.repeat(wanted[..., None], 3, -1))
    assert_array_equal(read_picture(a)[..., 0], wanted)
    # big-endian TIFF, and 32-bit integers that hold 16 bits
    big = Image.frombytes('I;16B', (30, 20), a.astype('>u2').tobytes())
    assert_array_equal(read_picture(big)[..., 0], wanted)
    wide = Image.fromarray(a.astype(np.int32))
    assert_array_equal(read_picture(wide)[..., 0], wanted)


def test_more_than_16_bits_is_refused():
    a = np.full((20, 30), 70_000, np.int32)
    with pytest.raises(InputError, match='70000'):
        read_picture(Image.fromarray(a))


def test_alpha_lies_over_white(tmp_path):
    a = np.zeros((20, 30, 4), np.uint8)
    a[..., 0] = 200
    a[:10, :, 3] = 255  # opaque above, clear below, half in the last row
    a[19, :, 3] = 128
    got = read_picture(saved(tmp_path, Image.fromarray(a), 'a.png'))
    assert_array_equal(got[0, 0], (200, 0, 0))
    assert_array_equal(got[15, 0], WHITE)
    half = np.array([200, 0, 0]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(got[19, 0] - half).max() <= 1
    assert_array_equal(read_picture(a), got)
    assert_array_equal(read_picture(a / 255), got)


def test_grey_with_alpha(tmp_path):
    a = np.zeros((20, 30, 2), np.uint8)
    a[..., 0] = 90
    a[:10, :, 1] = 255
    path = saved(tmp_path, Image.fromarray(a), 'a.png')
    assert stored(path).mode == 'LA'
    for source in (path, a):
        got = read_picture(source)
        assert_array_equal(got[0, 0], (90, 90, 90))
        assert_array_equal(got[15, 0], WHITE)


def test_palette_with_and_without_transparency(tmp_path, colours):
    image = Image.fromarray(colours).quantize(4)
    assert_array_equal(read_picture(saved(tmp_path, image, 'a.png')), colours)
    index = image.getpixel((0, 0))  # red becomes clear
    path = saved(tmp_path, image, 'b.png', transparency=index)
    wanted = colours.copy()
    wanted[:12, :16] = WHITE
    assert_array_equal(read_picture(path), wanted)


def test_rgb_with_a_transparent_colour(tmp_path, colours):
    path = saved(tmp_path, Image.fromarray(colours), 'a.png', transparency=GREEN)
    assert_array_equal(read_picture(path)[0, 31], WHITE)


def test_one_bit(tmp_path):
    a = np.zeros((20, 30), bool)
    a[:, 10:] = True
    path = saved(tmp_path, Image.fromarray(a), 'a.png')
    assert stored(path).mode == '1'
    for source in (path, a):
        assert_array_equal(read_picture(source)[..., 1], a * 255)


def test_cmyk_jpeg(tmp_path, colours):
    image = Image.fromarray(colours).convert('CMYK')
    path = saved(tmp_path, image, 'a.jpg', quality=100, subsampling=0)
    assert stored(path).mode == 'CMYK'
    error = np.abs(read_picture(path).astype(int) - colours)
    assert np.median(error) <= 3


def test_first_frame_of_an_animation(tmp_path, colours):
    first, second = Image.fromarray(colours), Image.fromarray(colours[::-1])
    path = saved(tmp_path, first, 'a.gif', save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert_array_equal(read_picture(path), colours)


def test_float_image(tmp_path):
    a = np.linspace(0, 1, 20 * 30, dtype=np.float32).reshape(20, 30)
    path = saved(tmp_path, Image.fromarray(a), 'a.tif')
    assert stored(path).mode == 'F'
    assert_array_equal(read_picture(path)[..., 0], np.rint(a * 255))


# ---- arrays


@pytest.mark.parametrize('shape', [(20, 30), (20, 30, 1), (20, 30, 3)])
@pytest.mark.parametrize('dtype', ['uint8', 'int64', 'float32', 'float64'])
def test_array_kinds(shape, dtype):
    a = np.random.default_rng(0).integers(0, 256, shape)
    given = a / 255 if dtype.startswith('float') else a
    wanted = a if a.ndim == 3 else a[..., None]
    got = read_picture(given.astype(dtype))
    assert_array_equal(got, np.broadcast_to(wanted, (20, 30, 3)))


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (np.full((20, 30, 3), 200.0), 'uint8 for 0 to 255'),
        (np.full((20, 30, 3), -0.5), 'not normalised'),
        (np.full((20, 30, 3), np.nan), 'NaN'),
        (np.full((20, 30, 3), 256), '0 to 255'),
        (np.full((20, 30, 3), -1), '0 to 255'),
        (np.zeros((3, 20, 30), np.uint8), 'channels go last'),
        (np.zeros((2, 20, 30, 3), np.uint8), 'as a list'),
        (np.zeros((20, 30, 5), np.uint8), r'\(20, 30, 5\)'),
        (np.zeros(20, np.uint8), r'\(20,\)'),
        (np.zeros((0, 30, 3), np.uint8), 'at least 16'),
        (np.zeros((1, 1, 3), np.uint8), 'at least 16'),
        (np.full((20, 30, 3), 'a'), 'type <U1'),
        (np.full((20, 30, 3), 1j), 'complex'),
    ],
)
def test_arrays_refused(array, message):
    with pytest.raises(InputError, match=message):
        read_picture(array)


def test_other_things_are_refused():
    for thing in (None, 3, b'bytes', [1, 2]):
        with pytest.raises(InputError, match=type(thing).__name__):
            read_picture(thing)


# ---- bad files: each message names the file


def refused(path, message):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(InputError, match=message) as caught:
            read_picture(path)
    assert path.name in str(caught.value)


def test_missing(tmp_path):
    refused(tmp_path / 'none.jpg', 'no such file')


def test_missing_below_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    refused(tmp_path / 'file' / 'a.jpg', 'cannot be opened')


def test_folder(tmp_path):
    refused(tmp_path, 'is a folder')


def test_empty(tmp_path):
    path = tmp_path / 'a.jpg'
    path.touch()
    refused(path, 'is empty')


def test_no_picture(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_text('This is a letter.\n' * 50)
    refused(path, 'is not a picture')


@pytest.mark.parametrize('ending', ['jpg', 'png', 'gif', 'bmp', 'tif', 'webp'])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.9])
def test_truncated(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), f'a.{ending}')
    data = path.read_bytes()
    path.write_bytes(data[: max(12, int(share * len(data)))])
    refused(path, 'truncated|broken|not a picture')


def test_damaged_anywhere(tmp_path):
    """Whatever single damage: a picture, or an InputError; never another exception."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    path = tmp_path / 'a'
    for kind in ('PNG', 'JPEG', 'GIF', 'TIFF', 'BMP'):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        for _ in range(60):
            data = bytearray(buffer.getvalue())
            start = rng.integers(len(data) if rng.random() < 0.5 else 100)
            data[start : start + 4] = rng.bytes(4)
            path.write_bytes(data)
            try:
                assert read_picture(path).dtype == np.uint8
            except InputError as error:
                assert str(path) in str(error)  # noqa: PT017  either way is right


@pytest.mark.parametrize('size', [(1, 1), (15, 400), (400, 15)])
def test_too_small(tmp_path, size):
    refused(saved(tmp_path, Image.new('RGB', size), 'a.png'), 'at least 16')


@pytest.mark.parametrize('size', [(50_000, 16), (50_000, 1_300), (16, 50_000)])
def test_50_000_pixels(tmp_path, size):
    path = saved(tmp_path, Image.new('1', size), 'a.png')
    refused(path, '50,000')


@pytest.mark.parametrize('size', [(12_000, 10_001), (20_000, 20_000)])
def test_too_many_pixels_are_not_decoded(tmp_path, size, monkeypatch):
    path = saved(tmp_path, Image.new('1', size), 'a.png')
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    refused(path, f'{MAX_PIXELS:,}')


def test_a_bomb_past_pillows_limit(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new('1', (2000, 2000)), 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_000_000)
    refused(path, f'{MAX_PIXELS:,}')


def test_extreme_aspect(tmp_path):
    refused(saved(tmp_path, Image.new('L', (1000, 20)), 'a.png'), 'cut it into tiles')


def test_smallest_and_longest_that_are_read(tmp_path):
    for size in ((16, 16), (640, 16)):
        path = saved(tmp_path, Image.new('L', size), 'a.png')
        assert read_picture(path).shape == (size[1], size[0], 3)
