"""Every operation's gradient, and what all operations promise of their arrays."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.testing import (
    CASES,
    cases,
    check_case,
    operation,
    run_backward,
    run_forward,
)

EVERY_CASE = [
    pytest.param(name, case, id=f'{name}: {case.label}')
    for name in CASES
    for case in cases(name)
]


def arrays(*things):
    """The arrays in arguments and caches, however deep."""
    for thing in things:
        if isinstance(thing, np.ndarray):
            yield thing
        elif isinstance(thing, dict):
            yield from arrays(*thing.values())
        elif isinstance(thing, (tuple, list)):
            yield from arrays(*thing)
        elif dataclasses.is_dataclass(thing):
            yield from arrays(*vars(thing).values())


def cast(case, dtype):
    """The case with every floating array, constants included, in another precision."""

    def turn(a):
        floating = isinstance(a, np.ndarray) and a.dtype.kind == 'f'
        return a.astype(dtype) if floating else a

    return case._replace(
        inputs={k: turn(a) for k, a in case.inputs.items()},
        settings={k: turn(a) for k, a in case.settings.items()},
    )


def run(name, case, dy=None):
    forward, backward = operation(name)
    y, cache = run_forward(forward, case)
    if dy is None:
        dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
    return y, cache, run_backward(backward, case, dy, cache)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('name', CASES)
def test_gradient_in_a_random_direction(name, seed):
    for case in cases(name, seed=seed):
        for check in check_case(name, case, seed=seed, tol=1e-6):
            assert check.verdict == 'ok', check
            assert check.error <= 1e-6


@pytest.mark.parametrize(('name', 'case'), EVERY_CASE)
def test_single_precision_stays_single(name, case):
    y, cache, gradients = run(name, case)
    y32, cache32, gradients32 = run(name, cast(case, np.float32))
    assert y32.dtype == np.float32
    for a in arrays(cache32):
        assert a.dtype.kind != 'f' or a.dtype == np.float32
    assert_allclose(y32, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())
    for argument, gradient in gradients.items():
        assert gradients32[argument].dtype == np.float32, argument
        # points near a border may fall on either side of it in single precision: the
        # cases keep 0.1 pixels away
        scale = np.abs(gradient).max()
        assert_allclose(gradients32[argument], gradient, 1e-3, 1e-3 * scale)


@pytest.mark.parametrize(('name', 'case'), EVERY_CASE)
def test_inputs_and_caches_are_never_written_to(name, case):
    _, _, expected = run(name, case)
    for a in arrays(case.inputs, case.settings):
        a.flags.writeable = False
    try:
        forward, backward = operation(name)
        y, cache = run_forward(forward, case)
        dy = np.random.default_rng(0).standard_normal(y.shape)
        for a in arrays(y, dy, cache):
            a.flags.writeable = False
            if a.base is not None:
                a.base.flags.writeable = False
        first = run_backward(backward, case, dy, cache)
        again = run_backward(backward, case, dy, cache)
    finally:
        for a in arrays(case.inputs, case.settings):
            a.flags.writeable = True
    for argument, gradient in expected.items():
        assert_array_equal(first[argument], gradient)
        assert_array_equal(again[argument], gradient)


@pytest.mark.parametrize(('name', 'case'), EVERY_CASE)
def test_arrays_need_not_be_contiguous(name, case):
    def spread(a):
        """The same numbers, every second of a larger array, in Fortran order."""
        if not isinstance(a, np.ndarray) or a.ndim == 0:
            return a
        wide = np.full([2 * n for n in a.shape], 99, a.dtype, order='F')
        view = wide[(slice(None, None, 2),) * a.ndim]
        view[...] = a
        return view

    y, _, gradients = run(name, case)
    strange = case._replace(
        inputs={k: spread(a) for k, a in case.inputs.items()},
        settings={k: spread(a) for k, a in case.settings.items()},
    )
    dy = spread(np.random.default_rng(0).standard_normal(y.shape))
    y2, _, gradients2 = run(name, strange, dy)
    assert_allclose(y2, y, rtol=1e-11, atol=1e-12 * np.abs(y).max())
    for argument, gradient in gradients.items():
        scale = np.abs(gradient).max()
        assert_allclose(gradients2[argument], gradient, 1e-11, 1e-11 * scale)


@pytest.mark.parametrize(('name', 'case'), EVERY_CASE)
def test_backward_is_linear_in_dy(name, case):
    y, _, gradients = run(name, case)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    other = np.random.default_rng(1).standard_normal(y.shape)
    _, _, of_other = run(name, case, other)
    _, _, of_both = run(name, case, 2 * dy - 3 * other)
    for argument, gradient in gradients.items():
        expected = 2 * gradient - 3 * of_other[argument]
        scale = np.abs(gradient).max() + np.abs(of_other[argument]).max()
        assert_allclose(of_both[argument], expected, 1e-10, 1e-12 * scale)
