"""Dropout whose mask can be drawn again."""

import numpy as np

from ..backend import get_xp


def _mask(shape, p, key, dtype, xp):
    """Return (shape) 0 or 1 / (1 − p), the same for the same key on any machine."""
    # Philox counts: the mask is a function of the key, so nothing of it is stored
    seed, step, stream = key
    bits = np.random.Philox(key=np.array([seed, step << 16 | stream], np.uint64))
    kept = np.random.Generator(bits).random(shape, np.float32) >= p
    return xp.asarray(kept * np.asarray(1 / (1 - p), dtype))


def dropout(x, p, key):
    """y = x ⊙ mask / (1 − p), the mask 0 with probability p.

    Parameters
    ----------
    x : (...) array
    p : float
        In [0, 1).
    key : (int, int, int) or None
        Seed, step and stream (< 2¹⁶) of the random numbers; None switches it off.

    Returns
    -------
    y : (...) array
    cache
        The key, not the mask.
    """
    if key is None or p == 0:
        return x, None
    return x * _mask(x.shape, p, key, x.dtype, get_xp(x)), (p, key)


def dropout_backward(dy, cache):
    """dx = dy ⊙ mask / (1 − p), the mask drawn again."""
    if cache is None:
        return dy
    p, key = cache
    return dy * _mask(dy.shape, p, key, dy.dtype, get_xp(dy))
