"""Parameters with the published checkpoint's names, and the modules that own them.

A `Module` owns `Param`s, calls operations and hands its cache upward; it remembers
nothing of a call itself, so that one module may be called many times.
"""

import difflib
from typing import NamedTuple

import numpy as np

from .backend import device_of, get_xp, to_device, to_host
from .errors import InputError


class Run(NamedTuple):
    """What a forward pass is run for.

    Parameters
    ----------
    train : bool
        Dropout and, where batch norms learn, the batch's statistics are on.
    seed, step : int
        The key of dropout's random numbers, with each dropout's own stream.
    again : bool
        A recomputation for the backward pass: running statistics have been updated.
    """

    train: bool = False
    seed: int = 0
    step: int = 0
    again: bool = False


EVAL = Run()


class Param:
    """An array of weights and its gradient.

    Parameters
    ----------
    data : array
        The weights, on any device; kept, not copied.
    learns : bool
        False for what is frozen: its gradient is not computed.
    buffer : bool
        A statistic or constant that a checkpoint holds though no optimiser sees it.
    conv : bool
        A convolution's kernel: (kh, kw, I, O) here, (O, I, kh, kw) in checkpoints.
    """

    __slots__ = ('_grad', 'buffer', 'conv', 'data', 'learns')

    def __init__(self, data, learns=True, buffer=False, conv=False):
        self.data = data
        self.learns = learns and not buffer
        self.buffer = buffer
        self.conv = conv
        self._grad = None

    @property
    def grad(self):
        """The gradient, like `data`; zeros until something has been added."""
        if self._grad is None:
            self._grad = get_xp(self.data).zeros_like(self.data)
        return self._grad

    @grad.setter
    def grad(self, value):
        self._grad = value

    def zero_grad(self):
        """Set the gradient to zero, in place."""
        if self._grad is not None:
            self._grad[...] = 0

    @property
    def shape(self):
        """The shape in checkpoints."""
        s = self.data.shape
        return (s[3], s[2], s[0], s[1]) if self.conv else s

    def publish(self, array):
        """Return an array shaped like `data`, on the host, in checkpoint layout.

        Parameters
        ----------
        array : array
            Like `data`: the weights or a gradient, on any device.

        Returns
        -------
        numpy.ndarray
            A contiguous copy; its shape is `shape`.
        """
        array = to_host(array)
        if self.conv:
            array = array.transpose(3, 2, 0, 1)
        return np.array(array, order='C')

    def load(self, array):
        """Overwrite `data` by an array in the checkpoint's layout.

        Parameters
        ----------
        array : array
            On the host; its shape is `shape`, its dtype any.
        """
        array = np.asarray(array)
        if self.conv:
            array = array.transpose(2, 3, 1, 0)
        self.data[...] = get_xp(self.data).asarray(array, dtype=self.data.dtype)


def _named(name, value):
    if isinstance(value, (Param, Module)):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _named(f'{name}.{i}', item)


class LoadReport(NamedTuple):
    """What `load_state_dict` did: lists of names, and of (name, expected, came).

    Parameters
    ----------
    loaded : list of str
        Names whose arrays were taken over.
    missing : list of str
        Params that nothing was given for.
    unexpected : list of str
        Names given that the model lacks.
    wrong_shape : list of (str, tuple, tuple)
        Name, the model's shape and the one that came.
    """

    loaded: list
    missing: list
    unexpected: list
    wrong_shape: list


class Module:
    """A part of the model. Attributes are named as in the published checkpoints.

    An attribute with a leading underscore is another road to a part that already has
    its name, and has no name of its own.
    """

    def children(self):
        """Yield (name, Param or Module) of everything directly inside, in order.

        Yields
        ------
        name : str
            The attribute's; with '.0', '.1', … for the items of a list or tuple.
        child : Param or Module
            Other attributes are passed over.
        """
        for name, value in vars(self).items():
            if not name.startswith('_'):
                yield from _named(name, value)

    def modules(self, kind=None):
        """Yield every module inside, itself first, each once; of one class if given.

        Parameters
        ----------
        kind : type, optional
            Only instances of this class; all modules if not given.

        Yields
        ------
        Module
            A module before those inside it.
        """
        seen = set()
        todo = [self]
        while todo:
            module = todo.pop(0)
            if id(module) in seen:
                continue
            seen.add(id(module))
            if kind is None or isinstance(module, kind):
                yield module
            todo[:0] = [c for _, c in module.children() if isinstance(c, Module)]

    def named_params(self, aliases=False):
        """Yield (dotted name, Param), a shared one once under the first of its names.

        Parameters
        ----------
        aliases : bool
            Yield a shared Param under each of its names.

        Yields
        ------
        name : str
            As in checkpoints.
        param : Param
            Frozen ones and buffers too.
        """
        seen = set()
        for name, param in self._walk(''):
            if aliases or id(param) not in seen:
                seen.add(id(param))
                yield name, param

    def _walk(self, prefix):
        for name, child in self.children():
            if isinstance(child, Param):
                yield prefix + name, child
            else:
                yield from child._walk(f'{prefix}{name}.')

    def infer(self, *inputs, run=EVAL):
        """Return what `forward` does, without a cache: nothing will go back.

        Parameters
        ----------
        *inputs
            What `forward` takes.
        run : Run
            What the pass is for.

        Returns
        -------
        y
            The first of what `forward` returns.
        """
        return self.forward(*inputs, run=run)[0]

    def params(self):
        """Return the Params that learn, each once.

        Returns
        -------
        list of Param
            In the order of `named_params`.
        """
        return [p for _, p in self.named_params() if p.learns]

    def zero_grad(self):
        """Set every gradient to zero, in place."""
        for _, param in self.named_params():
            param.zero_grad()

    def state_dict(self):
        """Return {published name: array in the published layout}, aliases included.

        Returns
        -------
        dict
            Contiguous copies on the host; aliases share one.
        """
        return self._published(lambda p: p.data)

    def grad_dict(self):
        """Return {published name: gradient in the published layout} of what learns.

        Returns
        -------
        dict
            Contiguous copies on the host; aliases share one.
        """
        return self._published(lambda p: p.grad, learns=True)

    def _published(self, array_of, learns=False):
        arrays, result = {}, {}
        for name, p in self.named_params(aliases=True):
            if p.learns or not learns:
                if id(p) not in arrays:  # aliases share one copy
                    arrays[id(p)] = p.publish(array_of(p))
                result[name] = arrays[id(p)]
        return result

    @property
    def device(self):
        """The device its Params are on: 'cpu', 'cuda:0', … ('cpu' if there is none)."""
        p = next((p for _, p in self.named_params()), None)
        return 'cpu' if p is None else device_of(p.data)

    def to(self, device):
        """Move every Param to a device ('cpu', 'cuda:0', …); return self.

        Parameters
        ----------
        device : str
            As `to_device` takes it.

        Returns
        -------
        Module
            The same; gradients have moved too.
        """
        for _, p in self.named_params():
            p.data = to_device(p.data, device)
            p._grad = None if p._grad is None else to_device(p._grad, device)
        return self

    def load_state_dict(self, mapping, strict=True):
        """Overwrite the Params by arrays with published names and layouts.

        Of a shared Param's names one is enough; where several are given, the last in
        the model's order counts, as in the published code. Nothing is changed if an
        error is raised.

        Parameters
        ----------
        mapping : dict
            Published name → array. `num_batches_tracked` is passed over.
        strict : bool
            Refuse missing, unexpected and wrong-shaped names; else leave those Params
            as they are.

        Returns
        -------
        LoadReport
            Names loaded, missing, unexpected; (name, expected, came) of wrong shapes.

        Raises
        ------
        InputError
            With `strict`, listing every name that does not fit.
        """
        names = dict(self.named_params(aliases=True))
        given = {
            id(names[name])
            for name, array in mapping.items()
            if name in names and np.shape(array) == names[name].shape
        }
        wrong = [
            (name, p.shape, np.shape(mapping[name]))
            for name, p in names.items()
            if name in mapping and np.shape(mapping[name]) != p.shape
        ]
        wrong_params = {id(names[name]) for name, _, _ in wrong}
        missing = [
            name
            for name, p in self.named_params()
            if id(p) not in given and id(p) not in wrong_params
        ]
        unexpected = [
            name
            for name in mapping
            if name not in names and not name.endswith('num_batches_tracked')
        ]
        if strict and (missing or unexpected or wrong):
            raise InputError(_mismatch(missing, unexpected, wrong))
        loaded = []
        for name, p in names.items():
            if name in mapping and np.shape(mapping[name]) == p.shape:
                p.load(mapping[name])
                loaded.append(name)
        return LoadReport(loaded, missing, unexpected, wrong)


def _mismatch(missing, unexpected, wrong):
    lines = ['the tensors do not fit the model']
    suggested = 0
    for name in missing:
        near = []
        if unexpected and suggested < 20:  # the comparison is slow; 20 show the pattern
            near = difflib.get_close_matches(name, unexpected, 1, 0.6)
            suggested += 1
        lines.append(f'  missing: {name}' + ''.join(f' (near: {n})' for n in near))
    lines += [f'  unexpected: {name}' for name in unexpected]
    lines += [
        f'  wrong shape: {name} is {came}, the model has {expected}'
        for name, expected, came in wrong
    ]
    lines.append(
        'build the model with the sizes of the weights (load_model reads them off the '
        'file), or pass strict=False to load what fits'
    )
    return '\n'.join(lines)


class Inputs(NamedTuple):
    """In place of a module's cache: what recomputing it takes.

    Parameters
    ----------
    inputs : tuple
        What `forward` was called with.
    run : Run
        What that pass was for.
    """

    inputs: tuple
    run: Run


KEEP = ('all', 'inputs', 'none')
NOTHING_KEPT = (
    "nothing was kept for a backward pass; call forward with keep='all' or "
    "keep='inputs'"
)


def forward_keeping(module, keep, *inputs, run=EVAL):
    """Call `module.forward` and keep of it what the container was told to.

    Parameters
    ----------
    module : Module
        One whose `forward` takes `run`.
    keep : {'all', 'inputs', 'none'}
        The whole cache; the inputs, to recompute it; or nothing, for inference.
    *inputs
        What the module's `forward` takes.
    run : Run
        What the pass is for.

    Returns
    -------
    y
        What the module returns.
    cache
        Its cache, an `Inputs`, or None.
    """
    if keep == 'none':
        return module.infer(*inputs, run=run), None
    y, cache = module.forward(*inputs, run=run)
    return y, Inputs(inputs, run) if keep == 'inputs' else cache


def recall(module, cache):
    """Return the module's cache, recomputed bit for bit if only its inputs were kept.

    Parameters
    ----------
    module : Module
        The one that was called.
    cache
        What `forward_keeping` returned as cache.

    Returns
    -------
    cache
        As the module's `forward` makes it.

    Raises
    ------
    ValueError
        The forward pass was told to keep nothing.
    """
    if isinstance(cache, Inputs):
        _, cache = module.forward(*cache.inputs, run=cache.run._replace(again=True))
    if cache is None:
        raise ValueError(NOTHING_KEPT)
    return cache
