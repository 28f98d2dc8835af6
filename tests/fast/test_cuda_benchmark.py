"""What of `benchmarks/gpu_core.py` can be run without a GPU."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from ddetr_np.fast import gpu_ms_deform_attn as gpu
from ddetr_np.ops.ms_deform_attn import CoreCache

FOLDER = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def script(monkeypatch):
    if not FOLDER.is_dir():
        pytest.skip('needs the checkout')
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_core

    return gpu_core


def arrays(script):
    shapes = ((3, 4), (2, 2))
    value, loc, A, dy = script.inputs(shapes, M=2, K=3, Cv=8)
    return CoreCache(value, shapes, loc, A), dy


def test_bytes(script):
    cache, dy = arrays(script)
    # 16 queries, 2 heads, 2 levels, 3 keys, 4 corners of 8 channels of 4 bytes
    assert script.corner_bytes(cache.value, cache.loc) == 16 * 2 * 2 * 3 * 4 * 8 * 4
    assert script.moved_bytes((cache.value, dy)) == 2 * 16 * 2 * 8 * 4
    assert [script.sets_of(n, 100) for n in (10, 30, 99, 1000)] == [20, 7, 3, 2]


def test_a_batch_has_other_numbers_in_each_picture(script):
    cache, dy = arrays(script)
    value, twice = script.batch_of((cache.value, dy), 2)
    assert value.shape == (2, 16, 2, 8)
    assert (value[0] == cache.value[0]).all()
    assert (value[0] != value[1]).any()
    assert sorted(twice[1].ravel()) == sorted(dy.ravel())


def test_every_step_is_timed(script):
    cache, dy = arrays(script)
    launched = []
    forward, backward = script.tasks_of_steps(
        np, lambda *new: launched.extend(new), cache, dy
    )
    assert set(gpu.FORWARD) < set(forward)
    assert set(backward) == {*gpu.BACKWARD, 'deterministic'}
    for task in forward.values():
        assert task().shape == dy.shape
    for task in backward.values():
        assert [a.shape for a in task()] == [a.shape for a in (*cache[::2], cache.A)]
    names = [launch.kernel.partition('<')[0] for launch in launched]
    assert names[:5] == [f'forward_{step}' for step in gpu.FORWARD]
    assert [k.kernel[-2] for k in launched[5:7]] == ['1', '4']
    assert names[7:] == [
        'backward_v1', 'backward_v2', 'backward_v3', 'backward_v3', 'cells', 'gather'
    ]  # fmt: skip


def test_the_median_of_tasks_in_turn(script):
    clock, done = [0.0], []

    class Event:
        def record(self):
            self.at = clock[0]

        def synchronize(self):
            pass

    cupy = types.SimpleNamespace(
        cuda=types.SimpleNamespace(
            Event=Event, get_elapsed_time=lambda a, b: b.at - a.at
        )
    )

    def task(name, ms):
        def run():
            done.append(name)
            clock[0] += ms

        return run

    tasks = [task('a', 1), task('b', 3), task('c', 2)]
    assert script.timed(cupy, tasks, 9) == 2
    assert ''.join(done) == 'abc' + 'abc' * 3
    tasks[0] = task('a', 5)
    assert script.timed(cupy, tasks, 1) == 5  # the first ones do not count


def test_table(script):
    times = {'v1': 4.0, 'v5': 1.0, 'torch-ms-deform-attn': 2.0, 'other': '  no half'}
    lines = script.table('forward', times, 0.5, {'v1': 1e-7})
    assert lines[1].split() == ['v1', '4.000', '2.00', '12%', '1.0e-07']
    assert lines[2].split() == ['v5', '1.000', '0.50', '50%', '0.0e+00']
    assert lines[4].split() == ['other', 'no', 'half']
    alone = script.table('forward', {'v1': 4.0}, 0.5, {})
    assert alone[1].split() == ['v1', '4.000', '12%', '0.0e+00']


def test_a_peer_that_refuses_is_told_of(script, monkeypatch):
    monkeypatch.setattr(script, 'timed', lambda cupy, tasks, runs: 1.0)

    def refuse():
        raise RuntimeError('not implemented for Half\nmore')

    def fall():
        raise MemoryError

    good = lambda: np.ones(3)  # noqa: E731
    contenders = {
        'v1': [good], 'peer': [refuse], 'off': [lambda: np.full(3, 1.5)], 'big': [fall]
    }  # fmt: skip
    monkeypatch.setattr(script, 'difference', lambda a, b: abs(a - b).max())
    times, differences = script.measure(None, contenders, good, 5)
    assert times == {
        'v1': 1.0, 'peer': '  not implemented for Half', 'off': 1.0,
        'big': '  MemoryError()',
    }  # fmt: skip
    assert differences == {'v1': 0, 'off': 0.5}


def test_without_a_gpu_it_says_so(script, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'cupy', None)
    with pytest.raises(SystemExit) as stop:
        script.main([])
    assert stop.value.code == 2
    assert 'needs CuPy' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ([], [('float32', 'float32', 1)]),
        (['--dtype', 'float16', '--batch', '8'], [('float16', 'float16', 8)]),
        (['--dtype', 'float16', '--places', 'float32'], [('float16', 'float32', 1)]),
        (['--all'], None),
    ],
)
def test_what_is_measured(script, monkeypatch, arguments, expected):
    """One size and precision, or all of them; each one's memory is given back."""
    told, freed = [], []
    pool = types.SimpleNamespace(free_all_blocks=lambda: freed.append(len(told)))
    cupy = types.SimpleNamespace(get_default_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, 'cupy', cupy)
    monkeypatch.setattr(script.backend, 'to_device', lambda x, device: x)
    monkeypatch.setattr(script, 'report', lambda *args: told.append(args))
    words = [*arguments, '--runs', '9', '--height', '64', '--width', '96']
    assert script.main(words) == 0
    all_of_them = script.ALL + script.FLASH
    measured = [args[2:5] for args in told]
    assert measured == (all_of_them if expected is None else expected)
    assert freed == list(range(1, len(told) + 1))
    assert {args[0] is cupy for args in told} == {True}
    widths = {12, script.FLASH_WIDTH // 8} if expected is None else {12}
    assert {(args[1][0], args[5]) for args in told} == {((8, W), 9) for W in widths}
    if expected is None:
        assert {dtype for dtype, _, _ in measured} == {'float16', 'float32', 'float64'}
        assert {batch for *_, batch in measured} == {1, 8}


def test_a_case_that_does_not_fit_is_told_of(script, monkeypatch, capsys):
    """The others are measured all the same."""
    told = []
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)
    cupy = types.SimpleNamespace(get_default_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, 'cupy', cupy)
    monkeypatch.setattr(script.backend, 'to_device', lambda x, device: x)

    def report(cupy, shapes, dtype, places, batch, runs):
        told.append(batch)
        if dtype == 'float64' and batch == 8:
            raise MemoryError('Out of memory allocating 1,073,741,824 bytes')

    monkeypatch.setattr(script, 'report', report)
    assert script.main(['--all']) == 1
    assert len(told) == len(script.ALL + script.FLASH)
    assert 'float64, batch 8, width 1066 is not measured: Out of' in (
        capsys.readouterr().out
    )


def test_a_pytorch_without_a_gpu(script, monkeypatch):
    torch = types.SimpleNamespace(
        cuda=types.SimpleNamespace(is_available=lambda: False)
    )
    monkeypatch.setitem(sys.modules, 'torch', torch)
    assert script.torch_peers(None, None) == ({}, {})
    assert 'it finds no GPU' in script.peers.without_torch('cuda:0')
