import numpy as np
import pytest
import scipy.signal
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.conv import (
    conv2d,
    conv2d_backward,
    conv_norm_relu,
    conv_norm_relu_backward,
    conv_size,
)

GEOMETRIES = [  # kernel (kh, kw), stride, padding, dilation
    ((1, 1), 1, 0, 1),
    ((1, 1), 2, 0, 1),
    ((3, 3), 1, 1, 1),
    ((3, 3), 2, 1, 1),
    ((3, 3), 1, 2, 2),
    ((7, 7), 2, 3, 1),
    ((2, 3), 3, 0, 1),
    ((3, 2), 2, 1, 3),
]


def naive(x, W, b, stride, padding, dilation):
    """Loops over outputs and taps, straight from the definition."""
    N, H, Wd, _ = x.shape
    kh, kw, _, O = W.shape
    Ho = conv_size(H, kh, stride, padding, dilation)
    Wo = conv_size(Wd, kw, stride, padding, dilation)
    y = np.zeros((N, Ho, Wo, O)) + b
    for r in range(Ho):
        for c in range(Wo):
            for i in range(kh):
                for j in range(kw):
                    row = stride * r + dilation * i - padding
                    column = stride * c + dilation * j - padding
                    if 0 <= row < H and 0 <= column < Wd:
                        y[:, r, c] += x[:, row, column] @ W[i, j]
    return y


@pytest.mark.parametrize(('kernel', 'stride', 'padding', 'dilation'), GEOMETRIES)
@pytest.mark.parametrize('size', [(7, 10), (8, 9)])
def test_against_loops(kernel, stride, padding, dilation, size, rng):
    x = rng.standard_normal((2, *size, 3))
    W = rng.standard_normal((*kernel, 3, 4))
    b = rng.standard_normal(4)
    y, _ = conv2d(x, W, b, stride, padding, dilation)
    assert_allclose(y, naive(x, W, b, stride, padding, dilation), atol=1e-12)
    y, _ = conv2d(x, W, None, stride, padding, dilation)
    assert_allclose(y, naive(x, W, 0, stride, padding, dilation), atol=1e-12)


def test_against_scipy(rng):
    x, W = rng.standard_normal((1, 9, 12, 2)), rng.standard_normal((3, 5, 2, 1))
    y, _ = conv2d(x, W)
    expected = sum(
        scipy.signal.correlate2d(x[0, :, :, i], W[:, :, i, 0], 'valid')
        for i in range(2)
    )
    assert_allclose(y[0, :, :, 0], expected, atol=1e-12)


def test_by_hand():
    # one row, kernel (1, 3) = 1, 10, 100 read from left to right
    x = np.array([1.0, 2, 3, 4, 5]).reshape(1, 1, 5, 1)
    W = np.array([1.0, 10, 100]).reshape(1, 3, 1, 1)
    y, cache = conv2d(x, W, np.array([0.5]), stride=2)
    assert_array_equal(y.ravel(), [321.5, 543.5])
    dx, dW, db = conv2d_backward(np.array([1.0, 2]).reshape(1, 1, 2, 1), cache)
    assert_array_equal(dx.ravel(), [1, 10, 102, 20, 200])
    assert_array_equal(dW.ravel(), [1 + 2 * 3, 2 + 2 * 4, 3 + 2 * 5])
    assert_array_equal(db, [3])


@pytest.mark.parametrize('size', [1, 2, 5, 32, 33])
@pytest.mark.parametrize(('kernel', 'stride', 'padding', 'dilation'), GEOMETRIES)
def test_size_counts_the_places_the_kernel_fits(
    size, kernel, stride, padding, dilation
):
    reach = dilation * (kernel[0] - 1)
    places = range(-padding, size + padding - reach, stride)
    assert max(0, conv_size(size, kernel[0], stride, padding, dilation)) == len(places)


def test_one_pixel(rng):
    x, W = rng.standard_normal((1, 1, 1, 2)), rng.standard_normal((3, 3, 2, 3))
    y, cache = conv2d(x, W, None, 2, 1)
    assert_allclose(y[0, 0, 0], x[0, 0, 0] @ W[1, 1], rtol=1e-12)
    dx, dW, _ = conv2d_backward(np.ones_like(y), cache)
    assert_allclose(dx[0, 0, 0], W[1, 1].sum(-1), rtol=1e-12)
    assert_array_equal(np.delete(dW.reshape(9, -1), 4, 0), 0)


def test_no_pictures():
    y, cache = conv2d(np.ones((0, 4, 5, 2)), np.ones((3, 3, 2, 3)), np.ones(3), 1, 1)
    assert y.shape == (0, 4, 5, 3)
    dx, dW, db = conv2d_backward(y, cache)
    assert dx.shape == (0, 4, 5, 2)
    assert not dW.any()
    assert not db.any()


def test_what_a_stride_skips_gets_no_gradient(rng):
    x = rng.standard_normal((1, 4, 6, 2))
    y, cache = conv2d(x, rng.standard_normal((1, 1, 2, 3)), None, 2)
    dx, _, _ = conv2d_backward(np.ones_like(y), cache)
    assert dx[:, ::2, ::2].all()
    assert not dx[:, 1::2].any()
    assert not dx[:, :, 1::2].any()


def test_one_bad_pixel_reaches_its_neighbours_only(rng):
    x = rng.standard_normal((1, 6, 7, 2))
    x[0, 2, 3, 1] = np.nan
    y, _ = conv2d(x, rng.standard_normal((3, 3, 2, 2)), None, 1, 1)
    bad = np.zeros((6, 7), bool)
    bad[1:4, 2:5] = True
    assert_array_equal(np.isnan(y[0, :, :, 0]), bad)


@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('with_residual', [True, False])
def test_the_composite_is_what_it_is_made_of(relu, with_residual, rng):
    x, W = rng.standard_normal((2, 5, 6, 3)), rng.standard_normal((3, 3, 3, 4))
    scale, shift = rng.standard_normal((2, 4))
    conv, conv_cache = conv2d(x, W, None, 2, 1)
    residual = rng.standard_normal(conv.shape) if with_residual else None
    y, cache = conv_norm_relu(x, W, scale, shift, residual, relu, 2, 1)
    expected = scale * conv + shift + (residual if with_residual else 0)
    passes = expected > 0 if relu else np.ones(expected.shape, bool)
    assert_allclose(y, expected * passes, atol=1e-12)

    dy = rng.standard_normal(y.shape)
    dx, dW, dresidual = conv_norm_relu_backward(dy, cache)
    dx2, dW2, _ = conv2d_backward(dy * passes * scale, conv_cache)
    assert_allclose(dx, dx2, atol=1e-12)
    assert_allclose(dW, dW2, atol=1e-12)
    if with_residual:
        assert_array_equal(dresidual, dy * passes)
    else:
        assert dresidual is None
