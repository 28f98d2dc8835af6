"""What cuBLAS is asked for while a graph is recorded, done by its double on the CPU."""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.fast import gpu_product
from ddetr_np.fast.gpu_product import OP_N, OP_T, gemm_call, gpu_matmul, run_gemm
from ddetr_np.ops.product import matmul

TOLERANCE = {'float16': 2e-3, 'float32': 1e-5, 'float64': 1e-13}
T = (0, 1, 3, 2)


def _load():
    path = Path(__file__).parents[1] / 'device' / 'cublas_double.py'
    spec = importlib.util.spec_from_file_location('cublas_double', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


double = _load()


@pytest.fixture
def cublas():
    library = double.Cublas()
    yield gpu_product._bind(library)
    assert library.errors == []


@pytest.fixture
def recording(cublas):
    """Products of NumPy's arrays go to the double."""
    token = gpu_product._record.set(lambda call: run_gemm(cublas, double.HANDLE, call))
    yield cublas
    gpu_product._record.reset(token)


def heads(rng, N=2, n=5, M=3, Cv=4):
    """(N, M, n, Cv), as `ops.attention` has it: a view."""
    return rng.standard_normal((N, n, M, Cv)).transpose(0, 2, 1, 3)


PAIRS = {
    'two matrices': lambda a: (a(3, 5), a(5, 4)),
    'the left transposed': lambda a: (a(5, 3).T, a(5, 4)),
    'the right transposed': lambda a: (a(3, 5), a(4, 5).T),
    'both transposed': lambda a: (a(5, 3).T, a(4, 5).T),
    'columns of the left': lambda a: (a(3, 9)[:, 2:7], a(5, 4)),
    'columns of the right': lambda a: (a(3, 5), a(5, 9)[:, 3:7]),
    'rows of a transpose': lambda a: (a(3, 5), a(9, 5)[2:6].T),
    'every second row': lambda a: (a(6, 5)[::2], a(10, 4)[::2]),
    'every second column': lambda a: (a(3, 10)[:, ::2], a(5, 8)[:, ::2]),
    'backwards': lambda a: (a(3, 5)[::-1], a(5, 4)[:, ::-1]),
    'a repeated row': lambda a: (np.broadcast_to(a(1, 5), (3, 5)), a(5, 4)),
    'a repeated column': lambda a: (a(3, 5), np.broadcast_to(a(5, 1), (5, 4))),
    'one row': lambda a: (a(1, 5), a(5, 4)),
    'one row of a larger': lambda a: (a(6, 10)[2:3, ::2], a(5, 4)),
    'one column': lambda a: (a(3, 5), a(5, 1)),
    'one column of a larger': lambda a: (a(3, 5), a(5, 7)[:, 2:3]),
    'one in between': lambda a: (a(3, 1), a(1, 4)),
    'one in between, of larger': lambda a: (a(3, 6)[:, 2:3], a(4, 6)[:, 1:2].T),
    'numbers': lambda a: (a(1, 1), a(1, 1)),
    'a stack and a matrix': lambda a: (a(2, 3, 5), a(5, 4)),
    'a matrix and a stack': lambda a: (a(3, 5), a(2, 5, 4)),
    'a matrix and a stack of transposes': lambda a: (
        a(3, 5), a(2, 4, 5).transpose(0, 2, 1)
    ),
    'stacks': lambda a: (a(2, 6, 3, 5), a(2, 6, 5, 4)),
    'a stack over a stack of stacks': lambda a: (a(6, 3, 5), a(2, 6, 5, 4)),
    'one for many': lambda a: (a(2, 1, 3, 5), a(1, 6, 5, 4)),
    'every second of a stack': lambda a: (a(8, 3, 5)[::2], a(4, 5, 4)),
    'a stack backwards': lambda a: (a(4, 3, 5)[::-1], a(4, 5, 4)),
    'a repeated stack': lambda a: (np.broadcast_to(a(3, 5), (4, 3, 5)), a(4, 5, 4)),
}  # fmt: skip


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', PAIRS)
def test_products(cublas, rng, name, dtype):
    def array(*shape):
        return rng.standard_normal(shape).astype(dtype)

    a, b = PAIRS[name](array)
    expected = a.astype('float64') @ b.astype('float64')
    out = np.full(expected.shape, np.nan, dtype)
    run_gemm(cublas, double.HANDLE, gemm_call(a, b, out))
    assert_allclose(out, expected, TOLERANCE[dtype], 3 * TOLERANCE[dtype])


@pytest.mark.parametrize('N', [1, 2])
@pytest.mark.parametrize('n', [1, 5])
def test_attention_s_products(cublas, rng, N, n):
    """Views of heads; of one picture they are not copied."""
    q, k, v = heads(rng, N, n), heads(rng, N, 6), heads(rng, N, 6)
    scores = np.full((N, 3, n, 6), np.nan)
    call = gemm_call(q, k.transpose(T), scores)
    run_gemm(cublas, double.HANDLE, call)
    assert_allclose(scores, q @ k.transpose(T), 1e-12, 1e-12)
    assert call.count == 3 * N
    if N == 1:
        assert call.A.base is k.base
        assert call.B.base is q.base
        assert call.transa == OP_T
    y = np.full((N, 3, n, 4), np.nan)
    run_gemm(cublas, double.HANDLE, gemm_call(scores, v, y))
    assert_allclose(y, scores @ v, 1e-12, 1e-12)


def test_by_hand():
    """x Wᵀ of a linear map, in its own words: the weights are the left factor."""
    x, W, y = np.ones((7, 9))[:, 1:6], np.ones((4, 5)), np.empty((7, 8))[:, :4]
    call = gemm_call(x, W.T, y)
    assert call[:5] == (OP_T, OP_N, 4, 7, 5)
    assert (call.lda, call.ldb, call.ldc, call.count) == (5, 9, 8, 1)
    assert call.A.base is W
    assert call.B is x
    assert call.C is y


@pytest.mark.parametrize('name', ['whole', 'rows', 'columns', 'stack', 'second'])
def test_out(recording, rng, name):
    """Where it is written at once, and nothing around it."""
    a, b = rng.standard_normal((2, 3, 5)), rng.standard_normal((5, 4))
    memory, place = {
        'whole': (np.full((2, 3, 4), np.nan), ...),
        'rows': (np.full((2, 5, 4), np.nan), np.s_[:, 1:4]),
        'columns': (np.full((2, 3, 9), np.nan), np.s_[..., 2:6]),
        'stack': (np.full((5, 3, 4), np.nan), np.s_[2:4]),
        'second': (np.full((4, 6, 4), np.nan), np.s_[::2, ::2]),
    }[name]
    out = memory[place]
    assert gpu_matmul(a, b, out=out) is out
    assert_allclose(out, a @ b, 1e-12)
    out[...] = np.nan
    assert np.isnan(memory).all()
    (args,) = (args for called, args in recording.called if 'Gemm' in called)
    assert args[16] == out.ctypes.data


@pytest.mark.parametrize('name', ['columns', 'turned', 'backwards', 'single'])
def test_out_by_a_copy(recording, rng, name):
    """Memory that cuBLAS cannot write, or of another type."""
    a, b = rng.standard_normal((3, 5)), rng.standard_normal((5, 4))
    out = {
        'columns': np.empty((3, 8))[:, ::2],
        'turned': np.empty((4, 3)).T,
        'backwards': np.empty((3, 4))[::-1],
        'single': np.empty((3, 4), 'float32'),
    }[name]
    assert gpu_matmul(a, b, out) is out
    assert_allclose(out, a @ b, 1e-5)
    if name != 'single':
        with pytest.raises(ValueError, match='out has strides'):
            gemm_call(a, b, out)


@pytest.mark.parametrize(
    'shapes',
    [((0, 5), (5, 4)), ((3, 0), (0, 4)), ((3, 5), (5, 0)), ((0, 3, 5), (5, 4)),
     ((2, 3, 0), (0, 4)), ((1, 3, 5), (0, 5, 4))],
)  # fmt: skip
def test_nothing_to_multiply(recording, shapes):
    a, b = map(np.ones, shapes)
    expected = a @ b
    assert_array_equal(gpu_matmul(a, b), expected)
    out = np.full(expected.shape, np.nan)
    assert gpu_matmul(a, b, out=out) is out
    assert_array_equal(out, expected)
    assert recording.called == []


@pytest.mark.parametrize(
    ('left', 'right'),
    [('float16', 'float32'), ('float64', 'float32'), ('float16', 'float16'),
     ('int64', 'float32'), ('int32', 'int32'), ('bool', 'bool')],
)  # fmt: skip
def test_types(recording, left, right):
    """Promoted as NumPy does; integers are left to CuPy's kernel."""
    a, b = np.ones((3, 5), left), np.ones((5, 4), right)
    got, expected = gpu_matmul(a, b), a @ b
    assert got.dtype == expected.dtype
    assert_array_equal(got, expected)
    assert len(recording.called) == (expected.dtype.kind == 'f')


@pytest.mark.parametrize(
    'shapes', [((3, 5), (4, 4)), ((5,), (5, 4)), ((2, 3, 5), (3, 5, 4))]
)
def test_shapes_that_do_not_fit(recording, shapes):
    with pytest.raises(ValueError, match='no product of|broadcast'):
        gpu_matmul(*map(np.ones, shapes))
    assert recording.called == []


def test_out_that_does_not_fit(recording):
    a, b = np.ones((1, 5)), np.ones((5, 4))
    with pytest.raises(ValueError, match=r'out is \(3, 4\), the product \(1, 4\)'):
        gpu_matmul(a, b, out=np.empty((3, 4)))
    with pytest.raises(ValueError, match='float64.*into float32'):
        gemm_call(a, b, np.empty((1, 4), 'float32'))
    for strides in ((0, 32, 8), (-96, 32, 8)):
        last = np.empty((2, 3, 4))[1]
        out = np.lib.stride_tricks.as_strided(last, (2, 3, 4), strides)
        with pytest.raises(ValueError, match='out has strides'):
            gemm_call(np.ones((2, 3, 5)), b, out)


@pytest.mark.parametrize(
    ('dtype', 'tf32', 'kind', 'compute'),
    [('float16', '', 2, 68), ('float32', '', 0, 68), ('float32', '1', 0, 77),
     ('float32', '0', 0, 68), ('float16', '1', 2, 68), ('float64', '1', 1, 70)],
)  # fmt: skip
def test_the_arguments_arrive(cublas, monkeypatch, dtype, tf32, kind, compute):
    """Through C, each in its place: with strides beyond 32 bits."""
    monkeypatch.setenv('CUPY_TF32', tf32)
    seen = []

    def note(*args):
        number = {70: ctypes.c_double}.get(args[21], ctypes.c_float)
        seen.append((number.from_address(args[6]).value,
                     number.from_address(args[15]).value))  # fmt: skip
        seen.append(args)
        return 0

    types = double.SIGNATURES['cublasGemmStridedBatchedEx']
    cublas.cublasGemmStridedBatchedEx = ctypes.CFUNCTYPE(ctypes.c_int, *types)(note)
    gpu_product._bind(cublas)
    A, B, C = (np.ones(1, dtype) for _ in range(3))
    call = gpu_product.Gemm(
        1, 0, 2, 3, 4, A, 5, 1 << 40, B, 6, 1 << 41, C, 7, 1 << 42, 8
    )
    run_gemm(cublas, double.HANDLE, call)
    scales, args = seen
    assert scales == (1, 0)
    assert args[:6] == (double.HANDLE, 1, 0, 2, 3, 4)
    assert args[7:11] == (A.ctypes.data, kind, 5, 1 << 40)
    assert args[11:15] == (B.ctypes.data, kind, 6, 1 << 41)
    assert args[16:20] == (C.ctypes.data, kind, 7, 1 << 42)
    assert args[20:] == (8, compute, -1)


def test_the_signatures_are_the_manual_s(cublas):
    for name, types in double.SIGNATURES.items():
        function = getattr(cublas, name)
        assert list(function.argtypes) == types
        assert function.restype is ctypes.c_int
    assert set(gpu_product.SIGNATURES) == set(double.SIGNATURES)
    assert len(double.SIGNATURES['cublasGemmStridedBatchedEx']) == 23


def test_the_status_is_looked_at():
    cublas = gpu_product._bind(double.Cublas({'cublasGemmStridedBatchedEx': 15}))
    call = gemm_call(np.ones((2, 2)), np.ones((2, 2)), np.empty((2, 2)))
    with pytest.raises(RuntimeError, match='cublasGemmStridedBatchedEx has status 15'):
        run_gemm(cublas, double.HANDLE, call)
    cublas.fail.clear()
    with pytest.raises(RuntimeError, match='status 7'):  # no such handle
        run_gemm(cublas, 1, call)
    with pytest.raises(RuntimeError, match='status 7'):  # columns overlap
        run_gemm(cublas, double.HANDLE, call._replace(lda=1))


def test_outside_of_a_recording_nothing_is_touched(monkeypatch, rng):
    for name in ('find_library', 'run_gemm', 'gemm_call', '_recorded'):
        monkeypatch.setattr(gpu_product, name, None)
    a, b, out = rng.random((3, 5)), rng.random((5, 4)), np.empty((3, 4))
    assert_array_equal(gpu_matmul(a, b), a @ b)
    assert gpu_matmul(a, b, out=out) is out
    assert_array_equal(out, a @ b)


def test_the_plain_operation(rng):
    a, b, out = rng.random((2, 3, 5)), rng.random((5, 4)), np.empty((2, 3, 4))
    for product in (matmul, matmul.plain):
        assert_array_equal(product(a, b), a @ b)
        assert product(a, b, out=out) is out
        assert_array_equal(out, a @ b)
        out.fill(0)


@pytest.mark.parametrize('cuda', [12, 13])
@pytest.mark.parametrize('platform', ['linux', 'win32'])
def test_the_library_that_is_loaded(monkeypatch, platform, cuda):
    """The one of CuPy's CUDA, and never a second copy."""
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return 'library'

    monkeypatch.setattr(sys, 'platform', platform)
    monkeypatch.setattr(ctypes, 'CDLL', load)
    monkeypatch.setattr(os, 'RTLD_NOLOAD', 4, raising=False)
    monkeypatch.setattr(os, 'RTLD_NOW', 2, raising=False)
    assert gpu_product.find_library(cuda) == 'library'
    if platform == 'win32':
        assert asked == [(f'cublas64_{cuda}.dll', {})]
    else:
        assert asked == [(f'libcublas.so.{cuda}', {'mode': 6})]


def test_no_library():
    with pytest.raises(RuntimeError, match='cuBLAS CuPy uses is not found: '):
        gpu_product.find_library(99)
