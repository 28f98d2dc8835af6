"""The table of cases, and inputs that keep away from kinks.

To add an operation, write a builder that yields `Case`s in the file it belongs to and
decorate it with the operation's name; a test asks for one for every `*_backward` in
`ops`.
"""

import zlib
from typing import NamedTuple

import numpy as np

from ..backend import to_device
from ..config import Config

SMALL = Config(  # odd sizes, all different, so that no two axes can be mistaken
    C=24, M=3, L=2, K=5, Nq=7, ffn=10, num_classes=4, encoder_layers=1, decoder_layers=1
)


class Case(NamedTuple):
    """An operation with inputs to check it at.

    Parameters
    ----------
    label : str
        What is particular about it.
    inputs : dict
        Name → float64 array: the arguments that have gradients, and only those.
    settings : dict
        The other arguments, by name.
    returns : tuple of str or None
        Whose gradients the backward returns, in order: names of inputs, None where the
        answer must be None; a name that is no input is returned, but not checked. All
        inputs in their order if not given.
    backward : dict
        Keywords of the backward (`need_dx`).
    """

    label: str
    inputs: dict
    settings: dict = {}
    returns: tuple | None = None
    backward: dict = {}

    @property
    def order(self):
        """`returns`, filled in."""
        return tuple(self.inputs) if self.returns is None else self.returns

    def to(self, device):
        """Return the case with its arrays on a device ('cpu', 'cuda:0', …).

        Parameters
        ----------
        device : str
            As `to_device` takes it.

        Returns
        -------
        Case
            Its inputs and settings have moved; the rest is as it was.
        """

        def moved(a):
            return to_device(a, device) if hasattr(a, 'dtype') else a

        return self._replace(
            inputs={k: moved(a) for k, a in self.inputs.items()},
            settings={k: moved(a) for k, a in self.settings.items()},
        )


CASES = {}  # 'module.function' → builder(rng, config)


def cases_of(name):
    """Register the decorated builder for an operation, 'module.function' in `ops`.

    Parameters
    ----------
    name : str
        The key in `CASES`.

    Returns
    -------
    callable
        Decorates builder(rng, config), which yields `Case`s; returns it as it is.
    """

    def register(builder):
        CASES[name] = builder
        return builder

    return register


def cases(name, config=None, seed=0):
    """Return the list of an operation's Cases.

    Parameters
    ----------
    name : str
        A key of CASES.
    config : Config, optional
        Whose sizes to take; `SMALL` if not given.
    seed : int
        Of the inputs; each operation has a stream of its own.

    Returns
    -------
    list of Case
        In the builder's order, on the host.
    """
    # a stream of its own: adding a case to one operation moves no other's inputs
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return list(CASES[name](rng, config or SMALL))


def off_zero(rng, *shape):
    """Return normal numbers pushed 0.1 away from zero.

    Parameters
    ----------
    rng : numpy.random.Generator
        Drawn from.
    *shape
        Of the array, an int for each axis.

    Returns
    -------
    x : (*shape) array
        |x| ≥ 0.1.
    """
    x = rng.standard_normal(shape)
    return x + np.copysign(0.1, x)


def distinct(rng, *shape):
    """Return numbers in random order of which no two are closer than 0.1.

    Parameters
    ----------
    rng : numpy.random.Generator
        Drawn from.
    *shape
        Of the array, an int for each axis.

    Returns
    -------
    x : (*shape) array
        −1, −0.9, −0.8 and so on, shuffled.
    """
    return (rng.permutation(int(np.prod(shape))) * 0.1 - 1).reshape(shape)


def level_shapes(L):
    """Return L small, non-square map sizes (H, W), each half the one before.

    Parameters
    ----------
    L : int
        Levels, the finest first.

    Returns
    -------
    list of (H, W)
        (6, 10), (3, 5), (1, 2), and (1, 2) from there on.
    """
    return [(max(1, 6 >> l), max(2, 10 >> l)) for l in range(L)]


def off_pixels(rng, shape, H, W):
    """Return points, x and y, at least 0.1 pixels from any pixel's centre.

    Some read one or two pixels over the border, some lie outside.

    Parameters
    ----------
    rng : numpy.random.Generator
        Drawn from.
    shape : tuple of int
        How many points, along which axes.
    H, W : int
        The map's size in pixels.

    Returns
    -------
    loc : (*shape, 2) array
        x, y as fractions of W and H; in [0, 1] inside the map.
    """
    last = np.array([W, H])
    pixel = rng.integers(-2, last + 1, (*shape, 2)) + rng.uniform(0.1, 0.9, (*shape, 2))
    return (pixel + 0.5) / last


def normal(rng, **shapes):
    """Return {name: normal numbers of that shape}.

    Parameters
    ----------
    rng : numpy.random.Generator
        Drawn from.
    **shapes
        Name → shape, a tuple of int.

    Returns
    -------
    dict
        Name → float64 array, drawn in the order given.
    """
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}
