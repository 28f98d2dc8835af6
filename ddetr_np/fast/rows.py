"""What the twins share: which arrays they take, and rows of them in tiles."""

import numpy as np

from .. import threads

ELEMENTS = 1 << 18  # of a tile: 1 MB in single precision, about a core's own cache
LEAST = 1 << 17  # below, threads wait for the interpreter's lock as long as they work
LEAST_WORK = 1 << 23  # multiply-accumulates of a product worth a thread's while
LEAST_ROWS = 1 << 6  # of a product: fewer are arranged longer than they are multiplied
SHARES = 4  # tiles at least, where there are elements or work enough


def fits(*arrays):
    """Whether a twin takes these: float32 or float64, all alike, none empty.

    The plain operation takes the others.

    Parameters
    ----------
    *arrays : array
        All that the operation computes with, one at least.

    Returns
    -------
    bool
    """
    dtype = arrays[0].dtype
    return dtype in (np.float32, np.float64) and all(
        a.dtype == dtype and a.size for a in arrays
    )


def alike(*arrays):
    """Whether a twin takes these, which are to be of one shape; see `fits`.

    Parameters
    ----------
    *arrays : array
        One at least. Of other shapes the plain operation says what is wrong with them,
        or repeats the shorter.

    Returns
    -------
    bool
    """
    return fits(*arrays) and all(a.shape == arrays[0].shape for a in arrays)


def whole(padding, x):
    """Whether a twin takes this padding: a mask of x's tokens that leaves some of each.

    Parameters
    ----------
    padding : (N, S) bool array or None
        True where a token is padding.
    x : (N, S, C) array
        The tokens.

    Returns
    -------
    bool
    """
    return padding is None or (
        padding.dtype == bool
        and padding.shape == x.shape[:2]
        and not padding.all(1).any()
    )


def matrix(a):
    """Return an array as a contiguous matrix of its last axis.

    Parameters
    ----------
    a : (..., C) array
        Copied only if it is not contiguous.

    Returns
    -------
    (rows, C) array
    """
    return np.ascontiguousarray(a).reshape(-1, a.shape[-1])


def row_tiles(n, width, multiple=1, work=0):
    """Return tiles of n rows: few enough for each to be worth a thread's while.

    They taper, so that threads end together.

    Parameters
    ----------
    n : int
        Rows of the matrix.
    width : int
        Its columns, at least 1.
    multiple : int
        Of which each tile's first row is one.
    work : int
        Multiply-accumulates of all rows together.

    Returns
    -------
    list of slice
        In order; empty if `n` is 0.
    """
    shares = max(1, product_shares(n, work), min(SHARES, n * width // LEAST))
    size = min(max(1, ELEMENTS // width), -(-n // shares))
    least = min(size, max(1, LEAST // width))
    return threads.tapering_tiles(n, size, least, multiple)


def product_shares(n, work):
    """Return in how many tiles at least a product of n rows should be cut.

    Parameters
    ----------
    n : int
        Rows.
    work : int
        Multiply-accumulates of all rows together.

    Returns
    -------
    int
        0 to `SHARES`.
    """
    return min(SHARES, n // LEAST_ROWS, work // LEAST_WORK)


def groups(tiles):
    """Share out tiles among tasks that have a sum each, those with most of them first.

    Parameters
    ----------
    tiles : list
        Of slices.

    Returns
    -------
    list of list
        Runs of the tiles, in order.
    """
    parts = threads.tapering_tiles(len(tiles), len(tiles) / SHARES)
    return [tiles[part] for part in parts]


def add_up(out, first, write):
    """Write the first of some summands to an array, and add the others.

    Parameters
    ----------
    out : array
        Written if `first`, else added to: it need not be cleared before.
    first : bool
        Whether there is nothing in it yet.
    write : callable
        Called as `write(out=array)` with that or another array like it.
    """
    if first:
        write(out=out)
    else:
        other = threads.scratch('summand', out.shape, out.dtype)
        write(out=other)
        np.add(out, other, out=out)


def total(parts):
    """Return Σ parts over the first axis, in its order.

    Parameters
    ----------
    parts : (n, ...) array
        Such as each task's sums; it may be overwritten.

    Returns
    -------
    (...) array
    """
    flat = parts.reshape(len(parts), -1)

    def task(where):
        for part in flat[1:, where]:
            np.add(flat[0, where], part, out=flat[0, where])

    threads.run(task, threads.tiles(flat.shape[1], LEAST))
    return flat[0].reshape(parts.shape[1:])


def tile_sums(a, b=None):
    """Return Σ a over the rows of a, or Σ a ⊙ b; tiles in their order.

    Parameters
    ----------
    a : (n, C) array
        Its tiles are those of `row_tiles`.
    b : (n, C) array or None
        None: the sum of a alone.

    Returns
    -------
    (C,) array
    """
    n, C = a.shape
    parts = row_tiles(n, C)
    sums = np.empty((len(parts), 1, C), a.dtype)
    one = np.ones((1, n), a.dtype)

    def task(i):
        rows = a[parts[i]]
        if b is not None:
            product = threads.scratch('product', rows.shape, a.dtype)
            rows = np.multiply(rows, b[parts[i]], out=product)
        # a product with ones: the BLAS sums down the columns, NumPy along the rows
        np.matmul(one[:, : len(rows)], rows, out=sums[i])

    threads.run(task, range(len(parts)))
    return sums.sum((0, 1))
