import os

import numpy as np
import pytest

from ddetr_np import InputError, NotFiniteError
from ddetr_np.train import checkpoint
from ddetr_np.train.checkpoint import NAME, PREVIOUS, read_checkpoint, write_checkpoint

CONFIG = {'C': 16, 'names': ['Zelle', 'été']}


def write(folder, n):
    weights = {'a.weight': np.full((2, 3), n, np.float32)}
    more = {'exp_avg': {'a.weight': np.full((2, 3), n / 3)}}
    write_checkpoint(folder, weights, CONFIG, more, {'step': n, 'best': n / 7})


def test_round_trip(tmp_path):
    assert read_checkpoint(tmp_path) is None
    write(tmp_path, 1)
    weights, config, tensors, facts = read_checkpoint(tmp_path)
    assert config == CONFIG
    assert facts == {'step': 1, 'best': 1 / 7}
    average = tensors['exp_avg']['a.weight']
    np.testing.assert_array_equal(average, np.full((2, 3), 1 / 3))
    assert average.dtype == np.float64
    assert weights['a.weight'].dtype == np.float32


def test_the_one_before_stays(tmp_path):
    for n in (1, 2, 3):
        write(tmp_path, n)
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAME, PREVIOUS]
    assert read_checkpoint(tmp_path)[3]['step'] == 3
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:200])
    assert read_checkpoint(tmp_path)[3]['step'] == 2
    (tmp_path / NAME).unlink()
    assert read_checkpoint(tmp_path)[3]['step'] == 2
    (tmp_path / PREVIOUS).write_bytes(b'')
    with pytest.raises(InputError, match='no checkpoint can be read'):
        read_checkpoint(tmp_path)


class Crash(BaseException):
    """What no handler of the code catches."""


@pytest.mark.parametrize('links', [True, False])
@pytest.mark.parametrize('call', range(8))
def test_a_crash_at_any_call(tmp_path, monkeypatch, links, call):
    """Before each call that touches the disk, and just after it."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    calls = []

    def crashing(name):
        do = getattr(os, name)

        def step(*args, **keywords):
            calls.append(name)
            if len(calls) - 1 == call // 2 and call % 2 == 0:
                raise Crash
            if name == 'link' and not links:
                if call == 3:
                    raise Crash
                raise OSError('no links on this disk')
            do(*args, **keywords)
            if len(calls) - 1 == call // 2:
                raise Crash

        return step

    with monkeypatch.context() as patch:
        for name in ('fsync', 'link', 'replace'):
            patch.setattr(checkpoint.os, name, crashing(name))
        with pytest.raises(Crash):
            write(tmp_path, 3)
    assert read_checkpoint(tmp_path)[3]['step'] == (3 if call == 7 else 2)
    for name in (NAME, PREVIOUS):  # what is there is whole
        if (tmp_path / name).exists():
            assert checkpoint._read(tmp_path / name)
    if links:
        assert (tmp_path / NAME).exists()
    checkpoint.sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {NAME, PREVIOUS}
    write(tmp_path, 4)
    assert read_checkpoint(tmp_path)[3]['step'] == 4


def test_the_same_bytes(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    write(tmp_path / 'a', 1)
    write(tmp_path / 'b', 1)
    assert (tmp_path / 'a' / NAME).read_bytes() == (tmp_path / 'b' / NAME).read_bytes()


def test_not_finite(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(NotFiniteError, match='training/exp_avg/a.weight is not finite'):
        write_checkpoint(
            tmp_path, {}, CONFIG, {'exp_avg': {'a.weight': np.array([np.inf])}}, {}
        )
    assert read_checkpoint(tmp_path)[3]['step'] == 1
