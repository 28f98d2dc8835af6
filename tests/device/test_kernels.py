"""Kernels of dropout and AdamW: their source, run on the CPU, has NumPy's bits."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ddetr_np import ops
from ddetr_np.backend import plain
from ddetr_np.fast import cuda
from ddetr_np.fast.gpu_dropout import dropout_launch
from ddetr_np.fast.gpu_update import adamw_launch

TYPES = ('float32', 'float64')
DROPPED = (*TYPES, 'float16')  # types that dropout takes
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
    for dtype in TYPES:
        yield adamw_launch(state(dtype), *SETTINGS)


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


@pytest.mark.parametrize('arch', [75, 80, 86, 89, 90])
def test_they_compile(arch):
    """By NVRTC, which needs no GPU."""
    nvrtc = pytest.importorskip('cupy', exc_type=ImportError).cuda.nvrtc
    pathfinder = pytest.importorskip('cuda.pathfinder')
    headers = pathfinder.find_nvidia_header_directory('cudart')
    if headers is None:
        pytest.skip("needs CUDA's headers: pip install nvidia-cuda-runtime")
    options = [*cuda.OPTIONS, f'-arch=sm_{arch}', f'-I{headers}']
    try:
        nvrtc.getVersion()
    except (RuntimeError, OSError) as error:
        pytest.skip(f'needs NVRTC: {error}')
    for launch in launches():
        source = cuda.source(launch.source)
        program = nvrtc.createProgram(source, launch.source, [], [])
        nvrtc.addNameExpression(program, launch.kernel)
        nvrtc.compileProgram(program, options)
        assert nvrtc.getCUBIN(program)
