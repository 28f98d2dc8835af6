"""Dropout whose mask can be drawn again."""

import operator

import numpy as np

from ..backend import get_xp, replaceable

VALUES = 1 << 16  # of the numbers that are drawn, one for each element
DRAWN = 16  # of them at each count of the generator


def threshold(p):
    """Return how many of the `VALUES` numbers drop their element, at least one not.

    Parameters
    ----------
    p : float
        Probability to drop, in [0, 1).

    Returns
    -------
    int
    """
    return min(round(p * VALUES), VALUES - 1)


def scale(p):
    """Return 1 / the share that is kept: p is rounded to a multiple of 1 / VALUES.

    Parameters
    ----------
    p : float
        Probability to drop, in [0, 1).

    Returns
    -------
    float
    """
    return VALUES / (VALUES - threshold(p))


def kept(p, key, n, start=0):
    """Return which elements from `start` on are kept.

    Philox counts: a number is a function of the key and of its place. So nothing of the
    mask is stored, and any part of it can be drawn by itself.

    Parameters
    ----------
    p : float
        Probability to drop, in [0, 1).
    key : (int, int, int)
        Seed, step and stream, as in `dropout`.
    n, start : int
        How many elements, and the first one's place; `start` is a multiple of `DRAWN`.

    Returns
    -------
    (n,) bool array
        True = kept; on the host.
    """
    seed, step, stream = map(operator.index, key)  # a NumPy integer would overflow
    philox = np.random.Philox(
        key=np.array([seed, step << 16 | stream], np.uint64), counter=start // DRAWN
    )
    numbers = philox.random_raw(-(-n // 4)).astype('<u8', copy=False).view('<u2')
    return numbers[:n] >= threshold(p)


@replaceable
def dropout(x, p, key):
    """y = x ⊙ mask / (1 − p), the mask 0 with probability p, else 1.

    Parameters
    ----------
    x : (...) array
        Its elements meet the random numbers in C order.
    p : float
        In [0, 1); rounded to a multiple of 2⁻¹⁶.
    key : (int, int, int) or None
        Seed, step and stream (< 2¹⁶) of the random numbers; None switches it off. The
        same key gives the same mask on any machine.

    Returns
    -------
    y : (...) array
    cache
        The key, not the mask.
    """
    if key is None or p == 0:
        return x, None
    mask = get_xp(x).asarray(kept(p, key, x.size).reshape(x.shape))
    y = x * mask
    y *= scale(p)
    return y, (p, key)


@replaceable
def dropout_backward(dy, cache):
    """dx = dy ⊙ mask / (1 − p), the mask drawn again: dropout is its own transpose.

    Parameters
    ----------
    dy : like y
        ∂loss/∂y.
    cache
        From the forward; None if that was switched off.

    Returns
    -------
    dx : like dy
    """
    if cache is None:
        return dy
    return dropout.plain(dy, *cache)[0]
