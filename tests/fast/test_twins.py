"""Every twin against the plain operation it stands in for, at the table's cases."""

import numpy as np
import pytest

from ddetr_np import backend, ops, threads
from ddetr_np.fast import corner_reads, sparse, winograd
from ddetr_np.fast import linear as attention_twin
from ddetr_np.fast import ms_deform_attn as sampling
from ddetr_np.fast.corner_reads import query_order
from ddetr_np.fast.rows import row_tiles
from ddetr_np.testing.operations import operation, run_backward, run_forward
from ddetr_np.testing.table import CASES, cases


def flat(result):
    """Yield every array in a result, whatever it is nested in."""
    if isinstance(result, np.ndarray):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from flat(part)


def twinned():
    keys = {key for key, library in backend.twins() if library == 'numpy'}
    return [n for n in CASES if keys & {n, f'{n}_backward'}]


def near(a, b, dtype):
    tol = 2e-5 if dtype == 'float32' else 1e-12
    if b.dtype.kind != 'f':
        np.testing.assert_array_equal(a, b)
    scale = max(1.0, np.abs(b).max(initial=0))
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * scale)


def cast(case, dtype, strided=False):
    def convert(a):
        if not isinstance(a, np.ndarray) or a.dtype.kind != 'f':
            return a
        if strided and a.ndim:
            a = np.repeat(a, 2, -1)[..., ::2]
            return np.moveaxis(np.moveaxis(a, 0, -1).astype(dtype), -1, 0)
        return a.astype(dtype)

    inputs = {k: convert(v) for k, v in case.inputs.items()}
    settings = {k: convert(v) for k, v in case.settings.items()}
    return case._replace(inputs=inputs, settings=settings)


@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('name', twinned())
def test_twin_is_the_plain_operation(name, dtype, strided, rng):
    forward, backward = operation(name)
    for case in cases(name):
        case = cast(case, dtype, strided)
        before = [a.copy() for a in flat(tuple(case.inputs.values()))]
        with backend.plain():
            y, cache = run_forward(forward, case)
        y2, cache2 = run_forward(forward, case)
        assert y2.dtype == y.dtype
        assert y2.shape == y.shape
        near(y2, y, dtype)
        dy = rng.standard_normal(y.shape).astype(dtype)
        kept = [a.copy() for a in flat(cache)], [a.copy() for a in flat(cache2)]
        with backend.plain():  # caches crossed: each backward takes the other's
            expected = run_backward(backward, case, dy, cache)
            crossed = run_backward(backward, case, dy, cache2)
        got = run_backward(backward, case, dy, cache)
        own = run_backward(backward, case, dy, cache2)
        for k, g in expected.items():
            for other in (crossed, got, own):
                assert other[k].dtype == g.dtype
                near(other[k], g, dtype)
        for old, new in zip(before, flat(tuple(case.inputs.values())), strict=True):
            np.testing.assert_array_equal(old, new)
        for old, now in zip(kept, (cache, cache2), strict=True):
            for a, b in zip(old, flat(now), strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_is_hot_has_a_twin():
    keys = {key for key, library in backend.twins() if library == 'numpy'}
    for name in (
        'activation.relu',
        'activation.softmax',
        'add_norm.add_norm',
        'attention.attention',
        'conv.conv2d',
        'conv.conv_norm_relu',
        'dropout.dropout',
        'feed_forward.feed_forward',
        'linear.linear',
        'losses.sigmoid_focal_loss',
        'ms_deform_attn.ms_deform_attn',
        'norm.batch_norm',
        'norm.group_norm',
        'norm.layer_norm',
    ):
        assert {name, f'{name}_backward'} <= keys
        assert name in CASES


def test_plain_switches_the_twins_off(monkeypatch):
    calls = []

    def spy(x):
        calls.append(x)
        return x, x

    monkeypatch.setitem(backend.twins(), ('activation.relu', 'numpy'), spy)
    ops.activation.relu(np.ones(3))
    with backend.plain():
        ops.activation.relu(np.ones(3))
    assert len(calls) == 1


def run_both(function):
    with backend.plain():
        expected = list(flat(function()))
    return list(flat(function())), expected


def big_cases(rng):
    """Calls large enough to be cut into several tiles: (name, function)."""

    def array(*shape):
        return rng.standard_normal(shape).astype('float32')

    x, dy = array(1, 5000, 64), array(1, 5000, 96)
    W, b = array(96, 64), array(96)
    yield 'linear', lambda: ops.linear.linear(x, W, b)
    yield 'linear_backward', lambda: ops.linear.linear_backward(dy, (x, W))
    w64, b64 = array(64), array(64)

    def layer_norm():
        y, cache = ops.norm.layer_norm(x, w64, b64)
        return y, cache, ops.norm.layer_norm_backward(x, cache)

    yield 'layer_norm', layer_norm
    other = array(1, 5000, 64)
    for settings in ((), (0.3, (1, 2, 3))):

        def add_norm(settings=settings):
            y, cache = ops.add_norm.add_norm(x, other, w64, b64, *settings)
            return y, cache, ops.add_norm.add_norm_backward(other, cache)

        yield f'add_norm {settings}', add_norm
    yield 'add', lambda: ops.add.add(x, other)
    maps = array(2, 50, 67, 64)

    def group_norm():
        y, cache = ops.norm.group_norm(maps, w64, b64, 32)
        return y, cache, ops.norm.group_norm_backward(maps, cache)

    yield 'group_norm', group_norm
    s = array(5000, 8, 16) * 5

    def softmax():
        A, _ = ops.activation.softmax(s)
        return A, ops.activation.softmax_backward(s / 5, A)

    yield 'softmax', softmax
    yield 'softmax, wide', lambda: ops.activation.softmax(s * 100)
    yield 'relu', lambda: ops.activation.relu_backward(x, ops.activation.relu(x)[1])
    yield 'max_pool', lambda: ops.pool.max_pool(np.maximum(maps, 0))
    dmaps = array(2, 50, 67, 64)  # along maps the gradient would vanish

    def batch_norm():
        y, cache, mean, var = ops.norm.batch_norm(maps, w64, b64)
        return y, cache, mean, var, ops.norm.batch_norm_backward(dmaps, cache)

    yield 'batch_norm', batch_norm
    # several small pictures share a tile, one of the kernels is cut into blocks
    for name, N, H, W, I, O in (
        ('small maps', 5, 9, 7, 64, 48),
        ('a large kernel', 2, 5, 4, 300, 260),
        ('single pixels', 3, 1, 1, 64, 48),
    ):
        for k in (1, 3):
            few, K = array(N, H, W, I), array(k, k, I, O)

            def kernel(few=few, K=K, k=k):
                y, cache = ops.conv.conv2d(few, K, None, 1, k // 2)
                return y, ops.conv.conv2d_backward(y, cache)

            yield f'{k}×{k}, {name}', kernel
    for k, stride, dilation in ((1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)):
        K, p = array(k, k, 64, 48), k // 2 * dilation

        def conv(K=K, p=p, stride=stride, dilation=dilation):
            geometry = (stride, p, dilation)
            shape = ops.conv.conv2d(maps, K, None, *geometry)[0].shape
            r = np.cos(np.arange(np.prod(shape), dtype='float32')).reshape(shape)
            y, cache = ops.conv.conv_norm_relu(
                maps, K, b64[:48], w64[:48], r, True, *geometry
            )
            # the ReLU's kink is the plain output's for both
            return y, ops.conv.conv_norm_relu_backward(r, cache)

        yield f'conv {k}×{k}, stride {stride}, dilation {dilation}', conv
    q, k, v = array(2, 300, 8, 32), array(2, 310, 8, 32), array(2, 310, 8, 32)

    # of 300 · 310 weights a mask is not drawn head by head, of 300 · 304 it is
    for keys, settings in ((310, ()), (310, (0.1, (1, 2, 3))), (304, (0.1, (1, 2, 3)))):

        def attention(keys=keys, settings=settings):
            y, cache = ops.attention.attention(q, k[:, :keys], v[:, :keys], *settings)
            return y, ops.attention.attention_backward(y, cache)

        yield f'attention, {keys} keys, dropout {settings}', attention
    two = array(96, 64), array(96), array(64, 96), w64

    def feed_forward():
        y, cache = ops.feed_forward.feed_forward(x, *two, 0.3, (1, 2, 3))
        return y, ops.feed_forward.feed_forward_backward(other, cache)

    yield 'feed_forward with dropout', feed_forward
    # more than a tile, with queries of their own and with one for each pixel
    shapes = ((20, 30), (10, 15), (1, 4), (1, 1)), ((60, 70), (30, 35), (8, 9), (1, 7))
    for levels, N, Nq, M in ((shapes[0], 2, 4200, 8), (shapes[1], 2, 5329, 2)):
        value = array(N, sum(H * W for H, W in levels), M, 32)
        loc = (rng.random((N, Nq, M, 4, 4, 2)) * 1.6 - 0.3).astype('float32')
        A = rng.random((N, Nq, M, 4, 4)).astype('float32')

        def core(arguments=(value, levels, loc, A)):
            y, cache = ops.ms_deform_attn.ms_deform_attn(*arguments)
            return y, ops.ms_deform_attn.ms_deform_attn_backward(y, cache)

        yield f'ms_deform_attn, {Nq} queries', core


@pytest.fixture(params=[16, 1 << 30], ids=['Winograd', 'direct'])
def winograd_from(request, monkeypatch):
    """Both ways of a 3×3 convolution at any number of channels."""
    monkeypatch.setattr(winograd, 'LEAST', request.param)
    monkeypatch.setattr(winograd, 'LEAST_PIXELS', 0)


@pytest.fixture
def transformed_kernels(monkeypatch):
    """The channels (I, O) of each kernel, or part of one, that Winograd's way took."""
    channels = []
    transformed = winograd.transformed

    def spy(W, *args):
        channels.append(W.shape[2:])
        return transformed(W, *args)

    monkeypatch.setattr(winograd, 'transformed', spy)
    return channels


@pytest.mark.usefixtures('winograd_from')
def test_many_tiles_agree_with_the_plain_operations(rng):
    for name, function in big_cases(rng):
        if name.startswith('conv'):
            continue  # its kink falls differently: the next test
        for a, b in zip(*run_both(function), strict=True):
            scale = np.abs(b).max()
            assert np.abs(a - b).max() <= 2e-5 * scale, name


@pytest.mark.usefixtures('winograd_from')
def test_convolutions_in_many_tiles(rng):
    for name, function in big_cases(rng):
        if name.startswith('conv'):
            got, expected = run_both(function)
            for a, b in zip(got, expected, strict=True):
                # a value next to the ReLU's kink may fall on its other side
                off = np.abs(a - b) > 1e-5 * np.abs(b).max()
                assert off.mean() < 1e-3, name
            assert np.abs(got[0] - expected[0]).max() < 1e-5 * expected[0].max(), name


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [('float32', 1e-5), ('float64', 1e-12)]
)
def test_a_small_maps_kernel_is_cut_by_outputs_with_their_scales(
    dtype, tolerance, transformed_kernels, rng
):
    x, W = rng.standard_normal((5, 11, 14, 72)), rng.standard_normal((3, 3, 72, 136))
    scale, shift = rng.random(136) + 0.5, rng.standard_normal(136)
    arrays = [a.astype(dtype) for a in (x, W / 25, scale, shift)]
    dy = rng.standard_normal((5, 11, 14, 136)).astype(dtype)

    def conv():
        y, cache = ops.conv.conv_norm_relu(*arrays, None, False, 1, 1)
        return y, ops.conv.conv_norm_relu_backward(dy, cache)

    for a, b in zip(*run_both(conv), strict=True):
        if b is not None:
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
    # of y, then of dx
    assert set(transformed_kernels) == {(72, 68), (64, 136), (8, 136)}


def test_winograd_is_for_many_channels_and_pixels(transformed_kernels, rng):
    # the last but one map is small beside its kernel, the last too small
    for C, H in ((32, 33), (64, 33), (256, 33), (256, 7)):
        x = rng.standard_normal((1, H, 34, C)).astype('float32')
        W = rng.standard_normal((3, 3, C, C)).astype('float32')
        ops.conv.conv2d(x, W, None, 1, 1)
    assert transformed_kernels == [(64, 64), (256, 128), (256, 128)]


@pytest.mark.usefixtures('winograd_from')
@pytest.mark.parametrize('n', [2, 3])
def test_the_same_bits_with_any_number_of_threads(n, rng):
    for name, function in big_cases(rng):
        with threads.limit(1):
            one = list(flat(function()))
        with threads.limit(n):
            many = list(flat(function()))
        for a, b in zip(one, many, strict=True):
            assert a.tobytes() == b.tobytes(), name


def test_a_quarter_of_the_pixels_in_order_is_a_quarter_of_the_picture():
    shapes = ((16, 24), (8, 12))
    place = np.concatenate([(np.indices(s).reshape(2, -1).T + 0.5) / s for s in shapes])
    order = query_order(shapes, len(place))
    quarters = (place[order] >= 0.5) @ (2, 1)
    np.testing.assert_array_equal(quarters, np.repeat(np.arange(4), len(place) // 4))
    np.testing.assert_array_equal(np.sort(order), np.arange(len(place)))


@pytest.mark.parametrize('shapes', [((1, 7),), ((40, 3), (1, 1)), ((5, 9000),)])
def test_every_pixel_is_in_the_order_once(shapes):
    S = sum(H * W for H, W in shapes)
    np.testing.assert_array_equal(np.sort(query_order(shapes, S)), np.arange(S))
    np.testing.assert_array_equal(query_order(shapes, S + 1), np.arange(S + 1))


@pytest.fixture(params=[False, True], ids=['bordered copies', 'in place'])
def few(request, monkeypatch):
    """Both ways of reading values, whatever the number of queries."""
    monkeypatch.setattr(sampling, 'few_reads', lambda *sizes: request.param)


@pytest.mark.usefixtures('few')
@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_both_ways_of_reading_values(dtype, strided, rng):
    name = 'ms_deform_attn.ms_deform_attn'
    test_twin_is_the_plain_operation(name, dtype, strided, rng)


@pytest.mark.usefixtures('few')
def test_points_far_outside_read_nothing(rng):
    shapes, M = ((2, 3), (1, 1)), 2
    value = rng.standard_normal((1, 7, M, 3)) + 100
    loc = np.array([-5.0, -1e30, 1.5, 1e30, np.inf, -np.inf, 0.1, 0.5])
    loc = np.stack(np.meshgrid(loc, loc), -1).reshape(1, -1, 1, 1, 1, 2)
    loc = np.broadcast_to(loc, (1, 64, M, 2, 1, 2)).copy()
    A, dy = rng.random((1, 64, M, 2, 1)), rng.standard_normal((1, 64, M, 3))

    def core():
        y, cache = ops.ms_deform_attn.ms_deform_attn(value, shapes, loc, A)
        return y, ops.ms_deform_attn.ms_deform_attn_backward(dy, cache)

    found, expected = run_both(core)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-9, 1e-12)
    assert (found[0] == 0).any()
    loc[0, 9, 0] = np.nan
    y, _ = ops.ms_deform_attn.ms_deform_attn(value, shapes, loc, A)
    np.testing.assert_array_equal(np.isnan(y).all(-1), np.isnan(loc).any((3, 4, 5)))


def test_few_queries_read_in_place(monkeypatch, rng):
    called = []
    places = sampling.Places
    monkeypatch.setattr(
        sampling, 'Places', lambda *a: called.append(a[2]) or places(*a)
    )
    value, shapes = rng.standard_normal((1, 200, 3, 4)), ((10, 20),)
    for Nq in (50, 51):
        loc, A = rng.random((1, Nq, 3, 1, 4, 2)), rng.random((1, Nq, 3, 1, 4))
        ops.ms_deform_attn.ms_deform_attn(value, shapes, loc, A)
    assert called == [3]  # 50 · 4 points, no more than there are tokens


@pytest.mark.usefixtures('few')
@pytest.mark.parametrize('Nq', [29, 77])
@pytest.mark.parametrize(('points', 'product', 'read'), [(1, 1, 1), (84, 24, 350)])
def test_sampling_in_tiles_of_any_size(points, product, read, Nq, monkeypatch, rng):
    monkeypatch.setattr(sampling, 'POINTS', points)
    monkeypatch.setattr(corner_reads, 'PRODUCT', product)
    monkeypatch.setattr(sampling, 'READ', read)
    N, M, L, K, shapes = 2, 3, 2, 3, ((7, 9), (2, 7))  # 77 pixels
    value = rng.standard_normal((N, 77, M, 5))
    loc = rng.random((N, Nq, M, L, K, 2)) * 1.6 - 0.3
    A, dy = rng.random((N, Nq, M, L, K)), rng.standard_normal((N, Nq, M, 5))

    def core():
        y, cache = ops.ms_deform_attn.ms_deform_attn(value, shapes, loc, A)
        return y, ops.ms_deform_attn.ms_deform_attn_backward(dy, cache)

    for a, b in zip(*run_both(core), strict=True):
        near(a, b, 'float64')


def test_sampling_without_the_private_routines_of_scipy(monkeypatch, rng):
    function = dict(big_cases(rng))['ms_deform_attn, 5329 queries']
    expected = list(flat(function()))
    monkeypatch.setattr(sparse, 'csr_matvecs', None)
    monkeypatch.setattr(sparse, 'csc_matvecs', None)
    for a, b in zip(flat(function()), expected, strict=True):
        assert np.abs(a - b).max() <= 2e-6 * np.abs(b).max()


def test_arrays_that_a_twin_does_not_take_go_to_the_plain_operation():
    x, W, b = (np.ones(shape, 'float16') for shape in ((2, 3), (4, 3), 4))
    y, _ = ops.linear.linear(x, W, b)
    np.testing.assert_array_equal(y, 4)
    y, _ = ops.linear.linear(x.astype('float32'), W.astype('float64'), b)
    assert y.dtype == np.float64


def test_empty_arrays():
    value, A = np.ones((1, 6, 2, 3)), np.ones((1, 0, 2, 1, 4))
    y, cache = ops.ms_deform_attn.ms_deform_attn(
        value, ((2, 3),), np.ones((1, 0, 2, 1, 4, 2)), A
    )
    assert y.shape == (1, 0, 2, 3)
    dvalue, dloc, dA = ops.ms_deform_attn.ms_deform_attn_backward(y, cache)
    np.testing.assert_array_equal(dvalue, 0)
    assert dloc.shape == (1, 0, 2, 1, 4, 2)
    assert dA.shape == A.shape
    assert ops.linear.linear(np.ones((0, 3)), np.ones((4, 3)), np.ones(4))[0].shape == (
        0,
        4,
    )
    assert ops.activation.relu(np.ones((0, 3)))[0].shape == (0, 3)


@pytest.mark.parametrize('n', [1, 15, 16, 300_001, 600_000])
def test_dropout_draws_the_same_mask_in_tiles(n):
    x = np.linspace(1, 2, n)
    dropout = ops.dropout.dropout
    y, cache = dropout(x, 0.1, (3, 1 << 40, 9))
    with backend.plain():
        expected, _ = dropout(x, 0.1, (3, 1 << 40, 9))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(ops.dropout.dropout_backward(x, cache), expected)


@pytest.mark.parametrize('C', [3, 20, 64])
def test_rows_of_any_width_meet_the_same_mask(C, rng):
    """Tiles begin where the generator can."""
    x, y = rng.standard_normal((2, 1, 400_000 // C, C))
    one, zero = np.ones(C), np.zeros(C)
    z, cache = ops.add_norm.add_norm(x, y, one, zero, 0.5, (3, 1, 4))
    assert len(row_tiles(x.shape[1], C, 16)) > 1
    with backend.plain():
        expected, _ = ops.add_norm.add_norm(x, y, one, zero, 0.5, (3, 1, 4))
        wanted = ops.add_norm.add_norm_backward(y, cache)
    np.testing.assert_allclose(z, expected, 0, 1e-12)
    for a, b in zip(ops.add_norm.add_norm_backward(y, cache), wanted, strict=True):
        np.testing.assert_allclose(a, b, 0, 1e-12 * np.abs(b).max())


@pytest.mark.parametrize('view', ['whole', 'steps', 'broadcast', 'other type'])
def test_sums_leave_their_terms_alone(view, rng):
    a = rng.standard_normal((2, 700, 512)).astype('float32')
    b = {
        'whole': a + 1,
        'steps': rng.standard_normal((2, 700, 1024)).astype('float32')[..., ::2],
        'broadcast': a[:, :1],
        'other type': a.astype('float64'),
    }[view]
    before = a.copy(), b.copy()
    y = ops.add.add(a, b)
    assert y.dtype == (a[:0] + b[:0]).dtype
    np.testing.assert_array_equal(y, before[0] + before[1])
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])
    assert not np.shares_memory(y, a)
    assert not np.shares_memory(y, b)


def test_focal_loss_with_one_gradient_for_all(rng):
    loss = ops.losses
    x, target = rng.standard_normal((3, 20_000)), rng.random((3, 20_000)) < 0.1
    _, cache = loss.sigmoid_focal_loss(x, target)
    dx = loss.sigmoid_focal_loss_backward(0.5, cache)
    with backend.plain():
        expected = loss.sigmoid_focal_loss_backward(0.5, cache)
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize('shape', [(2, 12, 3, 8), (1, 5, 2, 4)])
def test_attention_with_dropout_and_its_caches_crossed(shape, rng, monkeypatch):
    q, k, v, dy = (rng.standard_normal(shape) for _ in range(4))
    k, v = (np.concatenate([a, a[:, ::-1]], 1)[:, : 4 * shape[1] // 3] for a in (k, v))
    dropped = 0.4, (3, 1, 4)
    drawn = []
    real = attention_twin.drop_rows
    monkeypatch.setattr(
        attention_twin, 'drop_rows', lambda *a: drawn.append(1) or real(*a)
    )
    with backend.plain():
        y, cache = ops.attention.attention(q, k, v, *dropped)
        expected = ops.attention.attention_backward(dy, cache)
    y2, cache2 = ops.attention.attention(q, k, v, *dropped)
    np.testing.assert_allclose(y2, y, 1e-12)
    assert bool(drawn) == (shape[1] * k.shape[1] % 16 == 0)
    for c in (cache, cache2):
        for a, b in zip(ops.attention.attention_backward(dy, c), expected, strict=True):
            np.testing.assert_allclose(a, b, 1e-10, 1e-14)
    with backend.plain():
        crossed = ops.attention.attention_backward(dy, cache2)
    for a, b in zip(crossed, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-10, 1e-14)
