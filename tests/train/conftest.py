import json

import numpy as np
import pytest

from ddetr_np.train import Settings
from ddetr_np.train.checkpoint import NAME, PREVIOUS, read_checkpoint
from ddetr_np.train.loop import train_model

SMALL = {  # two epochs of two steps, in half a second
    'data': 'scenes',
    'variant': 'two_stage',
    'epochs': 2,
    'batch': 2,
    'accumulate': 2,
    'workers': 0,
    'lr': 1e-3,
    'ema': 0.9,
    'warmup': 3,
    'drop_every': 1,
    'short': 64,
    'long': 64,
    'save_every': 2,
    'augment': {'kind': 'custom', 'scales': [48, 64], 'flip_y': 0.5, 'hue': 0.1},
    'scenes': {'count': 9, 'height': 64, 'width': 64, 'val_count': 2},
    'model': {
        'backbone': 'resnet18', 'width': 4, 'C': 16, 'M': 2, 'K': 2, 'Nq': 6, 'ffn': 24,
        'encoder_layers': 1, 'decoder_layers': 2, 'freeze_at': 0, 'frozen_norm': False,
    },
}  # fmt: skip


@pytest.fixture(scope='session')
def small():
    """Return small settings, some of them changed."""

    def small(**changes):
        return Settings().replace(**SMALL).replace(**changes)

    return small


@pytest.fixture(scope='session')
def straight(small, tmp_path_factory):
    """The folder of a run of the small settings that nobody stopped."""
    folder = tmp_path_factory.mktemp('train') / 'straight'
    train_model(small(), folder)
    return folder


@pytest.fixture
def train(tmp_path):
    """Train into tmp_path / name; optionally stop after so many steps of this call."""

    def train(settings, name='run', resume=False, stop_after=None, tell=None):
        steps = []

        def note(kind, **facts):
            if kind == 'step':
                steps.append(facts['record'])
            if tell:
                tell(kind, **facts)

        def stop():
            return stop_after is not None and len(steps) >= stop_after

        return train_model(
            settings, tmp_path / name, resume=resume, tell=note, stop=stop
        )

    return train


@pytest.fixture
def need_equal_runs():
    return _need_equal_runs


@pytest.fixture
def diary():
    """Return the records of a run, without their times."""
    return _diary


def _need_equal_runs(a, b):
    """Fail unless two runs' folders say the same, bit for bit."""
    weights, config, tensors, facts = read_checkpoint(a)
    weights_b, config_b, tensors_b, facts_b = read_checkpoint(b)
    assert config == config_b
    for time in ('seconds', 'log_size'):
        del facts[time], facts_b[time]
    assert facts == facts_b
    assert tensors.keys() == tensors_b.keys()
    tensors['weights'], tensors_b['weights'] = weights, weights_b
    for kind, ours in tensors.items():
        theirs = tensors_b[kind]
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=f'{kind} {name}')
    for name in {p.name for p in a.glob('*.safetensors')} - {NAME, PREVIOUS}:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert _diary(a) == _diary(b)


def _diary(folder):
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop('seconds', None)
    return records
