"""The scale of the loss in mixed precision, and the steps it leaves out."""

import math

import numpy as np
import pytest

import ddetr_np
from ddetr_np import Criterion, InputError, NotFiniteError
from ddetr_np.data.loader import Batch
from ddetr_np.testing_model import random_batch
from ddetr_np.train.loop import learn
from ddetr_np.train.loss_scale import LossScale
from ddetr_np.train.state import State
from ddetr_np.train.team import Team


def test_it_rises_and_falls():
    scale = LossScale(8.0, patience=3)
    seen = []
    for finite in (True, True, False, True, True, True, True):
        scale.count(finite)
        seen.append(scale.scale)
    assert seen == [8, 8, 4, 4, 4, 8, 8]
    assert scale.skipped == 1
    other = LossScale(8.0, patience=3)
    other.load_state_dict(scale.state_dict())
    for s in (scale, other):
        s.count(True)
        s.count(True)
    assert other.state_dict() == scale.state_dict() == {
        'scale': 16.0, 'good': 0, 'skipped': 1
    }


def test_it_ends():
    scale = LossScale(2 * LossScale.LEAST)
    scale.count(False)
    with pytest.raises(NotFiniteError, match='though the loss is scaled by'):
        scale.count(False)


@pytest.fixture
def made(tiny, small):
    fields = tiny | {'dropout': 0.0}
    models = [ddetr_np.build_model('two_stage', seed=2, **fields) for _ in range(2)]
    settings = small(ema=0.0, warmup=0, lr=1e-3)
    states = [
        State(settings, models[0], 3),
        State(settings.replace(precision='mixed'), models[1], 3),
    ]
    images, mask, targets = random_batch(4, ((48, 64),) * 2, (2, 3))
    return states, Batch(images.astype('float32'), mask, targets, ['a', 'b'])


def steps(state, batch, n):
    team = Team(state.model, Criterion(state.model.config))
    return [learn(state, team, [batch]) for _ in range(n)]


def test_it_learns_as_single_precision_does(made):
    (single, mixed), batch = made
    expected, got = (steps(state, batch, 6) for state in (single, mixed))
    for a, b in zip(got, expected):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-2)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=0.1)
        assert a['loss_scale'] == 2.0**16
        assert 'loss_scale' not in b
    assert got[-1]['loss'] < 0.95 * got[0]['loss']
    assert all(p.data.dtype == 'float32' for _, p in mixed.model.named_params())


def test_too_large_a_scale_costs_steps_and_nothing_else(made):
    (_, state), batch = made
    state.loss_scale.scale = 2.0**26
    before = [p.data.copy() for p in state.model.params()]
    first = steps(state, batch, 1)[0]
    assert first['grad_norm'] == math.inf
    for p, old in zip(state.model.params(), before):
        np.testing.assert_array_equal(p.data, old)
    assert state.optimizer.steps == 0
    assert state.step == 1
    records = steps(state, batch, 12)
    made_steps = [r for r in records if r['grad_norm'] < math.inf]
    assert state.loss_scale.skipped == 1 + len(records) - len(made_steps)
    assert state.optimizer.steps == len(made_steps) > 0
    assert made_steps[-1]['loss'] < first['loss']


def test_a_loss_that_is_not_finite_still_stops(made):
    (_, state), batch = made
    batch.images[0] = np.nan
    with pytest.raises(NotFiniteError, match='the pictures are not finite'):
        steps(state, batch, 1)
    assert state.loss_scale.skipped == 0


def test_refused(small, train):
    with pytest.raises(InputError, match='precision is .mixed.; it must be single'):
        small(precision='mixed', dtype='float64')
    with pytest.raises(InputError, match='which is for a GPU'):
        train(small(precision='mixed'))
