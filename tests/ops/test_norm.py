import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.norm import (
    batch_norm,
    batch_norm_backward,
    frozen_batch_norm,
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
    running_batch_norm,
)


def by_hand(x, eps=1e-5):
    """A flat list of numbers, normalised."""
    mean = sum(x) / len(x)
    var = sum((a - mean) ** 2 for a in x) / len(x)
    return [(a - mean) / (var + eps) ** 0.5 for a in x]


def test_layer_norm_by_hand():
    # mean 3, variance 4; eps = 0 for round numbers
    x = np.array([[1.0, 5, 1, 5], [3, 3, 3, 3]])
    w, b = np.array([1.0, 2, 3, 4]), np.array([0.0, 0, 0, 10])
    y, _ = layer_norm(x, w, b, eps=1e-300)
    assert_allclose(y, [[-1, 2, -3, 14], [0, 0, 0, 10]])


def test_layer_norm_row_by_row(rng):
    x = 5 + rng.standard_normal((2, 3, 7))
    w, b = rng.standard_normal((2, 7))
    y, _ = layer_norm(x, w, b)
    for n in range(2):
        for q in range(3):
            assert_allclose(y[n, q], w * by_hand(x[n, q]) + b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('groups', [1, 2, 3, 6])
def test_group_norm_group_by_group(groups, rng):
    x = 5 + rng.standard_normal((2, 3, 4, 6))
    w, b = rng.standard_normal((2, 6))
    y, _ = group_norm(x, w, b, groups)
    n = 6 // groups
    for picture in range(2):
        for g in range(groups):
            channels = slice(g * n, (g + 1) * n)
            flat = by_hand(x[picture, :, :, channels].ravel())
            expected = w[channels] * np.reshape(flat, (3, 4, n)) + b[channels]
            assert_allclose(y[picture, :, :, channels], expected, atol=1e-10)


def test_group_norm_keeps_groups_and_pictures_apart(rng):
    x, w, b = rng.standard_normal((2, 3, 4, 6)), np.ones(6), np.zeros(6)
    y, cache = group_norm(x, w, b, 3)
    x[1, :, :, 4] += 100
    moved, _ = group_norm(x, w, b, 3)
    assert_array_equal(moved[0], y[0])
    assert_array_equal(moved[1, :, :, :4], y[1, :, :, :4])
    assert (moved[1, :, :, 4:] != y[1, :, :, 4:]).all()
    dy = np.zeros_like(y)
    dy[1, 0, 0, 4] = 1
    dx, _, _ = group_norm_backward(dy, cache)
    assert not dx[0].any()
    assert not dx[1, :, :, :4].any()
    assert dx[1, :, :, 4:].all()


def test_batch_norm_channel_by_channel(rng):
    x = 5 + rng.standard_normal((2, 3, 4, 5))
    w, b = rng.standard_normal((2, 5))
    y, _, mean, var = batch_norm(x, w, b)
    for c in range(5):
        expected = w[c] * np.array(by_hand(x[..., c].ravel())) + b[c]
        assert_allclose(y[..., c].ravel(), expected, atol=1e-10)
        assert_allclose(mean[c], x[..., c].mean(), rtol=1e-12)
        assert_allclose(var[c], x[..., c].var(), rtol=1e-10)  # over N·H·W
    assert mean.shape == var.shape == (5,)


def test_running_statistics_of_the_batch_are_the_batch_norm(rng):
    x = 5 + rng.standard_normal((2, 3, 4, 5))
    w, b = rng.standard_normal((2, 5))
    y, _, mean, var = batch_norm(x, w, b)
    running, _ = running_batch_norm(x, w, b, mean, var)
    assert_allclose(running, y, atol=1e-12)
    scale, shift = frozen_batch_norm(w, b, mean, var)
    assert_allclose(scale * x + shift, y, atol=1e-12)


def test_frozen_batch_norm_by_hand():
    one = np.ones(1)
    scale, shift = frozen_batch_norm(6 * one, one, 2 * one, 4 * one, eps=5)
    assert_array_equal([scale, shift], [[2], [-3]])


@pytest.mark.parametrize('norm', ['layer', 'group', 'batch'])
def test_gradients_of_what_the_norm_forgets_are_zero(norm, rng):
    """Shift and (but for eps) scale of x leave y as it is: dx is orthogonal to both."""
    x, dy = rng.standard_normal((2, 2, 3, 4, 6))
    w, b = rng.standard_normal((2, 6))
    forward, backward, axes = {
        'layer': (layer_norm, layer_norm_backward, 3),
        'group': (group_norm, group_norm_backward, (1, 2, 3)),
        'batch': (batch_norm, batch_norm_backward, (0, 1, 2)),
    }[norm]
    settings = {'groups': 1} if norm == 'group' else {}
    _, cache, *_ = forward(x, w, b, eps=1e-300, **settings)
    dx, dweight, dbias = backward(dy, cache)
    assert_allclose(dx.sum(axes), 0, atol=1e-12)
    assert_allclose((dx * x).sum(axes), 0, atol=1e-12)
    assert_allclose(dbias, dy.sum((0, 1, 2)), rtol=1e-12)
    x_hat = cache.x_hat.reshape(x.shape)
    assert_allclose(dweight, (dy * x_hat).sum((0, 1, 2)), rtol=1e-12)


def test_a_constant_map_gives_the_bias_and_finite_gradients():
    x, w, b = np.full((1, 2, 3, 4), 7.0), np.ones(4), np.arange(4.0)
    for forward, backward in (
        (layer_norm, layer_norm_backward),
        (batch_norm, batch_norm_backward),
    ):
        y, cache = forward(x, w, b)[:2]
        assert_array_equal(y, np.broadcast_to(b, x.shape))
        assert all(np.isfinite(g).all() for g in backward(y, cache))
    y, cache = group_norm(x, w, b, 2)
    assert_array_equal(y, np.broadcast_to(b, x.shape))
    assert all(np.isfinite(g).all() for g in group_norm_backward(y, cache))


def test_a_large_mean_costs_no_precision(rng):
    # E[x²] − E[x]² would lose everything here
    x = rng.standard_normal((3, 256)).astype(np.float32)
    w, b = np.ones(256, np.float32), np.zeros(256, np.float32)
    small, _ = layer_norm(x, w, b)
    large, _ = layer_norm(x + np.float32(4096), w, b)
    assert_allclose(large, small, atol=1e-3)


def test_one_pixel_and_no_pictures(rng):
    w, b = np.ones(4), np.zeros(4)
    x = rng.standard_normal((1, 1, 1, 4))
    y, _ = group_norm(x, w, b, 2)
    first = by_hand(x[0, 0, 0, :2])
    assert_allclose(y[0, 0, 0, :2], first, rtol=1e-9)
    for forward, backward in (
        (lambda *a: group_norm(*a, 2), group_norm_backward),
        (layer_norm, layer_norm_backward),
    ):
        y, cache = forward(np.ones((0, 2, 3, 4)), w, b)
        dx, dweight, dbias = backward(y, cache)
        assert dx.shape == (0, 2, 3, 4)
        assert not dweight.any()
        assert not dbias.any()
