"""Where a NaN or infinity came from: the forward pass run again, watched."""

import copy
import functools
from typing import NamedTuple

import numpy as np

from ..backend import get_xp
from ..module import Module
from .add_norm import AddNorm
from .feed_forward import FeedForward


class NotFinite(NamedTuple):
    """The first tensor that is not finite, in the order of computation.

    Parameters
    ----------
    tensor : str
        'the pictures', 'input', 'output', or the published name of a Param.
    layer : str
        Published name of the layer: the one with the Param, or that the tensor goes
        into or comes out of; '' for the pictures.
    picture : int or None
        The first picture of the batch that it shows in; None for a Param.
    """

    tensor: str
    layer: str
    picture: int | None

    def __str__(self):
        if self.picture is None:
            return f'the weight {self.tensor} is not finite'
        where = f', picture {self.picture} of the batch'
        if not self.layer:
            return f'{self.tensor} are not finite{where}'
        return (
            f'the {self.tensor} of {self.layer} is not finite{where}; all before it '
            'and the weights it was made with are'
        )


class _FoundError(Exception):
    """Ends the pass that is watched."""


def first_not_finite(model, images, mask=None, train=False, step=0, held=None):
    """Run the forward pass again and find the first tensor with a NaN or infinity.

    The guess of +∞ for tokens without a proposal is no such tensor. Learning batch
    norms do not have their statistics moved.

    Parameters
    ----------
    model : DeformableDETR
        Left as it is: a copy of its modules runs.
    images, mask, train, step, held
        As in `DeformableDETR.forward`.

    Returns
    -------
    NotFinite or None
    """
    xp = get_xp(images)
    bad = _first_picture(images)
    if bad is not None:
        return NotFinite('the pictures', '', bad)
    # other modules around the same Params: who else uses the model is not disturbed
    same = {id(p): p for _, p in model.named_params() if not p.buffer}
    watched = copy.deepcopy(model, same)
    seen = {id(watched)}
    for name, module in _named_modules(watched):
        if hasattr(module, 'forward') and id(module) not in seen:
            seen.add(id(module))
            _watch(module, name, watched)
    for name, module in _unnamed_modules(watched):
        _watch(module, name, watched)
    try:
        with np.errstate(all='ignore'):
            # 'none' would take other roads, which fuse what is to be told apart
            watched.forward(xp.asarray(images), mask, train, 'inputs', step, held)
    except _FoundError as found:
        return found.args[0]
    return None


def _watch(module, name, model):
    forward = module.forward
    holders = [n for n, m in _named_modules(model) if not hasattr(m, 'forward')]

    def watch(*args, **keywords):
        bad = _first_picture(args)
        if bad is not None:
            # what no module's forward pass stands for: Params that a module around
            # this one uses itself, and those of modules that only hold them
            weight = _weight(
                model, lambda m, _: name.startswith(f'{m}.') or m in holders
            )
            raise _FoundError(weight or NotFinite('input', name, bad))
        result = forward(*args, **keywords)
        bad = _first_picture(result[0])
        if bad is not None:
            inside = {id(p) for _, p in module.named_params()}
            weight = _weight(model, lambda _, p: id(p) in inside)
            raise _FoundError(weight or NotFinite('output', name, bad))
        return result

    module.forward = watch
    # what is frozen is called by this: no road of its own, past what is watched
    module.infer = functools.partial(Module.infer, module)


def _weight(model, among):
    """The first Param that is not finite, among those of (owner's name, Param)."""
    for name, p in model.named_params():
        owner = name.rpartition('.')[0]
        if among(owner, p) and not get_xp(p.data).isfinite(p.data).all():
            return NotFinite(name, owner, None)
    return None


def _named_modules(module, prefix=''):
    """Yield (published name, module) of all inside, the outer ones first."""
    yield prefix, module
    for name, child in module.children():
        if isinstance(child, Module):
            yield from _named_modules(child, f'{prefix}.{name}' if prefix else name)


def _unnamed_modules(model):
    """Yield (published name, module) of those that take several modules' work.

    The stem, each layer's two linear maps, its norms with what they add: they go by the
    first name that is published.
    """
    yield 'backbone.0.body.conv1', model.backbone[0].body.stem
    names = {id(module): name for name, module in _named_modules(model)}
    for _, module in _named_modules(model):
        for inside in vars(module).values():
            if isinstance(inside, FeedForward):
                yield names[id(inside.linear1)], inside
            elif isinstance(inside, AddNorm):
                yield names[id(inside.norm)], inside


def _first_picture(things):
    """Return the index of the first picture that is not finite in some arrays."""
    if isinstance(things, (list, tuple)):
        found = [_first_picture(thing) for thing in things]
        return min((i for i in found if i is not None), default=None)
    if getattr(getattr(things, 'dtype', None), 'kind', '') != 'f':
        return None
    finite = get_xp(things).isfinite(things)
    if finite.all():
        return None
    return int(finite.reshape(len(finite), -1).all(1).argmin())
