import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from ddetr_np import load_model
from ddetr_np.commands import train as command

SMALL = """
data = 'scenes'
variant = 'refine'
epochs = 1
batch = 2
accumulate = 1
workers = 0
short = 64
long = 64
[augment]
kind = 'none'
[scenes]
count = 4
height = 64
width = 64
val_count = 2
[model]
backbone = 'resnet18'
width = 4
C = 16
M = 2
Nq = 6
ffn = 24
encoder_layers = 1
decoder_layers = 2
freeze_at = 0
frozen_norm = false
"""


@pytest.fixture
def train(run, here):
    (here / 'small.toml').write_text(SMALL)

    def train(*arguments):
        return run('train', '--config', 'small.toml', '--out', 'run', *arguments)

    return train


def test_long_epochs_are_not_silent(train, monkeypatch):
    """Where nobody sees the bar, a line comes when the last is old."""
    assert 'step 1,' not in train().stderr
    monkeypatch.setattr(command, 'EVERY', -1)
    said = train('--seed', 1, '--out', 'other').stderr
    assert 'epoch 1/1: step 1, loss' in said
    assert 'epoch 1/1: step 2, loss' in said


def test_train(train, run, here):
    result = train('--set', 'lr=1e-3', '--seed', 5)
    assert result.exit_code == 0, result.output
    assert 'warning: lr = 0.001 with 2 pictures in a step' in result.stderr
    assert 'scenes of seed 1: 4 pictures, 6 classes; judged on 2' in result.stderr
    assert re.search(r'epoch 1/1: AP 0\.\d{3}, AP50 0\.\d{3}, loss \d', result.stderr)
    assert '2 pictures' in result.stdout  # the report
    assert 'weights: run' in result.stdout
    folder = here / 'run'
    text = (folder / 'settings.toml').read_text()
    assert 'lr = 0.001' in text
    assert 'seed = 5' in text
    with Image.open(folder / 'curves.png') as image:
        assert min(image.size) > 500
    assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 3
    assert load_model(folder / 'model.safetensors').config.num_classes == 6
    # go on where nothing is left to do, and a little longer
    result = run('train', '--out', 'run', '--resume')
    assert result.exit_code == 0, result.output
    assert 'all 2 steps are done already' in result.stderr
    result = run('train', '--out', 'run', '--resume', '--epochs', 2)
    assert 'epoch 2/2: AP' in result.stderr
    detected = run(
        'detect', 'run/curves.png', '--weights', 'run/best.safetensors', '--short', 64,
        '--long', 64, '--threshold', 0,
    )
    assert detected.exit_code == 0, detected.output


def test_it_lists_what_it_kept(train, weights):
    result = train('--weights', weights, '--set', 'scenes.val_count=0')
    # the fields of the file are those of a model that is none of it
    assert result.exit_code == 0, result.output
    assert re.search(r'from .*toy.safetensors: kept \d+ tensors', result.stderr)
    assert 'renewed: class_embed.0.weight' in result.stderr
    assert 'judged on none (--val)' in result.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--set', 'lrr=1'], "there is no setting 'lrr'; did you mean lr?"),
        (['--set', 'lr'], 'expected NAME=VALUE'),
        (['--set', 'lr=fast'], "lr is 'fast'; expected a number"),
        (['--variant', 'big'], 'one of single_scale'),
        (['--data', 'none'], 'there is no such file or folder'),
        (['--weights', 'none.pth'], 'none.pth does not exist'),
        (['--resume'], 'holds no run that could go on'),
        (['--epochs', '0'], 'it must be 1 or more'),
        (['--batch', '5'], '4 pictures, less than a batch of 5'),
        (['--accumulate', '3'], '4 pictures, fewer than the 2 × 3'),
        (['--device', 'tpu'], "expected 'cpu', 'cuda:0'"),
        (['--set', 'model.C=15'], 'a multiple of'),
    ],
)
def test_refusals(train, here, arguments, message):
    result = train(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert 'Traceback' not in result.output
    assert not (here / 'run').exists()


def test_refusals_of_files(run, train, here):
    assert run('train', '--out', 'run').exit_code == 2
    result = run('train', '--out', 'run', '--config', 'none.toml')
    assert 'none.toml does not exist' in result.stderr
    (here / 'small.toml').write_text('epochs = ')
    assert 'small.toml is no TOML file' in train().stderr


def test_a_damaged_run(train, run, here):
    assert train('--set', 'scenes.val_count=0').exit_code == 0
    assert 'holds a run already; add --resume' in train().stderr
    for name in ('checkpoint.safetensors', 'previous.safetensors'):
        (here / 'run' / name).write_bytes(b'nothing')
    result = run('train', '--out', 'run', '--resume')
    assert result.exit_code == 2
    assert 'no checkpoint can be read' in result.stderr
    (here / 'run' / 'settings.toml').write_text('lr = x')
    result = run('train', '--out', 'run', '--resume')
    assert 'settings.toml is no TOML file' in result.stderr


def test_tensorboard(train, here, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    result = train('--set', 'tensorboard=true')
    assert result.exit_code == 2
    assert "pip install 'ddetr-np[tensorboard]'" in result.stderr
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_tensorboard_scalars(train, here):
    pytest.importorskip('tensorboardX')
    result = train('--set', 'tensorboard=true')
    assert result.exit_code == 0, result.output
    (events,) = (here / 'run' / 'tensorboard').iterdir()
    content = events.read_bytes()
    for tag in (b'step/loss', b'step/lr', b'eval/AP50'):
        assert tag in content


@pytest.mark.skipif(os.name != 'posix', reason='signals')
def test_control_c_saves(here, train):
    (here / 'small.toml').write_text(SMALL.replace('epochs = 1', 'epochs = 1000'))
    process = subprocess.Popen(
        [sys.executable, '-m', 'ddetr_np', 'train', '--config', 'small.toml', '--out',
         'run', '--set', 'scenes.val_count=0', '--set', 'save_every=1000'],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        metrics = here / 'run' / 'metrics.jsonl'
        while not metrics.exists() or not metrics.stat().st_size:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert 'Traceback' not in stderr
    (step,) = re.findall(r'saved after step (\d+)', stderr)
    assert 'ddetr-np train --out run --resume' in stderr
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert steps[-1]['step'] == int(step)
    from ddetr_np.train.checkpoint import read_checkpoint

    assert read_checkpoint(here / 'run')[3]['step'] == int(step)


def test_skip_bad(train, run, here):
    run('data', 'scenes', '--out', 'set', '--count', 4)
    (here / 'set' / 'pictures' / '000001.png').write_text('text')
    arguments = '--data', 'set', '--set', 'val=', '--set', 'scenes.val_count=0'
    result = train(*arguments)
    assert result.exit_code == 2
    assert '000001.png is not a picture' in result.stderr
    (here / 'run' / 'settings.toml').unlink()
    result = train(*arguments, '--skip-bad')
    assert result.exit_code == 0, result.output
    assert 'left out: 1 × not a picture' in result.stderr


def test_help_imports_nothing_heavy():
    code = (
        'import sys\n'
        'from click.testing import CliRunner\n'
        'from ddetr_np.cli import cli\n'
        'assert CliRunner().invoke(cli, ["train", "-h"]).exit_code == 0\n'
        'sys.exit("numpy" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
