import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddetr_np.errors import InputError
from ddetr_np.module import Module, Param
from ddetr_np.train import SGD, Cosine, GroupRule, StepLR, Warmup


class Pair(Module):
    def __init__(self):
        self.a, self.b = Param(np.zeros(2)), Param(np.zeros(3))


def optimizer(lr=0.5):
    return SGD(Pair(), lr=lr, groups=[GroupRule(('b',), lr=0.1)])


def rates(opt, schedules, n):
    result = []
    for _ in range(n):
        for schedule in schedules:
            schedule.step()
        result.append(opt.lr[0])
    return result


def test_step():
    opt = optimizer()
    schedule = StepLR(opt, step=3)
    assert opt.lr == [0.5, 0.05]
    assert_allclose(rates(opt, [schedule], 7), [0.5] * 2 + [0.05] * 3 + [0.005] * 2)
    assert_allclose(opt.lr, [0.005, 0.0005])


def test_cosine():
    opt = optimizer()
    schedule = Cosine(opt, steps=4, end=0.2)
    half = math.sqrt(0.5)
    parts = [(1 + half) / 2, 0.5, (1 - half) / 2, 0, 0, 0]
    expected = [0.5 * (0.2 + 0.8 * p) for p in parts]
    assert_allclose(rates(opt, [schedule], 6), expected)


def test_warmup_starts_at_once():
    opt = optimizer()
    schedule = Warmup(opt, steps=4, start=0.2)
    assert_allclose(opt.lr, [0.1, 0.01])
    assert_allclose(rates(opt, [schedule], 5), [0.2, 0.3, 0.4, 0.5, 0.5])
    assert opt.lr == [0.5, 0.05]  # no rounding left behind


def test_schedules_multiply_each_at_its_own_pace():
    opt = optimizer()
    warmup, drop = Warmup(opt, steps=4, start=0.5), StepLR(opt, step=1)
    for _ in range(2):
        warmup.step()
    drop.step()
    assert_allclose(opt.lr, [0.5 * 0.75 * 0.1, 0.05 * 0.75 * 0.1])


@pytest.mark.parametrize(
    'make',
    [
        lambda opt: [StepLR(opt, step=3)],
        lambda opt: [Cosine(opt, steps=8)],
        lambda opt: [Warmup(opt, steps=5), StepLR(opt, step=6)],
    ],
)
def test_restored_exactly(make):
    opt = optimizer()
    schedules = make(opt)
    rates(opt, schedules, 4)
    saved = [s.state_dict() for s in schedules]
    ahead = rates(opt, schedules, 6)
    other = optimizer()
    restored = make(other)
    for schedule, state in zip(restored, saved):
        schedule.load_state_dict(state)
    assert rates(other, restored, 6) == ahead


@pytest.mark.parametrize(
    'make',
    [
        lambda opt: StepLR(opt, step=0),
        lambda opt: Cosine(opt, steps=0),
        lambda opt: Warmup(opt, steps=3, start=0),
    ],
)
def test_impossible_settings(make):
    with pytest.raises(InputError, match='expected'):
        make(optimizer())


@pytest.mark.oracle
def test_against_pytorch():
    torch = pytest.importorskip('torch')
    their = torch.optim.lr_scheduler
    cases = [
        (
            lambda opt: [StepLR(opt, step=3)],
            lambda opt: [their.StepLR(opt, 3)],
        ),
        (
            lambda opt: [Cosine(opt, steps=10)],
            lambda opt: [their.CosineAnnealingLR(opt, 10)],
        ),
        (
            lambda opt: [Warmup(opt, steps=4, start=0.25), StepLR(opt, step=6)],
            lambda opt: [their.LinearLR(opt, 0.25, 1, 4), their.StepLR(opt, 6)],
        ),
    ]
    for ours, theirs in cases:
        opt = optimizer()
        torch_opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        torch_schedules = theirs(torch_opt)
        expected = []
        for _ in range(10):
            torch_opt.step()
            for schedule in torch_schedules:
                schedule.step()
            expected.append(torch_opt.param_groups[0]['lr'])
        assert_allclose(rates(opt, ours(opt), 10), expected, rtol=1e-12, atol=1e-15)
