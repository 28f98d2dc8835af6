"""The benchmark scripts run, and what they make of their figures is right."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddetr_np.config import VARIANTS

FOLDER = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def scripts(monkeypatch):
    """The scripts' folder, importable."""
    if not FOLDER.is_dir():
        pytest.skip('needs the checkout')
    monkeypatch.syspath_prepend(str(FOLDER))


def test_ratios_are_of_the_same_round(scripts):
    from contest import Run, ratio

    ours = [Run(s, 0.0) for s in (1.0, 2.0, 30.0)]
    theirs = [Run(s, 0.0) for s in (2.0, 4.0, 20.0)]
    assert ratio(ours, theirs) == (0.5, 0.5, 1.5)


def test_a_missed_target_is_told_with_its_distance(scripts, capsys):
    from contest import verdicts

    good, bad = verdicts([('a / b', 0.9, 1.0), ('a / c', 0.88, 0.8)])
    assert (good['met'], bad['met']) == (True, False)
    assert capsys.readouterr().out.splitlines() == [
        'a / b: 0.90, target ≤ 1.0: met',
        'a / c: 0.88, target ≤ 0.8: MISSED by 10%',
    ]


def _answer():
    return {'pid': os.getpid, 'fail': lambda: 1 / 0}


def _absent():
    import no_such_peer  # noqa: F401


def test_contenders_are_processes_of_their_own(scripts, capsys, monkeypatch):
    from contest import enter, rounds

    monkeypatch.setattr('contest.PAUSE', 0)
    contenders = enter({'one': (_answer,), 'two': (_answer,), 'three': (_absent,)})
    assert 'three is left out' in capsys.readouterr().out
    assert set(contenders) == {'one', 'two'}
    pids = {c.get('pid') for c in contenders.values()} | {os.getpid()}
    assert len(pids) == 3
    runs = rounds(contenders, {'one': ['pid'], 'two': ['pid']}, 2)
    assert all(len(r) == 2 and r[0].seconds > 0 for r in runs.values())
    assert contenders['one'].peak() is None or contenders['one'].peak() > 1e6
    with pytest.raises(RuntimeError, match='ZeroDivisionError'):
        contenders['two'].get('fail')
    contenders['one'].end()


def test_linear_growth_is_judged_against_any_smaller_picture(scripts):
    from scaling import linear

    def points(*seconds):
        sizes = (100, 200, 400)
        return [
            {'size': size, 'seconds': {'inference': [s]}}
            for size, s in zip(sizes, seconds)
        ]

    # costs per pixel of 2, 1, 1: what is small may cost more
    assert linear(points(2e4, 4e4, 16e4), 'inference')[1] == pytest.approx(1)
    # of 2, 1, 1.5: less than at first, but no longer linear
    assert linear(points(2e4, 4e4, 24e4), 'inference')[1] == pytest.approx(1.5)


def test_the_formula_of_the_appendix(scripts):
    from scaling import complexity

    config = VARIANTS['multi_scale']
    S = 17_821
    assert complexity(config, S, S) == S * (2 * 256**2 + 80 * 256 + 3 * 256 * 8 * 16)
    # few queries: the values are projected only where they are sampled
    few = 256**2 * (10 + 160) + 80 * 10 * 256 + 3 * 10 * 256 * 8 * 16
    assert complexity(config, 10, S) == few


@pytest.mark.slow
def test_looking_runs(scripts, tmp_path):
    out = tmp_path / 'out.json'
    command = [
        sys.executable, FOLDER / 'looking.py', '--runs', '1', '--size', '64', '96',
        '--json', out,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    for name in ('Figure 6 / forward', 'Figure 5 / training pass'):
        assert figures['ratios'][name][0] > 0.5  # it holds such a pass, or more
        assert name in done.stdout


@pytest.mark.slow
def test_scaling_runs(scripts, tmp_path):
    out = tmp_path / 'out.json'
    command = [
        sys.executable, FOLDER / 'scaling.py', '--runs', '1', '--only', 'size',
        '--sizes', '64', '96', '--figures', tmp_path, '--json', out,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(out.read_text())['axes']['size']
    for point in (small, large):
        macs = point['macs']
        assert macs['attention'] + 5 / 4 * macs['sampled'] == macs['formula']
        assert math.isfinite(point['seconds']['inference'][0])
    assert small['macs']['all'] < large['macs']['all']
    assert (tmp_path / 'scaling-size.png').stat().st_size > 5000
