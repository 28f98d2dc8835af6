"""Batches of a step side by side in processes: the same bits as one after another."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import ddetr_np
from ddetr_np import Criterion, InputError, NotFiniteError
from ddetr_np.data.loader import Batch
from ddetr_np.nn.layers import BatchNorm
from ddetr_np.testing_model import random_batch, randomise
from ddetr_np.train import team as team_module
from ddetr_np.train.loop import Interrupted
from ddetr_np.train.team import Team, add_gradient

LEARNING = {'freeze_at': 0, 'frozen_norm': False, 'dropout': 0.1}


@pytest.fixture(autouse=True)
def one_blas_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture
def make(tiny):
    def make(variant='two_stage', dtype='float32', **fields):
        return randomise(ddetr_np.build_model(variant, dtype=dtype, **tiny | fields))

    return make


def batches(n):
    """Of other sizes and numbers of boxes each."""
    made = []
    for i in range(n):
        sizes = ((40 + 8 * i, 64), (48, 56))
        images, mask, targets = random_batch(4, sizes, (i, 2), i)
        made.append(Batch(images, mask, targets, [f'{i}a', f'{i}b']))
    return made


def gradients(model, some, processes, step=0):
    """Losses, the sum of the gradients, and the statistics after it."""
    with Team(model, Criterion(model.config), 'all', processes) as team:
        results = list(team.add_gradients(some, 7, step))
    norms = [n for n in model.modules(BatchNorm) if not n.frozen]
    moved = [p.data.copy() for n in norms for p in (n.running_mean, n.running_var)]
    return results, [p.grad.copy() for p in model.params()], moved


def need_equal(a, b):
    assert a[0] == b[0]
    for ours, theirs in zip(a[1] + a[2], b[1] + b[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ('variant', 'dtype', 'fields', 'n', 'processes'),
    [
        ('two_stage', 'float32', LEARNING, 5, 2),  # in three rounds, the last not full
        ('multi_scale', 'float64', LEARNING, 3, 3),  # its heads add to one gradient
        ('refine', 'float32', {}, 2, 4),  # more than there are batches; norms frozen
    ],
)
def test_the_same_bits(make, variant, dtype, fields, n, processes):
    some = batches(n)
    alone = gradients(make(variant, dtype, **fields), some, 1)
    need_equal(gradients(make(variant, dtype, **fields), some, processes), alone)
    assert bool(alone[2]) == bool(fields)


def test_the_sum_is_of_each_batchs_own(make):
    some = batches(3)
    model = make(**LEARNING)
    results, total, _ = gradients(model, some, 1, step=10)
    other = make(**LEARNING)
    sums = [0.0] * len(total)
    for i, batch in enumerate(some):
        other.zero_grad()
        expected = add_gradient(other, Criterion(other.config), batch, 7, 10 + i)
        assert results[i] == expected
        sums = [s + p.grad for s, p in zip(sums, other.params())]
    for ours, theirs in zip(total, sums, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_move_under_all_and_are_ones_own_again(make):
    """An update in place is what the others compute with next."""
    model, other = make(**LEARNING), make(**LEARNING)
    some = batches(2)
    before = [p.data for _, p in model.named_params()]
    with Team(model, Criterion(model.config), processes=2) as team:
        list(team.add_gradients(some, 7, 0))
        for p in model.params():
            p.data *= 0.9
        moved = list(team.add_gradients(some, 7, 2))
        held = [p.data for _, p in model.named_params()]
    alone = Team(other, Criterion(other.config))
    list(alone.add_gradients(some, 7, 0))
    for p in other.params():
        p.data *= 0.9
    assert moved == list(alone.add_gradients(some, 7, 2))
    for (_, p), shared, old in zip(model.named_params(), held, before):
        assert not np.shares_memory(p.data, shared)
        assert not np.shares_memory(p.data, old)
        np.testing.assert_array_equal(p.data, shared)


def test_no_file_stays(make, tmp_path, monkeypatch):
    """Once all have begun: whoever is killed then leaves nothing behind."""
    monkeypatch.setattr(team_module, 'SHARED_MEMORY', tmp_path)
    model = make()
    with Team(model, Criterion(model.config), processes=2) as team:
        assert not list(tmp_path.iterdir())
        assert len(list(team.add_gradients(batches(2), 7, 0))) == 2


def test_a_loss_that_is_not_finite_elsewhere(make):
    some = batches(2)
    some[1].images[0] = np.nan
    model = make()
    with Team(model, Criterion(model.config), processes=2) as team:
        results = team.add_gradients(some, 7, 0)
        next(results)
        with pytest.raises(NotFiniteError, match='the pictures are not finite'):
            next(results)
        some[1].images[0] = 0  # and it goes on
        assert len(list(team.add_gradients(some, 7, 0))) == 2


@pytest.mark.parametrize('wait', [0, 0.3])  # noticed by what it returns, or before
def test_a_process_that_is_killed(make, wait):
    model = make()
    with Team(model, Criterion(model.config), processes=2) as team:
        (pool, _), = team._helpers
        for pid in list(pool._executor._processes):
            os.kill(pid, getattr(signal, 'SIGKILL', signal.SIGTERM))
        time.sleep(wait)
        with pytest.raises(InputError, match='process has ended unexpectedly'):
            list(team.add_gradients(batches(2), 7, 0))


def test_no_room(make, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'posix_fallocate', full, raising=False)
    model = make()
    with pytest.raises(InputError, match='no room for .* MB.*leave processes at 1'):
        Team(model, Criterion(model.config), processes=2)


def test_little_shared_memory_is_passed_over(make, tmp_path, monkeypatch):
    usage = team_module.shutil.disk_usage('/')
    monkeypatch.setattr(
        team_module.shutil, 'disk_usage', lambda path: usage._replace(free=10)
    )
    monkeypatch.setattr(team_module, 'SHARED_MEMORY', tmp_path)
    assert team_module._place(make(), 2) is None
    monkeypatch.setattr(
        team_module.shutil, 'disk_usage', lambda path: usage._replace(free=1 << 40)
    )
    assert team_module._place(make(), 2) == tmp_path
    monkeypatch.setattr(team_module, 'SHARED_MEMORY', Path('/nowhere'))
    assert team_module._place(make(), 2) is None


def test_the_gpu_has_one(make):
    model = make()
    type(model).device, before = 'cuda:0', type(model).device
    try:
        with pytest.raises(InputError, match='is on cuda:0; several processes'):
            Team(model, Criterion(model.config), processes=2)
    finally:
        type(model).device = before


def test_a_run(straight, train, small, tmp_path, need_equal_runs):
    """Stopped, and taken up again with another number of processes."""
    with pytest.raises(Interrupted):
        train(small(processes=2), stop_after=1)
    train(small(processes=1), resume=True)
    need_equal_runs(straight, tmp_path / 'run')


def test_not_more_than_there_are_batches(small):
    with pytest.raises(InputError, match='processes is 3; it must be at most accum'):
        small(processes=3)
