"""A double of cuBLAS on the CPU, written from its manual: it reads by address.

Functions are C's, with the manual's signatures: arguments pass through `ctypes`.
Matrices are in columns: element (i, j) of matrix p is at p·stride + j·ld + i.
"""

import ctypes

import numpy as np

INVALID_VALUE, INTERNAL_ERROR, NOT_SUPPORTED = 7, 14, 15  # cublasStatus_t
TYPES = {2: np.float16, 0: np.float32, 1: np.float64}  # cudaDataType_t
COMPUTES = {  # cublasComputeType_t: the type of alpha and beta, and of the sums
    68: (ctypes.c_float, np.float32),
    77: (ctypes.c_float, np.float32),
    70: (ctypes.c_double, np.float64),
}
HANDLE = 0x7FFF12345678  # `cupy_double` has the same

_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_factor = (_pointer, _int, _int, _long)
SIGNATURES = {
    'cublasSetStream_v2': [_pointer, _pointer],
    'cublasSetWorkspace_v2': [_pointer, _pointer, ctypes.c_size_t],
    'cublasSetPointerMode_v2': [_pointer, _int],
    'cublasGemmStridedBatchedEx': [
        _pointer, *[_int] * 5, _pointer, *_factor, *_factor, _pointer, *_factor,
        *[_int] * 3,
    ],
}  # fmt: skip


def matrices(address, dtype, rows, columns, ld, stride, count):
    """Return the (count, rows, columns) view of memory in columns."""
    size = np.dtype(dtype).itemsize
    length = (count - 1) * stride + (columns - 1) * ld + rows
    memory = (ctypes.c_char * (length * size)).from_address(address)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(memory, dtype),
        (count, rows, columns),
        (stride * size, size, ld * size),
        writeable=True,
    )


class Cublas:
    """The library.

    Parameters
    ----------
    fail : dict
        Statuses of functions that fail, by name.

    Attributes
    ----------
    called : list of (str, tuple)
        Names, and arguments as C got them.
    errors : list of Exception
        What went wrong inside; the status was INTERNAL_ERROR.
    """

    def __init__(self, fail=None):
        self.called, self.errors, self.fail = [], [], fail or {}
        self.stream = self.workspace = self.pointer_mode = None
        for name, types in SIGNATURES.items():
            function = ctypes.CFUNCTYPE(_int, *types)(self._noted(name))
            setattr(self, name, function)

    def _noted(self, name):
        def run(*args):
            self.called.append((name, args))
            if name in self.fail:
                return self.fail[name]
            try:
                return INVALID_VALUE if args[0] != HANDLE else _RUN[name](self, *args)
            except Exception as error:  # C knows no exceptions
                self.errors.append(error)
                return INTERNAL_ERROR

        return run

    def _set_stream(self, handle, stream):
        self.stream, self.workspace = stream, None  # its own again
        return 0

    def _set_workspace(self, handle, place, size):
        self.workspace = place, size
        return 0

    def _set_pointer_mode(self, handle, mode):
        self.pointer_mode = mode
        return 0

    def _gemm(self, handle, transa, transb, m, n, k, alpha, *rest):
        A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, *rest = rest
        C, Ctype, ldc, strideC, count, compute, algo = rest
        if self.pointer_mode not in (None, 0) or algo != -1:
            return NOT_SUPPORTED
        if not Atype == Btype == Ctype or (Ctype == 1) != (compute == 70):
            return NOT_SUPPORTED
        if compute == 77 and Ctype != 0:
            return NOT_SUPPORTED
        rows_a, columns_a = (k, m) if transa else (m, k)
        rows_b, columns_b = (n, k) if transb else (k, n)
        if transa not in (0, 1) or transb not in (0, 1) or min(m, n, k, count) < 0:
            return INVALID_VALUE
        if lda < max(1, rows_a) or ldb < max(1, rows_b) or ldc < max(1, m):
            return INVALID_VALUE
        dtype, (number, wide) = TYPES[Ctype], COMPUTES[compute]
        alpha, beta = (number.from_address(x).value for x in (alpha, beta))
        if beta != 0:
            return NOT_SUPPORTED
        a = matrices(A, dtype, rows_a, columns_a, lda, strideA, count).astype(wide)
        b = matrices(B, dtype, rows_b, columns_b, ldb, strideB, count).astype(wide)
        a, b = (
            x.transpose(0, 2, 1) if turn else x
            for x, turn in ((a, transa), (b, transb))
        )
        # C is not read where beta is 0: it may hold NaN
        matrices(C, dtype, m, n, ldc, strideC, count)[...] = alpha * (a @ b)
        return 0


_RUN = {
    'cublasSetStream_v2': Cublas._set_stream,
    'cublasSetWorkspace_v2': Cublas._set_workspace,
    'cublasSetPointerMode_v2': Cublas._set_pointer_mode,
    'cublasGemmStridedBatchedEx': Cublas._gemm,
}
