"""The check of every operation in `ops`."""

import numpy as np

from .. import ops
from ..backend import get_xp
from .directions import TOLERANCE, check_gradients
from .table import CASES, cases


def operation(name):
    """Return (forward, backward) of an operation in `ops`, as 'module.function'.

    Parameters
    ----------
    name : str
        'module.function', as in `CASES`.

    Returns
    -------
    forward : callable
        That function.
    backward : callable
        Its `*_backward` in the same module.
    """
    module, function = name.rsplit('.', 1)
    module = getattr(ops, module)
    return getattr(module, function), getattr(module, f'{function}_backward')


def run_forward(forward, case, **inputs):
    """Return y, and the cache in a tuple, which is empty where there is none.

    Parameters
    ----------
    forward : callable
        An operation of `ops`.
    case : Case
        Whose inputs and settings it is called with.
    **inputs
        Arrays in place of the case's inputs of these names.

    Returns
    -------
    y : array
        The operation's output.
    cache : tuple
        Of length 1 or 0.
    """
    result = forward(**{**case.inputs, **inputs}, **case.settings)
    return (result[0], result[1:2]) if isinstance(result, tuple) else (result, ())


def run_backward(backward, case, dy, cache):
    """Return {input: gradient}.

    Parameters
    ----------
    backward : callable
        Called with dy, the cache if there is one, and the case's keywords.
    case : Case
        Says whose gradients are returned, in what order.
    dy : array
        Like y.
    cache : tuple
        From `run_forward`.

    Returns
    -------
    dict
        Name → array like that input; gradients of what is no input are left out.

    Raises
    ------
    ValueError
        The backward returns other gradients than the case says.
    """
    result = backward(dy, *cache, **case.backward)
    result = result if isinstance(result, tuple) else (result,)
    expected = [name is not None for name in case.order]
    if [g is not None for g in result] != expected:
        raise ValueError(
            f'{backward.__name__} returned {len(result)} values of which '
            f'{sum(g is not None for g in result)} are gradients; '
            f'expected {case.order}'
        )
    return {name: g for name, g in zip(case.order, result) if name in case.inputs}


def check_case(name, case, backward=None, seed=0, tol=TOLERANCE):
    """Check one case of an operation.

    Parameters
    ----------
    name : str
        'module.function' in `ops`.
    case : Case
        The inputs to check it at.
    backward : callable, optional
        Checked in place of the operation's own.
    seed : int
        Of dy and the directions.
    tol : float
        As for `check_direction`.

    Returns
    -------
    list of GradientCheck
        One for each gradient.
    """
    forward, own = operation(name)
    y, cache = run_forward(forward, case)
    dy = np.random.default_rng([seed, 1]).standard_normal(y.shape)
    dy = get_xp(y).asarray(dy)
    gradients = run_backward(backward or own, case, dy, cache)

    def function(**inputs):
        return run_forward(forward, case, **inputs)[0]

    label = f'{name}: {case.label}'
    return check_gradients(function, case.inputs, gradients, dy, label, seed, tol)


def check_operations(
    config=None, names=None, seed=0, tol=TOLERANCE, device='cpu'
):
    """Check every operation that has a backward, at the sizes of a configuration.

    Parameters
    ----------
    config : Config, optional
        Its C, M, L, K, Nq, ffn and num_classes are used; small odd ones if not given.
    names : iterable of str, optional
        Only these operations, as 'module.function'.
    seed : int
        Of inputs and directions.
    tol : float
        As for `check_direction`.
    device : str
        Where they run: 'cpu', 'cuda:0', …

    Yields
    ------
    GradientCheck
    """
    for name in CASES if names is None else names:
        for case in cases(name, config, seed):
            yield from check_case(name, case.to(device), seed=seed, tol=tol)
