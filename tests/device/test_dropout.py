"""The mask that a GPU draws is the host's: its kernel's source is run on the CPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import ddetr_np
from ddetr_np import ops
from ddetr_np.backend import plain
from ddetr_np.fast import gpu_dropout

SOURCE = Path(ddetr_np.__file__).parent / 'fast' / 'gpu_dropout.cu'
SHIM = """
#define __device__ static inline
#define __global__ static
struct Dim { unsigned x; };
static Dim blockIdx, blockDim, threadIdx;
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
"""
DRIVER = """
#define RUN(name, T) extern "C" void name(const T* x, T* y, long long n, u64 key0, \\
        u64 key1, int threshold, T scale, unsigned blocks, unsigned threads) { \\
    blockDim.x = threads; \\
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) \\
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) \\
            dropout<T>(x, y, n, key0, key1, threshold, scale); \\
}
RUN(dropout_float, float)
RUN(dropout_double, double)
"""


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    compiler = shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
        pytest.skip('needs a C++ compiler')
    folder = tmp_path_factory.mktemp('dropout')
    source = folder / 'dropout.cpp'
    source.write_text(SHIM + SOURCE.read_text() + DRIVER)
    built = folder / 'dropout.so'
    command = [compiler, '-O1', '-shared', '-fPIC', '-ffp-contract=off']
    subprocess.run([*command, '-o', built, source], check=True)
    return ctypes.CDLL(str(built))


@pytest.mark.parametrize(('seed', 'step', 'stream'), [(0, 0, 0), (2**64 - 1, 9**9, 77)])
@pytest.mark.parametrize('n', [1, 15, 16, 17, 4100])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_the_kernel_s_source(library, dtype, n, seed, step, stream):
    p = 0.3
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    expected, _ = ops.dropout.dropout.plain(x, p, (seed, step, stream))
    real = ctypes.c_float if dtype == 'float32' else ctypes.c_double
    y = np.full(n, np.nan, dtype)
    run = getattr(library, f'dropout_{"float" if dtype == "float32" else "double"}')
    run(
        x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_longlong(n), ctypes.c_uint64(seed),
        ctypes.c_uint64(step << 16 | stream), ops.dropout.threshold(p),
        real(ops.dropout.scale(p)), -(-n // 4 // 256) + 1, 256,
    )  # fmt: skip
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(expected))  # of zeros too


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_the_mask_of_the_host(real, dtype):
    key, x = (3, 1, 4), np.ones((7, 1001), dtype)
    with plain():
        expected, cache = ops.dropout.dropout(x, 0.1, key)
    y, _ = ops.dropout.dropout(real.put(x), 0.1, key)
    dx = ops.dropout.dropout_backward(real.put(x), cache)
    np.testing.assert_array_equal(real.fetch(y), expected)
    np.testing.assert_array_equal(real.fetch(dx), expected)


@pytest.mark.parametrize('arch', [75, 80, 86, 89, 90])
def test_it_compiles(arch):
    """By NVRTC, which needs no GPU."""
    nvrtc = pytest.importorskip('cupy', exc_type=ImportError).cuda.nvrtc
    try:
        nvrtc.getVersion()
    except (RuntimeError, OSError) as error:
        pytest.skip(f'needs NVRTC: {error}')
    program = nvrtc.createProgram(SOURCE.read_text(), SOURCE.name, [], [])
    for name in gpu_dropout.NAMES.values():
        nvrtc.addNameExpression(program, name)
    nvrtc.compileProgram(program, ['-std=c++17', f'-arch=sm_{arch}'])
    assert nvrtc.getCUBIN(program)
