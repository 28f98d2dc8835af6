import math
import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops import ms_deform_attn as module
from ddetr_np.ops.bilinear import sample
from ddetr_np.ops.ms_deform_attn import (
    ms_deform_attn,
    ms_deform_attn_backward,
    sampling_locations,
    sampling_locations_backward,
)
from ddetr_np.testing import check_gradients

SHAPES = ((6, 4), (3, 2))  # the published operator's own check, and its sizes
N, M, NQ, L, K = 1, 2, 2, 2, 2


def published(rng, Cv):
    S = sum(H * W for H, W in SHAPES)
    A = rng.random((N, NQ, M, L, K)) + 1e-5
    A /= A.sum((3, 4), keepdims=True)
    value = rng.random((N, S, M, Cv)) * 0.01
    return value, SHAPES, rng.random((N, NQ, M, L, K, 2)), A


def arguments(rng, N=2, Nq=5, M=3, K=2, Cv=4, shapes=((3, 5), (2, 3), (1, 1))):
    L, S = len(shapes), sum(H * W for H, W in shapes)
    A = rng.random((N, Nq, M, L, K))
    A /= A.sum((3, 4), keepdims=True)
    value = rng.standard_normal((N, S, M, Cv))
    return value, shapes, rng.uniform(-0.2, 1.2, (N, Nq, M, L, K, 2)), A


def naive(value, shapes, loc, A):
    """Eq. 3 point by point: its four corners, and zeros beyond the map."""
    N, _, M, Cv = value.shape
    _, Nq, _, L, K, _ = loc.shape
    y = np.zeros((N, Nq, M, Cv))
    for n, q, m, l, k in np.ndindex(N, Nq, M, L, K):
        H, W = shapes[l]
        start = sum(h * w for h, w in shapes[:l])
        x_pixel = float(loc[n, q, m, l, k, 0]) * W - 0.5
        y_pixel = float(loc[n, q, m, l, k, 1]) * H - 0.5
        left, top = math.floor(x_pixel), math.floor(y_pixel)
        for row, b in ((top, 1 - y_pixel + top), (top + 1, y_pixel - top)):
            for column, a in ((left, 1 - x_pixel + left), (left + 1, x_pixel - left)):
                if 0 <= row < H and 0 <= column < W:
                    read = value[n, start + row * W + column, m]
                    y[n, q, m] += A[n, q, m, l, k] * a * b * read
    return y


@pytest.mark.parametrize(
    ('dtype', 'rtol', 'atol'), [('float64', 1e-5, 1e-8), ('float32', 1e-2, 1e-3)]
)
def test_published_check_forward(dtype, rtol, atol, rng):
    value, shapes, loc, A = published(rng, 2)
    y, _ = ms_deform_attn(
        value.astype(dtype), shapes, loc.astype(dtype), A.astype(dtype)
    )
    assert y.dtype == dtype
    assert_allclose(y, naive(value, shapes, loc, A), rtol, atol)


@pytest.mark.parametrize('Cv', [30, 32, 64, 71, 1025, 2048, 3096])
def test_published_check_gradients_within_a_gigabyte(Cv, rng):
    value, shapes, loc, A = published(rng, Cv)
    tracemalloc.start()
    y, cache = ms_deform_attn(value, shapes, loc, A)
    dy = rng.standard_normal(y.shape)
    gradients = dict(zip(('value', 'loc', 'A'), ms_deform_attn_backward(dy, cache)))

    def forward(**inputs):
        return ms_deform_attn(shapes=shapes, **inputs)[0]

    checks = check_gradients(
        forward, {'value': value, 'loc': loc, 'A': A}, gradients, dy
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [c.verdict for c in checks] == ['ok'] * 3, checks
    assert max(c.error for c in checks) <= 1e-6
    assert peak < 1e9


@pytest.mark.parametrize('tile', [1, 100, 1 << 22])
def test_against_loops_however_it_is_tiled(tile, rng, monkeypatch):
    monkeypatch.setattr(module, 'TILE', tile)
    case = arguments(rng)
    y, cache = ms_deform_attn(*case)
    assert_allclose(y, naive(*case), atol=1e-12)
    dy = rng.standard_normal(y.shape)
    gradients = ms_deform_attn_backward(dy, cache)
    monkeypatch.undo()
    for g, whole in zip(gradients, ms_deform_attn_backward(dy, cache)):
        assert_allclose(g, whole, rtol=1e-12, atol=1e-13)


def test_by_hand():
    # one map of 1 × 2, pixels 10 and 20; a key on each, one between, one half outside
    value = np.array([10.0, 20]).reshape(1, 2, 1, 1)
    x = np.array([0.25, 0.75, 0.5, 0.0])
    loc = np.stack([x, np.full(4, 0.5)], -1).reshape(1, 1, 1, 1, 4, 2)
    A = np.array([0.1, 0.2, 0.3, 0.4]).reshape(1, 1, 1, 1, 4)
    y, cache = ms_deform_attn(value, ((1, 2),), loc, A)
    assert_allclose(y.ravel(), [0.1 * 10 + 0.2 * 20 + 0.3 * 15 + 0.4 * 5])
    dvalue, dloc, dA = ms_deform_attn_backward(np.full((1, 1, 1, 1), 2.0), cache)
    assert_allclose(dA.ravel(), [20, 40, 30, 10])
    assert_allclose(dvalue.ravel(), [2 * (0.1 + 0.15 + 0.2), 2 * (0.2 + 0.15)])
    # between the pixels 10 more a pixel, on entering the map 10, two pixels a map
    assert_allclose(dloc[0, 0, 0, 0, 2:, 0], [2 * 0.3 * 10 * 2, 2 * 0.4 * 10 * 2])
    # up and down: the row above is zero, the point stands on the centre of the only row
    # and looks down, to where it is zero as well
    assert_allclose(dloc[0, 0, 0, 0, 2, 1], -2 * 0.3 * 15)


def test_at_pixel_centres_it_is_a_gather(rng):
    shapes = ((3, 5), (2, 4))
    value, _, _, A = arguments(rng, shapes=shapes)
    N, Nq, M, L, K = A.shape
    expected = np.zeros((N, Nq, M, value.shape[3]))
    loc = np.zeros((*A.shape, 2))
    for n, q, m, l, k in np.ndindex(A.shape):
        H, W = shapes[l]
        row, column = rng.integers(H), rng.integers(W)
        loc[n, q, m, l, k] = (column + 0.5) / W, (row + 0.5) / H
        read = value[n, l * 15 + row * W + column, m]
        expected[n, q, m] += A[n, q, m, l, k] * read
    y, _ = ms_deform_attn(value, shapes, loc, A)
    assert_allclose(y, expected, atol=1e-12)


def test_constant_maps_are_returned_inside(rng):
    value, shapes, loc, A = arguments(rng, shapes=((4, 6), (3, 3)))
    loc = rng.uniform(0.2, 0.8, loc.shape)  # half a pixel from the border
    value[:] = value[:, :1]
    y, cache = ms_deform_attn(value, shapes, loc, A)
    assert_allclose(y, np.broadcast_to(value[:, :1], y.shape), rtol=1e-12)
    dy = rng.standard_normal(y.shape)
    dvalue, dloc, _ = ms_deform_attn_backward(dy, cache)
    assert_allclose(dvalue.sum(1), dy.sum(1), rtol=1e-11, atol=1e-13)
    assert_allclose(dloc, 0, atol=1e-12)


def test_the_order_of_the_keys_is_nothing(rng):
    value, shapes, loc, A = arguments(rng, K=5)
    order = rng.permutation(5)
    y, cache = ms_deform_attn(value, shapes, loc, A)
    y2, cache2 = ms_deform_attn(value, shapes, loc[..., order, :], A[..., order])
    assert_allclose(y2, y, atol=1e-13)
    dy = rng.standard_normal(y.shape)
    dvalue, dloc, dA = ms_deform_attn_backward(dy, cache)
    dvalue2, dloc2, dA2 = ms_deform_attn_backward(dy, cache2)
    assert_allclose(dvalue2, dvalue, atol=1e-12)
    assert_allclose(dloc2, dloc[..., order, :], atol=1e-12)
    assert_allclose(dA2, dA[..., order], atol=1e-12)


def test_one_level_one_key_is_a_tap_of_deformable_convolution(rng):
    # the paper's remark on Eq. 3: with L = K = 1 and W' the identity, x(p̂ + Δp)
    H, W = 5, 7
    image = rng.standard_normal((H, W))
    offset = rng.normal(scale=2, size=(1, 9, 1, 1, 1, 2))
    p_hat = rng.uniform(0, 1, (1, 9, 1, 2))
    loc, _ = sampling_locations(p_hat, offset, ((H, W),))
    value = image.reshape(1, H * W, 1, 1)
    y, _ = ms_deform_attn(value, ((H, W),), loc, np.ones((1, 9, 1, 1, 1)))
    pixel = p_hat[0, :, 0] * (W, H) - 0.5 + offset[0, :, 0, 0, 0]
    pixel = np.clip(pixel, -3, 9)
    wide = np.pad(image, 6)
    expected = scipy.ndimage.map_coordinates(wide, pixel.T[::-1] + 6, order=1)
    assert_allclose(y.ravel(), expected, atol=1e-12)


def test_it_is_linear_attention_over_single_samples(rng):
    value, shapes, loc, A = arguments(rng)
    y, _ = ms_deform_attn(value, shapes, loc, A)
    expected = np.zeros_like(y)
    for n, m in np.ndindex(loc.shape[0], loc.shape[2]):
        start = 0
        for l, (H, W) in enumerate(shapes):
            pixels = value[n, start : start + H * W, m]
            read, _ = sample(pixels, loc[n, :, m, l], H, W)
            expected[n, :, m] += (A[n, :, m, l, :, None] * read).sum(1)
            start += H * W
    assert_allclose(y, expected, atol=1e-12)


def test_points_outside_read_and_teach_nothing(rng):
    value, shapes, loc, A = arguments(rng)
    loc = np.where(rng.random(loc.shape) < 0.5, -9.0, 1e7)
    y, cache = ms_deform_attn(value, shapes, loc, A)
    assert not y.any()
    for g in ms_deform_attn_backward(np.ones_like(y), cache):
        assert not g.any()


def test_a_bad_point_spoils_its_own_query_only(rng):
    value, shapes, loc, A = arguments(rng)
    y, _ = ms_deform_attn(value, shapes, loc, A)
    loc[1, 2, 0, 1, 1, 0] = np.nan
    bad, _ = ms_deform_attn(value, shapes, loc, A)
    assert np.isnan(bad[1, 2, 0]).all()
    bad[1, 2, 0] = y[1, 2, 0]
    assert_array_equal(bad, y)


@pytest.mark.parametrize('empty', ['N', 'Nq'])
def test_nothing_to_do(empty, rng):
    value, shapes, loc, A = arguments(rng, **{empty: 0})
    y, cache = ms_deform_attn(value, shapes, loc, A)
    assert y.shape == (*loc.shape[:3], value.shape[3])
    dvalue, dloc, dA = ms_deform_attn_backward(y, cache)
    assert dvalue.shape == value.shape
    assert dloc.shape == loc.shape
    assert dA.shape == A.shape
    assert not dvalue.any()


def test_shapes_may_be_lists_or_arrays(rng):
    value, shapes, loc, A = (
        a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in arguments(rng)
    )
    y, cache = ms_deform_attn(value, shapes, loc, A)
    for other in (list(map(list, shapes)), np.array(shapes), np.array(shapes, 'int32')):
        y2, cache2 = ms_deform_attn(value, other, loc, A)
        assert_array_equal(y2, y)
        assert cache2.shapes == cache.shapes == shapes
        assert y2.dtype == np.float32


def test_what_does_not_belong_together_is_refused(rng):
    value, shapes, loc, A = arguments(rng)
    with pytest.raises(ValueError, match='value has 21 tokens'):
        ms_deform_attn(value[:, 1:], shapes, loc, A)
    with pytest.raises(ValueError, match='value has 22 tokens'):
        ms_deform_attn(value, shapes[:2], loc, A)
    for bad in (loc[:1], loc[:, :, 1:], loc[:, :, :, 1:], loc[..., :1]):
        with pytest.raises(ValueError, match='loc must be'):
            ms_deform_attn(value, shapes, bad, A)
    for bad in (A[:1], A[:, 1:], A[:, :, 1:], A[:, :, :, 1:], A[..., 1:]):
        with pytest.raises(ValueError, match='loc must be'):
            ms_deform_attn(value, shapes, loc, bad)
    for bad in ((value[0], loc, A), (value, loc[0], A), (value, loc, A[0])):
        with pytest.raises(ValueError, match='expected value'):
            ms_deform_attn(bad[0], shapes, *bad[1:])


def test_locations_from_points_by_hand():
    # map of H = 2, W = 4: an offset of one pixel is a quarter of x, half of y
    p_hat = np.array([0.5, 0.25]).reshape(1, 1, 1, 2)
    offset = np.array([1.0, -0.5]).reshape(1, 1, 1, 1, 1, 2)
    loc, cache = sampling_locations(p_hat, offset, ((2, 4),))
    assert_array_equal(loc.ravel(), [0.75, 0])
    dp_hat, doffset = sampling_locations_backward(np.ones_like(loc), cache)
    assert_array_equal(dp_hat.ravel(), [1, 1])
    assert_array_equal(doffset.ravel(), [0.25, 0.5])


def test_locations_from_boxes_by_hand():
    # K = 2: an offset of K reaches the box's edge, whatever the map's size
    p_hat = np.array([0.5, 0.5, 0.4, 0.2]).reshape(1, 1, 1, 4)
    offset = np.array([[2.0, 2], [-2, 1]]).reshape(1, 1, 1, 1, 2, 2)
    loc, cache = sampling_locations(p_hat, offset, ((2, 4),))
    assert_allclose(loc[0, 0, 0, 0], [[0.7, 0.6], [0.3, 0.55]])
    dloc = np.array([[1.0, 0], [0, 1]]).reshape(loc.shape)
    dp_hat, doffset = sampling_locations_backward(dloc, cache)
    assert_allclose(dp_hat.ravel(), [1, 1, 0.5, 0.25])
    assert_allclose(doffset.ravel(), [0.1, 0, 0, 0.05])


@pytest.mark.parametrize('n', [2, 4])
def test_locations_against_loops(n, rng):
    shapes = ((3, 5), (2, 3))
    p_hat, offset = rng.random((2, 4, 2, n)), rng.standard_normal((2, 4, 3, 2, 6, 2))
    loc, cache = sampling_locations(p_hat, offset, shapes)
    for i in np.ndindex(offset.shape[:-1]):
        p, (H, W) = p_hat[i[0], i[1], i[3]], shapes[i[3]]
        unit = (1 / W, 1 / H) if n == 2 else p[2:] / (2 * 6)
        assert_allclose(loc[i], p[:2] + offset[i] * unit, rtol=1e-12, atol=1e-14)
    dp_hat, doffset = sampling_locations_backward(rng.random(loc.shape), cache)
    none, same = sampling_locations_backward(offset, cache, need_dp_hat=False)
    assert none is None
    assert same.shape == doffset.shape
    assert dp_hat.shape == p_hat.shape


@pytest.mark.parametrize('n', [2, 4])
def test_gradients_of_references_through_the_samples(n, rng):
    """The chain p̂, Δp → loc → y, as the decoder's cross-attention has it."""
    shapes = ((4, 7), (2, 3))
    value, _, _, A = arguments(rng, K=3, shapes=shapes)
    inputs = {
        'p_hat': rng.uniform(0.2, 0.8, (2, 5, 2, n)),
        'offset': rng.standard_normal((2, 5, 3, 2, 3, 2)),
    }

    def forward(p_hat, offset):
        loc, of_loc = sampling_locations(p_hat, offset, shapes)
        y, of_y = ms_deform_attn(value, shapes, loc, A)
        return y, of_loc, of_y

    y, of_loc, of_y = forward(**inputs)
    dy = rng.standard_normal(y.shape)
    _, dloc, _ = ms_deform_attn_backward(dy, of_y)
    gradients = sampling_locations_backward(dloc, of_loc)
    checks = check_gradients(
        lambda **x: forward(**x)[0], inputs, dict(zip(inputs, gradients)), dy
    )
    assert [c.verdict for c in checks] == ['ok', 'ok'], checks
