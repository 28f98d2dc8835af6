"""The gradient check itself: what it passes, catches, and will not judge."""

import numpy as np
import pytest

from ddetr_np.config import Config
from ddetr_np.testing import (
    CASES,
    Case,
    cases,
    check_case,
    check_direction,
    check_gradients,
    check_operations,
    operation,
    run_backward,
)

rng = np.random.default_rng(0)


def check(function, slope, x=0.0, dy=1.0, **options):
    return check_direction(
        lambda t: np.array(function(x + t)), np.array(dy), slope, **options
    )


def test_a_right_slope_passes_to_many_digits():
    for function, slope in ((np.sin, np.cos(0.7)), (np.exp, np.exp(0.7))):
        result = check(function, slope, 0.7)
        assert result.verdict == 'ok'
        assert result.error < 1e-9
        assert result.numeric == pytest.approx(result.analytic, rel=1e-9)


@pytest.mark.parametrize('fault', [1 + 1e-5, 1.001, 2, -1, 0, np.nan, np.inf])
def test_a_wrong_slope_fails(fault):
    assert check(np.sin, fault * np.cos(0.7), 0.7).verdict == 'fail'


def test_a_function_that_varies_quickly_is_followed():
    assert check(lambda x: np.sin(1e4 * x), 1e4 * np.cos(7e3), 0.7).verdict == 'ok'


def test_at_a_kink_nothing_is_said():
    for slope in (0, 0.3, 1):
        result = check(lambda x: np.maximum(x, 0), slope)
        assert result.verdict == 'kink'
    # what no side of the kink has is wrong all the same
    assert check(lambda x: np.maximum(x, 0), 1.6).verdict == 'fail'
    assert check(lambda x: np.maximum(x, 0), -0.6).verdict == 'fail'


@pytest.mark.parametrize('distance', [1e-2, 1e-4, 1e-5])
def test_beside_a_kink_the_step_shrinks(distance):
    for x in (distance, -distance):
        right = float(x > 0)
        assert check(abs, np.sign(x), x).verdict == 'ok'
        assert check(lambda x: np.maximum(x, 0), right, x).verdict == 'ok'
        assert check(lambda x: np.maximum(x, 0), right + 1e-3, x).verdict == 'fail'


def test_a_jump_does_not_pass():
    assert check(lambda x: np.sign(x) + x, 1.0).verdict != 'ok'


def test_a_function_that_is_nowhere_a_number_fails():
    assert check(lambda x: np.full((), np.nan), 0.0).verdict == 'fail'


def test_zero_is_zero():
    result = check(lambda x: np.full((), 5.0), 0.0)
    assert (result.verdict, result.error) == ('ok', 0)
    assert check(lambda x: np.full((), 5.0), 1e-3).verdict == 'fail'


def test_rounding_is_forgiven_and_no_more():
    # a slope of zero that comes out as 1e-16 of a large value
    assert check(lambda x: 1e3 + 0 * x, 1e-14).verdict == 'ok'
    assert check(lambda x: 1e3 + 1e-3 * x, 1.001e-3).verdict == 'fail'


def test_several_outputs_of_which_some_do_not_count():
    def along(t):
        return np.sin([t]), None, np.array(t) ** 2 + 3 * t

    result = check_direction(along, (np.array([2.0]), None, np.array(1.0)), 5.0)
    assert result.verdict == 'ok'


def test_arguments_are_checked_one_by_one():
    x, W = rng.standard_normal((4, 3)), rng.standard_normal((3, 2))
    dy = rng.standard_normal((4, 2))
    right = {'x': dy @ W.T, 'W': x.T @ dy}

    def run(**gradients):
        return check_gradients(
            lambda x, W: x @ W, {'x': x, 'W': W}, gradients, dy, 'product'
        )

    assert [(c.name, c.argument, c.verdict) for c in run(**right)] == [
        ('product', 'x', 'ok'),
        ('product', 'W', 'ok'),
    ]
    wrong = right['x'].copy()
    wrong[2, 1] *= 1.001  # a single entry
    assert [c.verdict for c in run(x=wrong, W=right['W'])] == ['fail', 'ok']
    assert [c.argument for c in run(W=right['W'])] == ['W']


def test_what_cannot_be_checked_is_refused():
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match='x is float32'):
        check_gradients(lambda x: x, {'x': x}, {'x': x}, x)
    x = np.ones(3)
    with pytest.raises(ValueError, match=r'gradient of x is \(2,\)'):
        check_gradients(lambda x: x, {'x': x}, {'x': x[:2]}, x)
    case = Case('', {'x': x}, returns=(None, 'x'))
    with pytest.raises(ValueError, match='returned 1 values'):
        run_backward(lambda dy: dy, case, x, ())


def planted(backward, position, factor):
    """The backward with one of the gradients that it returns scaled."""

    def faulty(dy, *cache, **keywords):
        result = backward(dy, *cache, **keywords)
        if not isinstance(result, tuple):
            return result * factor
        scaled = list(result)
        if scaled[position] is not None:
            scaled[position] = scaled[position] * factor
        return tuple(scaled)

    return faulty


@pytest.mark.parametrize('name', CASES)
def test_a_planted_fault_is_found(name):
    """A tenth of a per cent in any one gradient of any operation, at every case."""
    _, backward = operation(name)
    for case in cases(name):
        for position, argument in enumerate(case.order):
            if argument not in case.inputs:
                continue
            faulty = planted(backward, position, 1.001)
            verdicts = {c.argument: c.verdict for c in check_case(name, case, faulty)}
            assert verdicts.pop(argument) == 'fail', case.label
            assert set(verdicts.values()) <= {'ok'}


def test_operations_at_the_sizes_of_a_configuration():
    config = Config(C=16, M=2, L=3, K=1, Nq=2, ffn=6, num_classes=2)
    names = ['ms_deform_attn.ms_deform_attn', 'linear.linear']
    results = list(check_operations(config, names, seed=3))
    assert {c.verdict for c in results} == {'ok'}
    assert {c.name.split(':')[0] for c in results} == set(names)
    assert cases('linear.linear', config)[0].inputs['W'].shape == (6, 16)
