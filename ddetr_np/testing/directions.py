"""The gradient check by random directions: ⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩.

The left side is measured by finite differences of the forward pass, the right one is
what the backward pass returns. One direction v for each argument is enough, and takes
no Jacobian: at 1,025 channels that would be 2 GB. Whole models are checked so, too.

The differences are central, at steps that shrink by four until two successive
Richardson extrapolations agree. Truncation is then far below the tolerance, and a place
that is not smooth (a pixel's border, the zero of a ReLU, a tie of a maximum) is left
behind, or found out and reported as a kink. Work in float64.
"""

import math
from typing import NamedTuple

import numpy as np

from ..backend import get_xp

TOLERANCE = 1e-6
STEP = 2.0**-8
SHRINK = 4
STEPS = 9  # down to 6e-8: below, rounding outweighs what is left of the truncation


class GradientCheck(NamedTuple):
    """One argument's verdict.

    Parameters
    ----------
    name : str
        The operation or module, and the case.
    argument : str
        The input or part whose gradient this is.
    numeric : float
        ⟨dy, J v⟩ by finite differences.
    analytic : float
        ⟨Jᵀ dy, v⟩ by the backward pass.
    error : float
        |numeric − analytic| over the larger of both.
    verdict : {'ok', 'fail', 'kink'}
        'kink': they differ, but no more than the one-sided slopes do, or than the slope
        does from step to step. The point says nothing then; choose another.
    """

    name: str
    argument: str
    numeric: float
    analytic: float
    error: float
    verdict: str


class _Slope(NamedTuple):
    value: float
    spread: float  # from one extrapolation to the next
    jump: float  # slope ahead minus slope behind, extrapolated to a step of 0
    rounding: float


def check_direction(
    along, dy, analytic, name='', argument='', tol=TOLERANCE, step=STEP
):
    """Compare ⟨dy, d/dt along(t)⟩ at t = 0 with what the backward pass says it is.

    Parameters
    ----------
    along : callable
        t ↦ y, the outputs at t along the direction: a float64 array or a tuple of them.
        It may not write to an array that it returned before.
    dy : array or tuple of arrays
        Like y; None where an output does not count.
    analytic : float
        ⟨Jᵀ dy, v⟩.
    name, argument : str
        For the result.
    tol : float
        Largest relative error that is right. Where the slope is so small that rounding
        hides it, what rounding leaves of it is forgiven.
    step : float
        The first, largest t. Start lower where kinks are dense, as in whole models.

    Returns
    -------
    GradientCheck
    """
    slope = _measure(along, dy, tol, step)
    analytic = float(analytic)
    difference = abs(slope.value - analytic)
    scale = max(abs(slope.value), abs(analytic), slope.rounding / tol)
    error = difference / scale if difference else 0.0
    if error <= tol:
        verdict = 'ok'
    elif difference <= max(3 * slope.spread, abs(slope.jump)):
        verdict = 'kink'
    else:  # NaN ends here too
        verdict = 'fail'
    return GradientCheck(name, argument, slope.value, analytic, error, verdict)


def _measure(along, dy, tol, step):
    """Return the _Slope with the smallest spread of the steps tried."""
    here = along(0.0)
    size = math.sqrt(_inner(dy, here, power=2))
    best = None
    central, ends, richardson = [], [], []
    for k in range(STEPS):
        h = step / SHRINK**k
        ahead, behind = along(h), along(-h)
        # subtract before summing: the sums are large, their difference small
        central.append(_inner(dy, ahead, behind) / (2 * h))
        ends.append((_inner(dy, ahead, here) - _inner(dy, here, behind)) / h)
        if k == 0:
            continue
        # central differences err by h², one-sided ones' difference shrinks with h
        r = SHRINK**2
        richardson.append((r * central[-1] - central[-2]) / (r - 1))
        jump = (SHRINK * ends[-1] - ends[-2]) / (SHRINK - 1)
        if k == 1:
            continue
        spread = abs(richardson[-1] - richardson[-2])
        rounding = np.finfo(np.float64).eps * size / h
        slope = _Slope(richardson[-1], spread, jump, rounding)
        if best is None or not best.spread <= spread:
            best = slope
        if spread <= 1e-2 * tol * abs(slope.value):
            break
    return best


def _inner(dy, y, minus=None, power=1):
    """Σ (dy (y − minus))^power over all outputs, as a float."""
    if isinstance(dy, (tuple, list)):
        minus = [None] * len(dy) if minus is None else minus
        parts = (
            _inner(d, a, b, power) for d, a, b in zip(dy, y, minus) if d is not None
        )
        return sum(parts)
    difference = y if minus is None else y - minus
    return float(((dy * difference) ** power).sum())


def check_gradients(
    function, inputs, gradients, dy, name='', seed=0, tol=TOLERANCE, step=STEP
):
    """Check the gradient of each argument in a random direction of its own.

    Parameters
    ----------
    function : callable
        Called with the inputs by name; returns y, an array or a tuple of arrays.
    inputs : dict
        Name → float64 array.
    gradients : dict
        Name → Jᵀ dy for that input; those not named are not checked.
    dy : array or tuple of arrays
        Like y.
    name : str
        For the results and messages.
    seed : int
        Of the directions.
    tol, step : float
        As for `check_direction`.

    Returns
    -------
    list of GradientCheck

    Raises
    ------
    ValueError
        An input is not float64 or a gradient is not shaped like its input.
    """
    rng = np.random.default_rng(seed)
    checks = []
    for argument, gradient in gradients.items():
        x = inputs[argument]
        if x.dtype != np.float64:
            raise ValueError(
                f'{name}: {argument} is {x.dtype}; finite differences need float64'
            )
        if gradient.shape != x.shape:
            raise ValueError(
                f'{name}: the gradient of {argument} is {gradient.shape}, '
                f'{argument} itself {x.shape}'
            )
        v = get_xp(x).asarray(rng.standard_normal(x.shape))

        def along(t, x=x, v=v, argument=argument):
            return function(**{**inputs, argument: x + t * v})

        analytic = float((gradient * v).sum())
        checks.append(check_direction(along, dy, analytic, name, argument, tol, step))
    return checks
