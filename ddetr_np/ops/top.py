"""The choice of the best proposals (A.4)."""

from ..backend import get_xp, replaceable


@replaceable
def top(scores, n):
    """Return where the n largest scores are, best first; of equals the first.

    A choice has no gradient.

    Parameters
    ----------
    scores : (N, S) array
        Of each picture's tokens. NaN comes after all numbers.
    n : int
        At most S.

    Returns
    -------
    places : (N, n) int64 array
        From 0 to S − 1.
    """
    return get_xp(scores).argsort(-scores, axis=1, kind='stable')[:, :n]
