"""Watching a model's modules at work; no module has a flag for it."""

import collections
import contextlib
import functools

from ..module import Module

METHODS = ('forward', 'infer', 'backward')


def named_modules(model):
    """Return [(name, module)] of everything inside, itself first, each module once.

    Names are the published ones; of a shared module's the first counts. A part that
    has none is called by its class: 'backbone.0.body.(Stem)'; the second of a class in
    one place has a number: '(AddNorm 2)'.

    Parameters
    ----------
    model : Module
        Its own name is ''.

    Returns
    -------
    list of (str, Module)
        Depth first; those without a published name come last.
    """
    found, unnamed, called = {}, [], collections.Counter()

    def walk(name, module):
        if id(module) in found:
            return
        found[id(module)] = name, module
        prefix = f'{name}.' if name else ''
        for part, child in module.children():
            if isinstance(child, Module):
                walk(prefix + part, child)
        for attribute, value in vars(module).items():
            if attribute.startswith('_'):
                unnamed.extend((prefix, part) for part in _modules(value))

    walk('', model)
    for prefix, part in unnamed:  # grows while parts of parts are found
        if id(part) not in found:
            kind = type(part).__name__
            called[prefix, kind] += 1
            if (number := called[prefix, kind]) > 1:
                kind = f'{kind} {number}'
            walk(f'{prefix}({kind})', part)
    return list(found.values())


def _modules(value):
    if isinstance(value, Module):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _modules(item)


@contextlib.contextmanager
def watch(model, around):
    """Put a function around every call of a module's methods within the block.

    Parameters
    ----------
    model : Module
        With all that is inside, as `named_modules` lists it.
    around : callable
        Called as `around(name, method, call, *args, **kwargs)` with the module's name
        and 'forward', 'infer' or 'backward'; it returns `call(*args, **kwargs)`.

    Yields
    ------
    None
        The methods are the module's own again after the block, whatever it raised.
    """
    before = []
    for name, module in named_modules(model):
        own = vars(module)
        for method in METHODS:
            if hasattr(module, method):
                before.append((own, method, own.get(method)))
                # on the object itself: others of its class are not disturbed
                own[method] = functools.partial(
                    around, name, method, getattr(module, method)
                )
    try:
        yield
    finally:
        for own, method, call in before:
            if call is None:
                del own[method]
            else:
                own[method] = call
