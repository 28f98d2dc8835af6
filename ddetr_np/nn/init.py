"""How weights start (A.4, and the released code where the paper is silent)."""

import math

import numpy as np


class Init:
    """Draws initial weights in one dtype from one seed.

    Parameters
    ----------
    seed : int or None
        None leaves zeros where numbers would be drawn: weights are about to be loaded.
    dtype : {'float32', 'float64'}
    """

    def __init__(self, seed=0, dtype='float32'):
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)

    def uniform(self, shape, bound):
        """Return values in [−bound, bound).

        Parameters
        ----------
        shape : int or tuple of int
            Of the result.
        bound : float
            At least 0.

        Returns
        -------
        array
            In the Init's dtype.
        """
        if self.rng is None:
            return np.zeros(shape, self.dtype)
        u = self.rng.random(shape, self.dtype)
        u *= 2 * bound
        u -= bound
        return u

    def normal(self, shape, std=1.0):
        """Return normal values of mean 0.

        Parameters
        ----------
        shape : int or tuple of int
            Of the result.
        std : float
            Standard deviation.

        Returns
        -------
        array
            In the Init's dtype.
        """
        if self.rng is None:
            return np.zeros(shape, self.dtype)
        n = self.rng.standard_normal(shape, self.dtype)
        n *= std
        return n

    def full(self, shape, value):
        """Return a constant.

        Parameters
        ----------
        shape : int or tuple of int
            Of the result.
        value : float
            Of each element, also without a seed.

        Returns
        -------
        array
            In the Init's dtype.
        """
        return np.full(shape, value, self.dtype)

    def xavier(self, shape):
        """Return Xavier-uniform weights.

        Parameters
        ----------
        shape : (O, I) or (kh, kw, I, O)
            Of a linear map or a convolution.

        Returns
        -------
        weight : array
            Uniform in ±√(6 / (fan-in + fan-out)).
        """
        if len(shape) == 2:
            fan = shape[0] + shape[1]
        else:
            fan = math.prod(shape[:2]) * (shape[2] + shape[3])
        return self.uniform(shape, math.sqrt(6 / fan))

    def linear(self, O, I, xavier=False, bias=None):
        """Return weight and bias of a linear map.

        Parameters
        ----------
        O, I : int
            Channels out and in.
        xavier : bool
            Xavier-uniform weights, else uniform in ±1/√I.
        bias : float or None
            A constant, or uniform in ±1/√I.

        Returns
        -------
        weight : (O, I) array
        bias : (O,) array
        """
        bound = 1 / math.sqrt(I)
        weight = self.xavier((O, I)) if xavier else self.uniform((O, I), bound)
        b = self.uniform(O, bound) if bias is None else self.full(O, bias)
        return weight, b

    def kaiming(self, shape):
        """Return a convolution, normal by its fan-out, for ReLUs.

        Parameters
        ----------
        shape : (kh, kw, I, O)
            Of the kernel.

        Returns
        -------
        weight : (kh, kw, I, O) array
            Of standard deviation √(2 / (kh·kw·O)).
        """
        kh, kw, _, O = shape
        return self.normal(shape, math.sqrt(2 / (kh * kw * O)))


def offset_bias(M, L, K, order='released'):
    """Initial bias of Δp_mlqk: head m looks in one direction, key k at distance k.

    Parameters
    ----------
    M, L, K : int
        Heads, levels, keys of a level and head.
    order : {'released', 'paper'}
        Directions by angle 2πm/M, each scaled to max-norm 1; or as A.4 lists them for
        M = 8: (−k, −k), (−k, 0), (−k, k), (0, −k), (0, k), (k, −k), (k, 0), (k, k).

    Returns
    -------
    bias : (M, L, K, 2) array
        x, y in pixels. With boxes the unit of an offset is wh / 2K, so that the same
        bias starts inside the box (A.4).

    Raises
    ------
    ValueError
        The paper's order of another number of heads than 8.
    """
    if order == 'paper':
        if M != 8:
            raise ValueError(
                f"order = 'paper' lists the directions of 8 heads, M is {M}; take "
                "order = 'released'"
            )
        steps = (-1, 0, 1)
        listed = [(x, y) for x in steps for y in steps if (x, y) != (0, 0)]
        direction = np.array(listed, float)
    else:
        angle = 2 * np.pi * np.arange(M) / M
        direction = np.stack([np.cos(angle), np.sin(angle)], -1)
        direction /= np.abs(direction).max(-1, keepdims=True)
    k = np.arange(1, K + 1)[:, None]
    return np.tile(direction[:, None, None] * k, (1, L, 1, 1))
