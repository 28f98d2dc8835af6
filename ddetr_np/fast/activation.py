"""ReLU and softmax in tiles of rows."""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.activation import relu, relu_backward, softmax, softmax_backward
from .rows import alike, fits, matrix, row_tiles

NARROW = 64  # levels and keys; as many columns or more are taken as they are


@twin(relu)
def fast_relu(x):
    """See `ops.activation`."""
    if not fits(x):
        return relu.plain(x)
    rows = matrix(x)
    y = np.empty(rows.shape, x.dtype)
    zero = np.zeros(rows.shape[1], x.dtype)  # NumPy's maximum with a number is slow

    def task(part):
        np.maximum(rows[part], zero, out=y[part])

    threads.run(task, row_tiles(*rows.shape))
    y = y.reshape(x.shape)
    return y, y


@twin(relu_backward)
def fast_relu_backward(dy, y):
    """See `ops.activation`."""
    if not alike(dy, y):
        return relu_backward.plain(dy, y)
    drows, rows = matrix(dy), matrix(y)
    dx = np.empty(drows.shape, dy.dtype)

    def task(part):
        np.multiply(drows[part], rows[part] > 0, out=dx[part])

    threads.run(task, row_tiles(*rows.shape))
    return dx.reshape(dy.shape)


def softmax_rows(s, A):
    """Softmax of the rows of a tile.

    Parameters
    ----------
    s : (rows, n) array
        Logits.
    A : (rows, n) array
        Written; it may be s.
    """
    if s.shape[1] > NARROW:
        largest = s.max(1)
    else:  # NumPy is slow along a short axis
        largest = np.maximum.reduce(np.ascontiguousarray(s.T), 0)
    np.subtract(s, largest[:, None], out=A)
    np.exp(A, out=A)
    total = A @ np.ones((A.shape[1], 1), A.dtype)
    np.divide(1, total, out=total)
    np.multiply(A, total, out=A)


def softmax_backward_rows(dA, A, ds):
    """The rows of a tile.

    Parameters
    ----------
    dA : (rows, n) array
        ∂loss/∂A.
    A : (rows, n) array
        Of `softmax_rows`.
    ds : (rows, n) array
        Written; it may be dA.
    """
    inner = np.einsum('ij,ij->i', dA, A)
    np.subtract(dA, inner[:, None], out=ds)
    np.multiply(ds, A, out=ds)


@twin(softmax)
def fast_softmax(s):
    """See `ops.activation`."""
    if not fits(s):
        return softmax.plain(s)
    rows = matrix(s)
    A = np.empty(rows.shape, s.dtype)
    threads.run(lambda part: softmax_rows(rows[part], A[part]), row_tiles(*rows.shape))
    A = A.reshape(s.shape)
    return A, A


@twin(softmax_backward)
def fast_softmax_backward(dA, A):
    """See `ops.activation`."""
    if not alike(dA, A):
        return softmax_backward.plain(dA, A)
    drows, rows = matrix(dA), matrix(A)
    ds = np.empty(rows.shape, A.dtype)

    def task(part):
        softmax_backward_rows(drows[part], rows[part], ds[part])

    threads.run(task, row_tiles(*rows.shape))
    return ds.reshape(dA.shape)
