"""The product of matrices, for the operations that are made of it."""

from ..backend import get_xp, replaceable


@replaceable
def matmul(a, b, out=None):
    """Return a b, of the last two axes; NumPy's rules for all axes before them.

    A tool of other operations, which have the gradients: it has none of its own.

    Parameters
    ----------
    a : (..., m, k) array
        The left factors.
    b : (..., k, n) array
        The right ones.
    out : (..., m, n) array or None
        Written where given; it may share no memory with the factors.

    Returns
    -------
    (..., m, n) array
        `out`, where that is given.
    """
    return get_xp(a).matmul(a, b, out=out)
