"""Products on a GPU: CuPy's, and cuBLAS's own while a CUDA graph is recorded.

cuBLAS lets its products be recorded; CuPy, in its releases to 14.2, refuses to ask for
one meanwhile. So within `recording` cuBLAS is called here, through `ctypes`: the
library that CuPy has loaded, by CuPy's handle. Outside of it nothing here is used.

cuBLAS has matrices in columns. A matrix in rows, as ours are, is to it the transpose,
and C = A B is asked for as Cᵀ = Bᵀ Aᵀ: nothing is moved.
"""

import contextlib
import contextvars
import ctypes
import itertools
import os
import sys
from typing import Any, NamedTuple

import numpy as np

from ..backend import get_xp, twin
from ..ops.product import matmul

WORKSPACE = 32 << 20  # bytes: what NVIDIA advises for its newest cards
OP_N, OP_T = 0, 1  # a matrix as it is, transposed
DEFAULT_ALGO = -1
POINTER_MODE_HOST = 0
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70
TYPES = {'float16': 2, 'float32': 0, 'float64': 1}  # cudaDataType_t

_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
SIGNATURES = {
    'cublasSetStream_v2': (_pointer, _pointer),
    'cublasSetWorkspace_v2': (_pointer, _pointer, ctypes.c_size_t),
    'cublasSetPointerMode_v2': (_pointer, _int),
    'cublasGemmStridedBatchedEx': (
        _pointer, _int, _int,  # handle, transa, transb
        _int, _int, _int, _pointer,  # m, n, k, alpha
        _pointer, _int, _int, _long,  # A, its type, lda, strideA
        _pointer, _int, _int, _long,  # B
        _pointer,  # beta
        _pointer, _int, _int, _long,  # C
        _int, _int, _int,  # batchCount, computeType, algo
    ),
}  # fmt: skip

_record = contextvars.ContextVar('record', default=None)


@twin(matmul, 'cupy')
def gpu_matmul(a, b, out=None):
    """See `ops.product`."""
    record = _record.get()
    if record is None:
        return get_xp(a).matmul(a, b, out=out)
    return _recorded(record, a, b, out)


def _recorded(record, a, b, out):
    xp, dtype = get_xp(a), np.result_type(a.dtype, b.dtype)
    if dtype.name not in TYPES:  # integers: a kernel of CuPy's, which may be recorded
        return xp.matmul(a, b, out=out)
    shape = _shape(a, b)
    if out is not None and out.shape != shape:
        raise ValueError(f'out is {out.shape}, the product {shape}')
    result = out
    if out is None or out.dtype != dtype or not _can_be_written(out):
        result = xp.empty(shape, dtype)
    if 0 in (a.size, b.size):
        result[...] = 0  # of no factors
    else:
        a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
        record(gemm_call(a, b, result))
    if out is not None and result is not out:
        out[...] = result
    return result if out is None else out


def _shape(a, b):
    """The shape of a product."""
    if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f'no product of {a.shape} and {b.shape}')
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return (*batch, a.shape[-2], b.shape[-1])


class Gemm(NamedTuple):
    """What `cublasGemmStridedBatchedEx` is asked for, in its words: Cᵀ = Bᵀ Aᵀ.

    Parameters
    ----------
    transa, transb : int
        OP_N or OP_T.
    m, n, k : int
        C is m × n to cuBLAS, which has it in columns.
    A : array
        The right factor: its memory counts, not its shape.
    lda, strideA : int
        Elements from column to column, and from matrix to matrix.
    B : array
        The left factor.
    ldb, strideB : int
        As for A.
    C : array
        Written.
    ldc, strideC : int
        As for A.
    count : int
        Matrices.
    """

    transa: int
    transb: int
    m: int
    n: int
    k: int
    A: Any
    lda: int
    strideA: int  # noqa: N815 (cuBLAS's name)
    B: Any
    ldb: int
    strideB: int  # noqa: N815
    C: Any
    ldc: int
    strideC: int  # noqa: N815
    count: int


def gemm_call(a, b, out):
    """Return the call that writes the product of a and b to out.

    Factors that lie otherwise than cuBLAS can read are copied first.

    Parameters
    ----------
    a : (..., m, k) array
        NumPy's or CuPy's, of half, single or double precision; not empty.
    b : (..., k, n) array
        Of the same type.
    out : (..., m, n) array
        Of the same type: contiguous, or every so many rows or columns of such an array.

    Returns
    -------
    Gemm

    Raises
    ------
    ValueError
        Shapes or types do not fit, or `out` lies otherwise.
    """
    shape = _shape(a, b)
    if out.shape != shape or not a.dtype == b.dtype == out.dtype:
        raise ValueError(
            f'{a.dtype} {a.shape} and {b.dtype} {b.shape} into {out.dtype} {out.shape}'
        )
    if not _can_be_written(out):
        raise ValueError(f'out has strides {out.strides}')
    batch, (m, n) = shape[:-2], shape[-2:]
    a, op_a, lda, stride_a = _factor(a, batch)
    b, op_b, ldb, stride_b = _factor(b, batch)
    ldc, stride_c = _leading(out, -2, -1), _stride(out, batch)
    count = 1
    for size in batch:
        count *= size
    return Gemm(
        op_b, op_a, n, m, a.shape[-1], b, ldb, stride_b, a, lda, stride_a,
        out, ldc, stride_c, count,
    )  # fmt: skip


def _can_be_written(out):
    batch = out.shape[:-2]
    return (
        _leading(out, -2, -1) is not None
        and _stride(out, batch) is not None
        # of matrices that repeat the last would be written over the first
        and all(n == 1 or s > 0 for n, s in zip(batch, out.strides))
    )


def _factor(x, batch):
    """Return x, or a copy; OP_N or OP_T; its leading dimension and its stride."""
    if _stride(x, batch) is None or all(
        _leading(x, *axes) is None for axes in ((-2, -1), (-1, -2))
    ):
        x = get_xp(x).ascontiguousarray(x)
    if _stride(x, batch) is None:  # some axes before the last two repeat, others not
        xp = get_xp(x)
        x = xp.ascontiguousarray(xp.broadcast_to(x, batch + x.shape[-2:]))
    ld, op = _leading(x, -2, -1), OP_N
    if ld is None:
        ld, op = _leading(x, -1, -2), OP_T
    return x, op, ld, _stride(x, batch)


def _leading(x, slow, quick):
    """Elements from one to the next along the slow axis, None if cuBLAS cannot."""
    size = x.dtype.itemsize
    step, rest = divmod(x.strides[slow], size)
    if x.shape[quick] > 1 and x.strides[quick] != size:
        return None
    if x.shape[slow] == 1:
        return x.shape[quick]  # a stride that nobody takes may be anything
    return None if rest or step < x.shape[quick] else step


def _stride(x, batch):
    """Elements from matrix to matrix of x, spread over a batch; None if they vary."""
    missing = len(batch) - (x.ndim - 2)
    steps = [0] * missing + [
        0 if n == 1 else s for n, s in zip(x.shape[:-2], x.strides)
    ]
    axes = [(n, s) for n, s in zip(batch, steps, strict=True) if n > 1]
    if any(s != n2 * s2 for (_, s), (n2, s2) in itertools.pairwise(axes)):
        return None
    step, rest = divmod(axes[-1][1] if axes else 0, x.dtype.itemsize)
    return None if rest or step < 0 else step


@contextlib.contextmanager
def recording(workspace):
    """Within the block products go to cuBLAS itself, on the current stream.

    Parameters
    ----------
    workspace : (WORKSPACE,) uint8 array
        CuPy's. cuBLAS may take memory of its own otherwise, for each graph anew; the
        graph uses this, so it must live as long.

    Yields
    ------
    None
        At the block's end products are CuPy's again.

    Raises
    ------
    RuntimeError
        cuBLAS is not found, or says that something went wrong.
    """
    xp = get_xp(workspace)
    handle = xp.cuda.Device().cublas_handle  # CuPy loads the library for it
    cublas = _bind(find_library(xp.cuda.runtime.runtimeGetVersion() // 1000))

    def record(call):
        # each time: CuPy sets both for its own products, which a pass may have too
        stream = xp.cuda.get_current_stream().ptr
        _ask(cublas, 'cublasSetStream_v2', handle, stream)
        # a stream that is set takes the workspace away, says cuBLAS's manual. CuPy sets
        # the stream before each of its own products: so this needs no undoing
        place = workspace.data.ptr
        _ask(cublas, 'cublasSetWorkspace_v2', handle, place, workspace.nbytes)
        # as CuPy leaves it; alpha and beta are copied into the graph then
        _ask(cublas, 'cublasSetPointerMode_v2', handle, POINTER_MODE_HOST)
        run_gemm(cublas, handle, call)

    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)
        workspace = None  # or an error's frame, of `record`, would keep it


def run_gemm(cublas, handle, call):
    """Ask cuBLAS for products.

    Parameters
    ----------
    cublas
        The library, or what has its functions.
    handle : int
        cuBLAS's.
    call : Gemm
        What for.

    Raises
    ------
    RuntimeError
        Its status is not 0.
    """
    dtype = call.C.dtype.name
    kind, compute, number = TYPES[dtype], COMPUTE_32F, ctypes.c_float
    if dtype == 'float64':
        compute, number = COMPUTE_64F, ctypes.c_double
    elif dtype == 'float32' and os.environ.get('CUPY_TF32') == '1':  # as CuPy has it
        compute = COMPUTE_32F_FAST_TF32
    one, zero = number(1), number(0)
    A, B, C = (_address(x) for x in (call.A, call.B, call.C))
    _ask(
        cublas, 'cublasGemmStridedBatchedEx', handle, call.transa, call.transb,
        call.m, call.n, call.k, ctypes.byref(one),
        A, kind, call.lda, call.strideA,
        B, kind, call.ldb, call.strideB,
        ctypes.byref(zero),
        C, kind, call.ldc, call.strideC,
        call.count, compute, DEFAULT_ALGO,
    )  # fmt: skip


def _address(x):
    return x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr


def _ask(cublas, name, *args):
    status = getattr(cublas, name)(*args)
    if status:
        raise RuntimeError(f'cuBLAS: {name} has status {status}')


def _bind(library):
    """Return the library, its functions told what they take."""
    for name, types in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, ctypes.c_int
    return library


def find_library(cuda):
    """Return the cuBLAS that is loaded.

    Parameters
    ----------
    cuda : int
        CuPy's CUDA: 12 or 13. Another library in the process may have loaded the other.

    Returns
    -------
    ctypes.CDLL

    Raises
    ------
    RuntimeError
        It is not loaded.
    """
    windows = sys.platform == 'win32'
    name = f'cublas64_{cuda}.dll' if windows else f'libcublas.so.{cuda}'
    try:
        if windows:  # which hands out what is loaded under that name
            return ctypes.CDLL(name)
        # a handle is the library's that made it: never a second copy
        return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError as error:
        raise RuntimeError(f'the cuBLAS CuPy uses is not found: {error}') from error
