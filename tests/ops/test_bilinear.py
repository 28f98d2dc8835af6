import math

import numpy as np
import pytest
import scipy.ndimage
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.bilinear import corners, sample, sample_backward

H, W = 3, 4


def at(x, y, H=H, W=W):
    """The location of pixel coordinates."""
    return np.stack([(np.asarray(x) + 0.5) / W, (np.asarray(y) + 0.5) / H], -1)


def naive(v, loc, H, W):
    """Σ over all pixels of a tent: G(q, p) = g(q_x, p_x) g(q_y, p_y) of the paper."""
    y = np.zeros((*loc.shape[:-1], v.shape[1]))
    for index in np.ndindex(loc.shape[:-1]):
        x_pixel, y_pixel = loc[index] * (W, H) - 0.5
        for row in range(H):
            for column in range(W):
                g = max(0, 1 - abs(column - x_pixel)) * max(0, 1 - abs(row - y_pixel))
                y[index] += g * v[row * W + column]
    return y


def test_at_pixel_centres(rng):
    v = rng.standard_normal((H * W, 5))
    y, _ = sample(v, np.array([[2.5 / 4, 1.5 / 3]]), H, W)
    assert_allclose(y[0], v[1 * 4 + 2], rtol=1e-14)
    rows, columns = np.divmod(np.arange(H * W), W)
    y, _ = sample(v, at(columns, rows), H, W)
    assert_allclose(y, v, rtol=1e-12, atol=1e-14)


def test_by_hand():
    # pixels 0 … 11; x a quarter past pixel 1, y half way from row 1 to 2
    v = np.arange(12.0)[:, None]
    loc = at(1.25, 1.5)[None]
    y, cache = sample(v, loc, H, W)
    assert_allclose(y, [[0.5 * (5 * 0.75 + 6 * 0.25) + 0.5 * (9 * 0.75 + 10 * 0.25)]])
    dv, dloc = sample_backward(np.array([[2.0]]), cache)
    expected = np.zeros(12)
    expected[[5, 6, 9, 10]] = [0.75, 0.25, 0.75, 0.25]
    assert_allclose(dv[:, 0], expected, atol=1e-15)
    # one pixel to the right is 1 more, one down 4; W = 4 and H = 3 pixels to the map
    assert_allclose(dloc, [[2 * 1 * 4, 2 * 4 * 3]])


@pytest.mark.parametrize(('H', 'W'), [(3, 4), (5, 2), (1, 6), (6, 1), (1, 1)])
def test_against_tents(H, W, rng):
    v = rng.standard_normal((H * W, 3))
    loc = rng.uniform(-0.5, 1.5, (2, 40, 2))
    y, _ = sample(v, loc, H, W)
    assert_allclose(y, naive(v, loc, H, W), atol=1e-12)


def test_against_scipy(rng):
    v = rng.standard_normal((H, W))
    loc = rng.uniform(-0.3, 1.3, (50, 2))
    pixel = loc * (W, H) - 0.5
    wide = np.pad(v, 2)  # zeros around, as far as the points go
    expected = scipy.ndimage.map_coordinates(wide, pixel.T[::-1] + 2, order=1)
    y, _ = sample(v.reshape(-1, 1), loc, H, W)
    assert_allclose(y[:, 0], expected, atol=1e-12)


def test_weights_sum_to_one_inside_and_fade_over_half_a_pixel_at_the_border():
    x = np.array([-1.0, -0.75, -0.5, 0, 1.3, 3, 3.5, 3.75, 4])
    total = sum(g for _, g, _, _ in corners(at(x, np.ones(9)), H, W))
    assert_allclose(total, [0, 0.25, 0.5, 1, 1, 1, 0.5, 0.25, 0], atol=1e-12)


def test_slopes_sum_to_zero_inside(rng):
    loc = at(rng.uniform(0, W - 1, 100), rng.uniform(0, H - 1, 100))
    _, _, g_x, g_y = (sum(part) for part in zip(*corners(loc, H, W)))
    assert_allclose(g_x, 0, atol=1e-14)
    assert_allclose(g_y, 0, atol=1e-14)


@pytest.mark.parametrize('far', [-0.51, 1.51, -7, 1e6, -1e6, 1e18, -1e30, np.inf])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_outside_the_map_is_zero(far, dtype, rng):
    v = rng.standard_normal((H * W, 2)).astype(dtype)
    loc = np.array([[far, 0.5], [0.5, far], [far, far]], dtype)
    y, cache = sample(v, loc, H, W)
    assert_array_equal(y, 0)
    dv, dloc = sample_backward(np.ones_like(y), cache)
    assert_array_equal(dv, 0)
    assert_array_equal(dloc, 0)


def test_the_map_is_linear_between_its_pixels(rng):
    # of a plane a + bx + cy every point inside is known, and so is the slope
    row, column = np.divmod(np.arange(H * W), W)
    v = (2 + 3 * column - 5 * row)[:, None].astype(float)
    x, y = rng.uniform(0, W - 1, 50), rng.uniform(0, H - 1, 50)
    out, cache = sample(v, at(x, y), H, W)
    assert_allclose(out[:, 0], 2 + 3 * x - 5 * y, rtol=1e-12, atol=1e-12)
    _, dloc = sample_backward(np.ones((50, 1)), cache)
    assert_allclose(dloc, np.broadcast_to([3 * W, -5 * H], (50, 2)), rtol=1e-10)


def test_rows_that_repeat_add_up():
    v = np.zeros((H * W, 1))
    loc = np.broadcast_to(at(1, 1), (1000, 2))
    _, cache = sample(v, loc, H, W)
    dv, _ = sample_backward(np.ones((1000, 1)), cache)
    assert math.isclose(dv[W + 1, 0], 1000, rel_tol=1e-12)
    assert_allclose(np.delete(dv, W + 1, 0), 0, atol=1e-9)


def test_a_point_that_is_not_a_number_gives_none(rng):
    v = rng.standard_normal((H * W, 2))
    loc = rng.uniform(0.2, 0.8, (3, 2))
    loc[1, 0] = np.nan
    y, _ = sample(v, loc, H, W)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


def test_no_points(rng):
    v = rng.standard_normal((H * W, 2))
    y, cache = sample(v, np.zeros((0, 2)), H, W)
    assert y.shape == (0, 2)
    dv, dloc = sample_backward(y, cache)
    assert not dv.any()
    assert dloc.shape == (0, 2)


def test_sizes_may_be_numpy_integers(rng):
    v = rng.standard_normal((H * W, 2)).astype(np.float32)
    loc = rng.uniform(0, 1, (5, 2)).astype(np.float32)
    y, cache = sample(v, loc, *np.array([H, W]))
    assert y.dtype == np.float32
    assert all(g.dtype == np.float32 for g in sample_backward(y, cache))
