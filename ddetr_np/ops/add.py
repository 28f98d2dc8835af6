"""The sum of two maps, or of two gradients that meet."""

from ..backend import replaceable


@replaceable
def add(a, b):
    """y = a + b. Its gradient goes to both as it is.

    Parameters
    ----------
    a, b : (...) arrays
        Of one shape.

    Returns
    -------
    y : (...) array
        Never a or b itself.
    """
    return a + b
