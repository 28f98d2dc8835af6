import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.position import box_position, sine_position


def wave(position, i, n):
    """Channel i of n: sine at even, cosine at odd ones."""
    angle = position / 10_000 ** (2 * (i // 2) / n)
    return math.cos(angle) if i % 2 else math.sin(angle)


def naive_map(mask, C):
    N, H, W = mask.shape
    n = C // 2
    pos = np.zeros((N, H, W, C))
    for picture, r, c in np.ndindex(mask.shape):
        for axis, line, end in (
            (0, ~mask[picture, : r + 1, c], ~mask[picture, :, c]),
            (1, ~mask[picture, r, : c + 1], ~mask[picture, r]),
        ):
            x = (line.sum() - 0.5) / (end.sum() + 1e-6) * 2 * math.pi
            for i in range(n):
                pos[picture, r, c, axis * n + i] = wave(x, i, n)
    return pos


@pytest.mark.parametrize('C', [4, 8, 20])
def test_map_against_loops(C):
    mask = np.zeros((2, 5, 7), bool)
    mask[1, 3:] = True
    mask[1, :, 4:] = True
    pos = sine_position(mask, C)
    assert pos.dtype == np.float32
    valid = ~mask  # in padding the angle is far and single precision rough
    assert_allclose(pos[valid], naive_map(mask, C)[valid], atol=2e-6)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('shape', [(2, 5, 7), (1, 1, 1), (1, 40, 3), (0, 4, 4)])
def test_the_twin_gives_the_same_bits(shape, dtype, rng):
    for share in (0, 0.3, 1):
        mask = rng.random(shape) < share
        pos = sine_position(mask, 12, dtype)
        assert pos.dtype == dtype
        assert_array_equal(pos, sine_position.plain(mask, 12, dtype))


def test_half_padded_by_hand():
    # four rows of which two count: (½, 3/2) / 2 of a turn, a sine and a cosine
    mask = np.array([False, False, True, True])[None, :, None]
    pos = sine_position(mask, 4)[0, :2, 0]
    quarter = np.array([[1, 0], [-1, 0]])  # a quarter and three quarters of a turn
    assert_allclose(pos[:, :2], quarter, atol=1e-5)
    # one column: half a turn
    assert_allclose(pos[:, 2:], [[0, -1], [0, -1]], atol=1e-5)


def test_padding_changes_no_valid_position():
    mask = np.zeros((1, 3, 4), bool)
    wide = np.ones((1, 5, 9), bool)
    wide[:, :3, :4] = False
    assert_array_equal(sine_position(wide, 8)[:, :3, :4], sine_position(mask, 8))


def test_a_map_that_is_all_padding_is_finite():
    assert np.isfinite(sine_position(np.ones((1, 3, 4), bool), 8)).all()


def test_y_comes_first():
    pos = sine_position(np.zeros((1, 3, 4), bool), 8)
    assert_array_equal(pos[0, :, 0, :4], pos[0, :, 3, :4])
    assert_array_equal(pos[0, 0, :, 4:], pos[0, 2, :, 4:])


@pytest.mark.parametrize('C', [4, 12])
def test_boxes_against_loops(C, rng):
    box = rng.uniform(0, 1, (2, 3, 4))
    pos, _ = box_position(box, C)
    n = C // 2
    expected = [
        [[wave(b * 2 * math.pi, i, n) for b in one for i in range(n)] for one in many]
        for many in box
    ]
    # wavelengths are single precision in any type, as published
    assert_allclose(pos, expected, atol=1e-6)
    assert pos.dtype == np.float64


def test_box_by_hand():
    pos, _ = box_position(np.array([0.25, 0.5, 0.75, 1]), 4)
    assert_allclose(pos, [1, 0, 0, -1, -1, 0, 0, 1], atol=1e-12)


def test_no_boxes():
    pos, _ = box_position(np.zeros((2, 0, 4)), 8)
    assert pos.shape == (2, 0, 16)
