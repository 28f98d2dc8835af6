"""SciPy's product of a sparse and a dense matrix, added to an array of the caller's.

`csr_array @ dense` checks its arguments and makes a new array at each call, which costs
more than a small product. The routines below it add in place; they are not public, so
that the public road stays open where they are missing.
"""

from scipy import sparse

try:
    from scipy.sparse._sparsetools import csc_matvecs, csr_matvecs
except ImportError:  # the public road: 1.2 and 4.4 times as slow
    csr_matvecs = csc_matvecs = None


def add_product(ends, columns, weights, x, y):
    """y += matrix · x, for a matrix with as many entries in each row.

    Parameters
    ----------
    ends : (≥ rows + 1,) int32 array
        Where each row's entries begin: 0, n, 2 n, …
    columns : (rows · n,) int32 array
        Column of each entry, row after row.
    weights : (rows · n,) array
        Value of each entry.
    x : (columns, C) contiguous array
        The dense matrix.
    y : (rows, C) contiguous array
        Added to, in place.
    """
    ends = ends[: len(y) + 1]
    if csr_matvecs is None:
        shape = (len(y), len(x))
        y += sparse.csr_array((weights, columns, ends), shape=shape) @ x
    else:
        csr_matvecs(
            len(y), len(x), x.shape[1], ends, columns, weights, x.ravel(), y.ravel()
        )


def add_transposed_product(ends, columns, weights, x, y):
    """y += matrixᵀ · x, the matrix as in `add_product`.

    Parameters
    ----------
    ends, columns, weights : arrays
        The matrix, as for `add_product`.
    x : (rows, C) contiguous array
        The dense matrix.
    y : (columns, C) contiguous array
        Added to, in place.
    """
    ends = ends[: len(x) + 1]
    if csc_matvecs is None:
        shape = (len(y), len(x))
        y += sparse.csc_array((weights, columns, ends), shape=shape) @ x
    else:
        # the arrays of a matrix by rows are those of its transpose by columns
        csc_matvecs(
            len(y), len(x), x.shape[1], ends, columns, weights, x.ravel(), y.ravel()
        )
