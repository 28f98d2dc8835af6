"""Kernels of dropout, AdamW and the choice: their source, on the CPU, is NumPy's."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ddetr_np import ops
from ddetr_np.backend import plain
from ddetr_np.fast.gpu_dropout import dropout_launch
from ddetr_np.fast.gpu_norm import layer_norm_backward_launch, layer_norm_launch
from ddetr_np.fast.gpu_top import top_launch
from ddetr_np.fast.gpu_update import adamw_launch

TYPES = ('float32', 'float64')
DROPPED = CHOSEN = (*TYPES, 'float16')  # what dropout takes, and the choice
SETTINGS = (1e-3, 0.9, 0.999, 1e-8, 0.05, 3, 0.7)
KEYS = [(0, 0, 0), (2**64 - 1, 9**9, 77)]
SIZES = (1, 15, 16, 17, 4100)


def state(dtype, shape=(999,)):
    """p, g, m and v."""
    rng = np.random.default_rng(5)
    p, g, m = rng.standard_normal((3, *shape)).astype(dtype)
    return p, g, m, rng.random(shape).astype(dtype)


def launches():
    """Return a launch of each kernel."""
    for dtype in DROPPED:
        yield dropout_launch(*np.ones((2, 5), dtype), 0.1, KEYS[0])
        yield top_launch(np.ones((1, 1), dtype), np.zeros((1, 1), int))
    for dtype in TYPES:
        yield adamw_launch(state(dtype), *SETTINGS)
        yield from norm_launches(*norm_arrays(1, 1, dtype))[0]


def norm_arrays(rows, C, dtype):
    """x, weight, bias and dy."""
    rng = np.random.default_rng(C)
    x, dy = rng.standard_normal((2, rows, C)).astype(dtype)
    return 3 + x, *rng.standard_normal((2, C)).astype(dtype), dy


def norm_launches(x, weight, bias, dy):
    """Return the launches of a norm, forward and backward, and what they write."""
    y, x_hat, dx = (np.full_like(x, np.nan) for _ in range(3))
    inv = np.full((len(x), 1), np.nan, x.dtype)
    forward = layer_norm_launch(x, weight, bias, y, x_hat, inv)
    backward = layer_norm_backward_launch(dy, x_hat, inv, weight, dx)
    return (forward, backward), (y, x_hat, inv, dx)


@pytest.fixture(scope='module')
def cpu(tmp_path_factory):
    """What runs launches without a GPU."""
    path = Path(__file__).parents[1] / 'fast' / 'cuda_on_cpu' / 'cpu.py'
    spec = importlib.util.spec_from_file_location('cuda_on_cpu', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.Cpu(tmp_path_factory.mktemp('kernels'), launches())
    except module.MissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize('n', SIZES)
@pytest.mark.parametrize('dtype', DROPPED)
def test_dropout_s_source(cpu, dtype, n, key):
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    # of half precision the kernel rounds once, at the end
    wide = x.astype(np.promote_types(dtype, 'float32'))
    expected = ops.dropout.dropout.plain(wide, 0.3, key)[0].astype(dtype)
    y = np.full(n, np.nan, dtype)
    cpu.run(dropout_launch(x, y, 0.3, key))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(expected))  # of zeros too


@pytest.mark.parametrize('dtype', TYPES)
def test_adamw_s_source(cpu, dtype):
    expected, got = state(dtype), state(dtype)
    ops.update.adamw_update.plain(*expected, *SETTINGS)
    cpu.run(adamw_launch(got, *SETTINGS))
    for a, b in zip(got, expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', TYPES)
def test_the_mask_of_the_host(real, dtype):
    key, x = (3, 1, 4), np.ones((7, 1001), dtype)
    with plain():
        expected, cache = ops.dropout.dropout(x, 0.1, key)
    y, _ = ops.dropout.dropout(real.put(x), 0.1, key)
    dx = ops.dropout.dropout_backward(real.put(x), cache)
    np.testing.assert_array_equal(real.fetch(y), expected)
    np.testing.assert_array_equal(real.fetch(dx), expected)


@pytest.mark.gpu
@pytest.mark.parametrize('shape', [(999,), (40, 300), (0, 3)])
@pytest.mark.parametrize('dtype', TYPES)
def test_adamw_with_the_bits_of_the_host(real, dtype, shape):
    expected, got = state(dtype, shape), real.put(state(dtype, shape))
    ops.update.adamw_update.plain(*expected, *SETTINGS)
    ops.update.adamw_update(*got, *SETTINGS)
    for a, b in zip(real.fetch(got), expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('C', [1, 31, 32, 100, 256])
@pytest.mark.parametrize('rows', [1, 4, 9])
@pytest.mark.parametrize('dtype', TYPES)
def test_layer_norm_s_source(cpu, dtype, rows, C):
    x, weight, bias, dy = norm_arrays(rows, C, dtype)
    launches, got = norm_launches(x, weight, bias, dy)
    cpu.run(*launches)
    y, cache = ops.norm.layer_norm.plain(x, weight, bias)
    dx, _, _ = ops.norm.layer_norm_backward.plain(dy, cache)
    tolerance = 1e-12 if dtype == 'float64' else 1e-5
    for a, b in zip(got, (y, cache.x_hat, cache.inv, dx), strict=True):
        scale = max(1.0, abs(b).max())  # one channel: inv is 300, and rounding stays
        np.testing.assert_allclose(a, b, 0, tolerance * scale)


def scores(n, dtype, ties=False):
    rng = np.random.default_rng(n)
    drawn = rng.standard_normal((2, n))
    drawn[1] = rng.integers(0, 3, n) if ties else drawn[1]
    if n > 20:
        drawn[0, [3, 5, 11]] = np.nan, np.inf, np.nan
    return drawn.astype(dtype)


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('S', [1, 17, 128, 300])
@pytest.mark.parametrize('dtype', CHOSEN)
def test_top_s_source(cpu, dtype, S, ties):
    """The order of the stable sort: of equals the first, NaN last; for any n."""
    given = scores(S, dtype, ties)
    for n in {1, S // 2 + 1, S}:
        places = np.full((2, n), -1)
        cpu.run(top_launch(given, places))
        np.testing.assert_array_equal(places, ops.top.top.plain(given, n))


def test_top_of_equals(cpu):
    places = np.full((1, 200), -1)
    cpu.run(top_launch(np.zeros((1, 200), 'float32'), places))
    np.testing.assert_array_equal(places[0], np.arange(200))


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', CHOSEN)
def test_top_as_on_the_host(real, dtype):
    wide = np.repeat(scores(9000, dtype, ties=True), 2, axis=1)
    expected = ops.top.top.plain(wide[:, ::2], 300)
    got = ops.top.top(real.put(wide)[:, ::2], 300)
    np.testing.assert_array_equal(real.fetch(got), expected)
