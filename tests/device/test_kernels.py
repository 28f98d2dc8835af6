"""Kernels of dropout and AdamW: their source, run on the CPU, has NumPy's bits."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import ddetr_np
from ddetr_np import ops
from ddetr_np.backend import plain
from ddetr_np.fast import gpu_dropout, gpu_update

FOLDER = Path(ddetr_np.__file__).parent / 'fast'
SHIM = """
#include <cmath>
using std::sqrt;
#define __device__ static inline
#define __global__ static
struct Dim { unsigned x; };
static Dim blockIdx, blockDim, threadIdx;
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
template <typename... Expected, typename... Given>
static void launch(void (*kernel)(Expected...), long long n, Given... given) {
    blockDim.x = 64;
    for (blockIdx.x = 0; blockIdx.x * 64LL < n; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < 64; ++threadIdx.x) kernel(given...);
}
"""
CALLS = """
#define CALLS(T) \\
extern "C" void dropout_##T(const T* x, T* y, long long n, u64 key0, u64 key1, \\
        int threshold, T scale) { \\
    launch(dropout<T>, (n + 3) / 4, x, y, n, key0, key1, threshold, scale); \\
} \\
extern "C" void adamw_##T(T* p, const T* g, T* m, T* v, long long n, T beta1, \\
        T beta2, T to_m, T to_v, T eps, T rate, T kept) { \\
    launch(adamw<T>, n, p, g, m, v, n, beta1, beta2, to_m, to_v, eps, rate, kept); \\
}
CALLS(float)
CALLS(double)
"""
REAL = {'float32': ('float', ctypes.c_float), 'float64': ('double', ctypes.c_double)}


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    """Both kernels, compiled for the CPU."""
    compiler = shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
        pytest.skip('needs a C++ compiler')
    source = tmp_path_factory.mktemp('kernels') / 'kernels.cpp'
    kernels = [(FOLDER / f'gpu_{n}.cu').read_text() for n in ('dropout', 'update')]
    source.write_text('\n'.join([SHIM, *kernels, CALLS]))
    built = source.with_suffix('.so')
    # as on the GPU, no multiplication is fused with an addition
    options = '-std=c++17', '-O1', '-shared', '-fPIC', '-ffp-contract=off'
    subprocess.run([compiler, *options, '-o', built, source], check=True)
    return ctypes.CDLL(str(built))


def pointer(a):
    return a.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize(('seed', 'step', 'stream'), [(0, 0, 0), (2**64 - 1, 9**9, 77)])
@pytest.mark.parametrize('n', [1, 15, 16, 17, 4100])
@pytest.mark.parametrize('dtype', REAL)
def test_dropout_s_source(library, dtype, n, seed, step, stream):
    p = 0.3
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    expected, _ = ops.dropout.dropout.plain(x, p, (seed, step, stream))
    name, real = REAL[dtype]
    y = np.full(n, np.nan, dtype)
    getattr(library, f'dropout_{name}')(
        pointer(x), pointer(y), ctypes.c_longlong(n), ctypes.c_uint64(seed),
        ctypes.c_uint64(step << 16 | stream), ops.dropout.threshold(p),
        real(ops.dropout.scale(p)),
    )  # fmt: skip
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(expected))  # of zeros too


def state(dtype, shape=(999,)):
    """p, g, m and v."""
    rng = np.random.default_rng(5)
    p, g, m = rng.standard_normal((3, *shape)).astype(dtype)
    return p, g, m, rng.random(shape).astype(dtype)


SETTINGS = (1e-3, 0.9, 0.999, 1e-8, 0.05, 3, 0.7)


@pytest.mark.parametrize('dtype', REAL)
def test_adamw_s_source(library, dtype):
    expected, got = state(dtype), state(dtype)
    ops.update.adamw_update.plain(*expected, *SETTINGS)
    name, real = REAL[dtype]
    numbers = map(real, gpu_update.constants(*SETTINGS))
    getattr(library, f'adamw_{name}')(
        *map(pointer, got), ctypes.c_longlong(got[0].size), *numbers
    )
    for a, b in zip(got, expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', REAL)
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
@pytest.mark.parametrize('dtype', REAL)
def test_adamw_with_the_bits_of_the_host(real, dtype, shape):
    expected, got = state(dtype, shape), real.put(state(dtype, shape))
    ops.update.adamw_update.plain(*expected, *SETTINGS)
    ops.update.adamw_update(*got, *SETTINGS)
    for a, b in zip(real.fetch(got), expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('arch', [75, 80, 86, 89, 90])
@pytest.mark.parametrize('kernel', [gpu_dropout, gpu_update], ids=lambda k: k.__name__)
def test_it_compiles(kernel, arch):
    """By NVRTC, which needs no GPU."""
    nvrtc = pytest.importorskip('cupy', exc_type=ImportError).cuda.nvrtc
    try:
        nvrtc.getVersion()
    except (RuntimeError, OSError) as error:
        pytest.skip(f'needs NVRTC: {error}')
    source = Path(kernel.__file__).with_suffix('.cu')
    program = nvrtc.createProgram(source.read_text(), source.name, [], [])
    for name in kernel.NAMES.values():
        nvrtc.addNameExpression(program, name)
    nvrtc.compileProgram(program, ['-std=c++17', '-fmad=false', f'-arch=sm_{arch}'])
    assert nvrtc.getCUBIN(program)
