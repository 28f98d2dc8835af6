"""What a pass costs: its multiply-accumulates, weights, bytes and memory, by module.

The operations that multiply matrices, and the one that samples, are counted from the
arrays they are called with. They are found through the registry of operations that have
twins, so that neither they nor the modules know of it. What the same costs on paper
stands in `formulas`.
"""

import contextlib
import math
from collections import Counter
from typing import NamedTuple

from .. import ops
from ..backend import substitute, twins
from .watch import watch


class Product(NamedTuple):
    """Products of an (m, k) and a (k, n) matrix.

    Parameters
    ----------
    m, k, n : int
        Rows, summed axis and columns.
    times : int
        How many of them.
    """

    m: int
    k: int
    n: int
    times: int = 1

    @property
    def macs(self):
        """Their multiply-accumulates."""
        return self.m * self.k * self.n * self.times


class Count:
    """What was counted, by the modules that were at work.

    Attributes
    ----------
    products : dict
        (path, kind) → Counter of {(m, k, n): times}. The path holds the names of the
        modules, each called by the one before it; the kind is 'forward' or 'backward'.
    samples : Counter
        (path, kind) → multiply-accumulates of sampling values at corners.
    """

    def __init__(self):
        self.products = {}
        self.samples = Counter()

    def add(self, path, kind, products, samples):
        """Add an operation's Products and sampled multiply-accumulates.

        Parameters
        ----------
        path : tuple of str
            Names of the modules at work, each called by the one before it.
        kind : {'forward', 'backward'}
            The pass it belongs to.
        products : list of Product
            Its matrix products; empty if it has none.
        samples : int
            Multiply-accumulates of sampling values at corners.
        """
        shapes = self.products.setdefault((path, kind), Counter())
        for p in products:
            shapes[p.m, p.k, p.n] += p.times
        self.samples[path, kind] += samples

    def shapes(self, name='', kind=None):
        """Return {(m, k, n): times} of the products made while a module was at work.

        Parameters
        ----------
        name : str
            The module's; '' is the whole model.
        kind : {'forward', 'backward'} or None
            None counts both.

        Returns
        -------
        Counter
            Of all such modules and passes together.
        """
        total = Counter()
        for where, shapes in self.products.items():
            if _is_of(where, name, kind):
                total.update(shapes)
        return total

    def macs(self, name='', kind=None):
        """Return the multiply-accumulates of these products (see `shapes`).

        Parameters
        ----------
        name : str
            The module's; '' is the whole model.
        kind : {'forward', 'backward'} or None
            None counts both.

        Returns
        -------
        int
            Σ m k n · times.
        """
        shapes = self.shapes(name, kind)
        return sum(math.prod(shape) * times for shape, times in shapes.items())

    def sampled(self, name='', kind=None):
        """Return the multiply-accumulates of sampling (see `shapes`).

        Parameters
        ----------
        name : str
            The module's; '' is the whole model.
        kind : {'forward', 'backward'} or None
            None counts both.

        Returns
        -------
        int
            Four for a sample and channel of its head forward, eight backward.
        """
        return sum(n for w, n in self.samples.items() if _is_of(w, name, kind))


def _is_of(where, name, kind):
    path, did = where
    return name in path and kind in (None, did)


@contextlib.contextmanager
def counting(model):
    """Count the products of a model's passes within the block.

    What is not counted itself runs as the plain operation, since a twin may do the work
    of several, whose products nobody would see.

    Parameters
    ----------
    model : Module
        Whose modules are watched; others' products are not counted.

    Yields
    ------
    Count
        It fills as passes are made.
    """
    count = Count()
    path, kinds = [], []

    def around(name, method, call, *args, **kwargs):
        path.append(name)
        kinds.append('backward' if method == 'backward' else 'forward')
        try:
            return call(*args, **kwargs)
        finally:
            path.pop()
            kinds.pop()

    def counted(run, cost):
        def call(*args, **kwargs):
            if path:  # else it is no module of this model that calls
                count.add(tuple(path), kinds[-1], *cost(*args, **kwargs))
            return run(*args, **kwargs)

        return call

    registered = twins()
    others = {}
    for operation, cost in COSTS.items():
        for library in ('numpy', 'cupy'):
            key = operation.key, library
            others[key] = counted(registered.get(key, operation.plain), cost)
    with watch(model, around), substitute(others):
        yield count


# What an operation costs, from its arguments: (Products, sampled multiply-accumulates).


def _linear(x, W, b):
    O, I = W.shape
    return [Product(x.size // I, I, O)], 0


def _linear_backward(dy, cache, need_dx=True):
    _, W = cache
    O, I = W.shape
    rows = dy.size // O
    return [Product(rows, O, I)] * need_dx + [Product(O, rows, I)], 0


def _conv(x, W, *_, stride=1, padding=0, dilation=1):
    kh, kw, I, O = W.shape
    Ho, Wo = (
        ops.conv.conv_size(x.shape[1 + i], W.shape[i], stride, padding, dilation)
        for i in (0, 1)
    )
    return [Product(len(x) * Ho * Wo, kh * kw * I, O)], 0


def _conv2d(x, W, b=None, stride=1, padding=0, dilation=1):
    return _conv(x, W, stride=stride, padding=padding, dilation=dilation)


def _conv_norm_relu(
    x, W, scale, shift, residual=None, relu=True, stride=1, padding=0, dilation=1
):
    return _conv(x, W, stride=stride, padding=padding, dilation=dilation)


def _conv2d_backward(dy, cache, need_dx=True, need_dW=True, need_db=True):
    kh, kw, I, O = cache.W.shape
    pixels, taps = dy.size // O, kh * kw * I
    dx, dW = Product(pixels, O, taps), Product(taps, pixels, O)
    return [dx] * need_dx + [dW] * need_dW, 0


def _conv_norm_relu_backward(dy, cache, need_dx=True, need_dW=True):
    return _conv2d_backward(dy, cache.conv, need_dx, need_dW)


def _attention(q, k, v, p=0.0, key=None):
    N, Nq, M, Cv = q.shape
    Nk = k.shape[1]
    return [Product(Nq, Cv, Nk, N * M), Product(Nq, Nk, Cv, N * M)], 0


def _attention_backward(dy, cache):
    N, Nq, M, Cv = dy.shape
    Nk = cache.k.shape[2]
    products = [
        Product(Nq, Cv, Nk, N * M),  # dA
        Product(Nk, Nq, Cv, N * M),  # dv
        Product(Nq, Nk, Cv, N * M),  # dq
        Product(Nk, Nq, Cv, N * M),  # dk
    ]
    return products, 0


def _core(value, shapes, loc, A):
    return [], 4 * A.size * value.shape[-1]  # four corners


def _core_backward(dy, cache):
    # ∂loss/∂value, and the inner products ⟨dy, value⟩
    return [], 2 * 4 * cache.A.size * dy.shape[-1]


COSTS = {
    ops.linear.linear: _linear,
    ops.linear.linear_backward: _linear_backward,
    ops.conv.conv2d: _conv2d,
    ops.conv.conv2d_backward: _conv2d_backward,
    ops.conv.conv_norm_relu: _conv_norm_relu,
    ops.conv.conv_norm_relu_backward: _conv_norm_relu_backward,
    ops.attention.attention: _attention,
    ops.attention.attention_backward: _attention_backward,
    ops.ms_deform_attn.ms_deform_attn: _core,
    ops.ms_deform_attn.ms_deform_attn_backward: _core_backward,
}
