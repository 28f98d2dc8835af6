import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from ddetr_np.data.prepare import normalise, pad_batch, resize, resized_size
from ddetr_np.errors import InputError


@pytest.mark.parametrize(
    ('size', 'wanted'),
    [
        ((480, 640), (800, 1066)),  # truncated: 1066.67
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((500, 500), (800, 800)),
        ((300, 1000), (400, 1333)),  # the long side decides: round(1333 · 0.3)
        ((1000, 300), (1333, 400)),
        ((640, 200), (1334, 417)),  # as published, rounding may pass 1333 by one
        ((800, 1066), (800, 1066)),
        ((16, 640), (33, 1320)),
    ],
)
def test_resized_size(size, wanted):
    assert resized_size(*size) == wanted


def test_resized_size_never_vanishes():
    assert min(resized_size(16, 640, 8, 10)) >= 1


@pytest.mark.parametrize(('short', 'long'), [(0, 10), (20, 10), (-1, 5)])
def test_resize_limits(short, long):
    with pytest.raises(InputError, match='short'):
        resized_size(30, 40, short, long)


def test_resize_is_pillows_bilinear():
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    got = resize(picture, 12, 100)
    wanted = Image.fromarray(picture).resize((16, 12), Image.Resampling.BILINEAR)
    assert_array_equal(got, wanted)
    assert_array_equal(resize(picture, 24, 100), picture)


def test_normalise_by_hand():
    got = normalise(np.full((16, 16, 3), (255, 0, 51), np.uint8))
    assert got.dtype == np.float32
    wanted = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(got[3, 4], wanted, rtol=1e-6)
    with pytest.raises(InputError, match='uint8'):
        normalise(got)


def test_pad_batch():
    a, b = np.ones((4, 6, 3), np.float32), np.ones((5, 2, 3), np.float32)
    images, mask = pad_batch([a, b])
    assert images.shape == (2, 5, 6, 3)
    assert images.dtype == np.float32
    assert mask.dtype == bool
    assert not mask[0, :4].any()
    assert mask[0, 4].all()
    assert not mask[1, :, :2].any()
    assert mask[1, :, 2:].all()
    assert_array_equal(images.any(-1), ~mask)


def test_pad_batch_dtype():
    a = np.full((2, 2, 3), 0.1, np.float32)
    assert pad_batch([a], np.float64)[0].dtype == np.float64
    assert pad_batch([a, a.astype(np.float64)])[0].dtype == np.float64


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ([], 'no pictures'),
        ([np.zeros((4, 4, 3), np.uint8)], 'normalise first'),
        ([np.zeros((3, 4, 4))], 'channels last'),
        ([np.zeros((4, 4))], r'\(4, 4\)'),
        ([np.zeros((0, 4, 3))], r'\(0, 4, 3\)'),
    ],
)
def test_pad_batch_refuses(images, message):
    with pytest.raises(InputError, match=message):
        pad_batch(images)
