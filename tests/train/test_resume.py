"""A run that was stopped or killed ends as one that ran through, bit for bit."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from ddetr_np.train.checkpoint import NAME, PREVIOUS, read_checkpoint
from ddetr_np.train.loop import Interrupted, train_model

STEPS = 4
NOT_JUDGED = {'scenes.val_count': 0}


@pytest.mark.parametrize('workers', [0, 2])
def test_stopped_anywhere(
    straight, train, small, tmp_path, workers, need_equal_runs
):
    """Dropout, moving average, warm-up, drop and order of the data go on."""
    settings = small(workers=workers)
    # where an epoch ends, and anywhere
    anywhere = int(np.random.default_rng().integers(1, STEPS))
    for stop in {2, anywhere} if workers == 0 else {anywhere}:
        name = f'stopped{stop}'
        with pytest.raises(Interrupted):
            train(settings, name, stop_after=stop)
        assert read_checkpoint(tmp_path / name)[3]['step'] == stop
        train(settings, name, resume=True)
        need_equal_runs(straight, tmp_path / name)


def test_the_comparison_sees(straight, train, small, tmp_path, need_equal_runs):
    """Other masks of dropout make another run."""
    train(small(**{'model.dropout': 0.2}))
    with pytest.raises(AssertionError):
        need_equal_runs(straight, tmp_path / 'run')


def test_cosine_and_sgd_go_on(train, small, tmp_path, need_equal_runs):
    settings = small(
        schedule='cosine', optimizer='sgd', ema=0.0, epochs=1, **NOT_JUDGED
    )
    train(settings, 'straight')
    with pytest.raises(Interrupted):
        train(settings, 'stopped', stop_after=1)
    train(settings, 'stopped', resume=True)
    need_equal_runs(tmp_path / 'straight', tmp_path / 'stopped')


def test_a_stop_in_the_evaluation(straight, train, small, tmp_path, need_equal_runs):
    settings = small()
    asked = []

    def tell(kind, **facts):
        if kind == 'evaluated':
            asked.append(kind)

    with pytest.raises(Interrupted):
        train_model(
            settings, tmp_path / 'stopped', tell=tell, stop=lambda: len(asked) == 2
        )
    train(settings, 'stopped', resume=True)
    need_equal_runs(straight, tmp_path / 'stopped')


def test_more_epochs(straight, train, small, tmp_path, need_equal_runs):
    train(small(epochs=1), 'longer')
    train(small(), 'longer', resume=True)
    need_equal_runs(straight, tmp_path / 'longer')


def killed_run(settings_file, out, wait, saved):
    """Start or go on with a run in a process of its own; kill it; say if it ran."""
    command = [sys.executable, '-m', 'ddetr_np', 'train', '--out', out]
    command += ['--resume'] if out.exists() else ['--config', settings_file]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    metrics = out / 'metrics.jsonl'
    before = metrics.stat().st_mtime_ns if metrics.exists() else None
    size = saved[3]['log_size'] if saved else 0
    try:
        while process.poll() is None:
            if metrics.exists():
                now = metrics.stat()
                if now.st_size > size and now.st_mtime_ns != before:
                    break  # it has made a step
            time.sleep(0.002)
        time.sleep(wait)
        return process.poll() is None
    finally:
        process.kill()  # SIGKILL, where there are signals
        process.wait()


@pytest.fixture
def kill_and_compare(train, small, tmp_path, need_equal_runs):
    def kill_and_compare(times, epochs, longest):
        rng = np.random.default_rng()
        settings = small(epochs=epochs, save_every=1)
        train(settings, 'straight')
        settings.write(tmp_path / 'settings.toml')
        out = tmp_path / 'killed'
        killed, steps, saved = 0, [], None
        for _ in range(times):
            wait = rng.uniform(0, longest)
            killed += killed_run(tmp_path / 'settings.toml', out, wait, saved)
            # whatever is there is whole
            for name in (NAME, PREVIOUS):
                if (out / name).exists():
                    assert load_file(out / name)
            saved = read_checkpoint(out)
            steps.append(saved[3]['step'] if saved else 0)
        print('saved steps when killed:', steps)
        train(settings, 'killed', resume=True)
        need_equal_runs(tmp_path / 'straight', out)
        assert not list(out.glob('.*'))  # nothing half-written stays
        return killed, steps

    return kill_and_compare


def test_killed_twice(kill_and_compare):
    killed, _ = kill_and_compare(times=2, epochs=3, longest=0.2)
    assert killed > 0


@pytest.mark.slow
def test_killed_ten_times(kill_and_compare):
    killed, steps = kill_and_compare(times=10, epochs=40, longest=1.5)
    assert killed == 10
    assert len(set(steps)) > 3  # at many places
