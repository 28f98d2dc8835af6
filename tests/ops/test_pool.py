import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.pool import max_pool, max_pool_backward


def test_by_hand():
    x = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8], [-1, -2, -3, -4]])[None, ..., None]
    y, cache = max_pool(x, kernel=2, stride=2, padding=0)
    assert_array_equal(y[0, ..., 0], [[6, 8]])
    dx = max_pool_backward(np.array([10.0, 20]).reshape(1, 1, 2, 1), cache)
    assert_array_equal(dx[0, ..., 0], [[0, 0, 0, 0], [0, 10, 0, 20], [0] * 4])


@pytest.mark.parametrize('size', [(7, 10), (8, 9), (1, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize(('kernel', 'stride', 'padding'), [(3, 2, 1), (1, 1, 0)])
def test_against_loops(size, kernel, stride, padding, rng):
    H, W = size
    x = rng.standard_normal((2, H, W, 3)) - 5  # below 0: zeros of the border would show
    y, cache = max_pool(x, kernel, stride, padding)
    dy = rng.standard_normal(y.shape)
    dx = np.zeros_like(x)
    for n, r, c, channel in np.ndindex(y.shape):
        top, left = stride * r - padding, stride * c - padding
        window = [
            (x[n, i, j, channel], i, j)
            for i in range(max(0, top), min(H, top + kernel))
            for j in range(max(0, left), min(W, left + kernel))
        ]
        largest, i, j = max(window)
        assert y[n, r, c, channel] == largest
        dx[n, i, j, channel] += dy[n, r, c, channel]
    assert_allclose(max_pool_backward(dy, cache), dx, rtol=1e-13)


def test_of_equal_pixels_the_first_counts():
    # after ReLU most windows are all zeros, and the choice decides the stem's gradient
    y, cache = max_pool(np.zeros((1, 4, 4, 1)))
    assert not y.any()
    dx = max_pool_backward(np.arange(1.0, 5).reshape(1, 2, 2, 1), cache)
    expected = [[1, 2, 0, 0], [3, 4, 0, 0], [0] * 4, [0] * 4]
    # windows begin at −1, where the border is never the largest
    assert_array_equal(dx[0, ..., 0], expected)


def test_a_bad_pixel_is_seen(rng):
    x = rng.standard_normal((1, 6, 6, 1))
    x[0, 3, 3] = np.nan
    y, _ = max_pool(x)
    bad = [[False, False, False], [False, True, True], [False, True, True]]
    assert_array_equal(np.isnan(y[0, ..., 0]), bad)


def test_no_pictures():
    y, cache = max_pool(np.ones((0, 5, 6, 2)))
    assert y.shape == (0, 3, 3, 2)
    assert max_pool_backward(y, cache).shape == (0, 5, 6, 2)
