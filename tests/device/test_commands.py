"""--device, of every command that runs a model; and what may be wrong with one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ddetr_np import InputError, build_model, ops, save_model
from ddetr_np.backend import gpus, is_mixed, to_device
from ddetr_np.cli import cli

TINY = {
    'backbone': 'resnet18', 'width': 4, 'C': 16, 'M': 2, 'K': 2, 'Nq': 6, 'ffn': 24,
    'encoder_layers': 1, 'decoder_layers': 2, 'num_classes': 4,
}  # fmt: skip
FIELDS = [word for name, v in TINY.items() for word in ('--set', f'{name}={v}')]
SIZE = ['--short', '48', '--long', '64']
COMMANDS = {
    'detect': ['a.png', '--weights', 'toy.npz', *SIZE, '--set', 'M=2'],
    'figures': [
        'a.png', '--weights', 'toy.npz', *SIZE, '--set', 'M=2', '--threshold', '0',
        '--no-gradients', '--part', 'decoder',
    ],
    'explore': [
        'a.png', '--weights', 'toy.npz', *SIZE, '--set', 'M=2', '--threshold', '0',
    ],
    'gradcheck': ['--op', 'softmax'],
    'gradcheck --model': [
        '--variant', 'multi_scale', *FIELDS, '--set', 'L=1',
        '--set', 'encoder_layers=0', '--set', 'decoder_layers=1',
    ],
    'bench': ['--size', '48', '64', '--runs', '1', *FIELDS],
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in a folder with a picture and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('ddetr_np.analysis.machine.COPIED', 1 << 20)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save('a.png')
    save_model(build_model('refine', **TINY), 'toy.npz')

    def run(*words):
        return CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)

    return run


def test_half_precision(gpu, run, monkeypatch):
    """The values between the operations of the pass are half, the results near."""
    kinds = []
    sampled = ops.ms_deform_attn.ms_deform_attn

    def watch(value, *args):
        kinds.append(value.dtype.name)
        return sampled(value, *args)

    monkeypatch.setattr(ops.ms_deform_attn, 'ms_deform_attn', watch)
    words = [*COMMANDS['detect'], '--threshold', '0', '--device', gpu.name, '--json']
    outputs = []
    for name, more in (('single.json', []), ('half.json', ['--half'])):
        result = run('detect', *words, name, *more)
        assert result.exit_code == 0, result.output
        found = json.loads(Path(name).read_text())
        outputs.append(sorted(d['score'] for d in found))
    assert set(kinds[: len(kinds) // 2]) == {'float32'}
    assert 'float16' in kinds[len(kinds) // 2 :]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.02)
    assert not is_mixed()  # not beyond the command


def test_half_precision_is_for_gpus(run):
    result = run('detect', *COMMANDS['detect'], '--half')
    assert result.exit_code == 2
    assert '--half is for a GPU' in result.output


@pytest.mark.parametrize('command', COMMANDS)
def test_on_a_gpu(gpu, run, command):
    result = run(*command.split(), *COMMANDS[command], '--device', gpu.name)
    assert result.exit_code == 0, result.output
    if gpu.traffic:
        assert gpu.traffic.to_device


@pytest.mark.parametrize('command', [*cli.commands])
def test_which_commands_take_a_device(command):
    """All that run a model; what complexity counts is the same everywhere."""
    without = {'data', 'convert', 'complexity', 'doctor'}
    names = {name for p in cli.commands[command].params for name in p.opts}
    assert ('--device' in names) == (command not in without)


def refused(device='cuda:0'):
    with pytest.raises(InputError) as caught:
        to_device(np.ones(2), device)
    return str(caught.value)


def test_no_such_gpu(double):
    assert 'this machine has 2 GPUs' in refused('cuda:2')


def test_no_driver(double, machine):
    machine.fault = machine.error('cudaErrorInsufficientDriver')
    message = refused()
    assert 'no usable GPU driver (cudaErrorInsufficientDriver)' in message
    assert "device='cpu'" in message


def test_a_card_too_old(double, machine, run, monkeypatch):
    machine.capability = 6, 1
    message = refused()
    assert 'Double has compute capability 6.1, 7.0 is needed' in message
    assert gpus()[1] == ('Double', 1 << 30, 'too old (6.1; 7.0 is needed)')
    monkeypatch.setattr('ddetr_np.commands.doctor._version', lambda names: '14.0')
    assert 'Double, 1 GiB: too old (6.1; 7.0 is needed)' in run('doctor').output
    runtime = sys.modules['cupy'].cuda.runtime
    machine.capability = 7, 0
    assert to_device(np.ones(2), 'cuda:0').device.id == 0
    monkeypatch.setattr(runtime, 'runtimeGetVersion', lambda: 13000)
    message = refused()
    assert '7.0, 7.5 is needed; install CuPy for CUDA 12 instead' in message
    assert "pip install 'ddetr-np[gpu12]'" in message
    assert gpus()[0][2] == 'too old (7.0; 7.5 is needed)'
    machine.capability = 12, 0
    assert to_device(np.ones(2), 'cuda:0').device.id == 0
    assert gpus()[0][2] == ''


def test_a_cupy_that_does_not_load(double, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == 'cupy':
                raise ImportError('libcublas.so.12: cannot open shared object file')

    monkeypatch.delitem(sys.modules, 'cupy')
    monkeypatch.setattr(sys, 'meta_path', [Broken()])
    message = refused()
    assert 'does not load (libcublas.so.12' in message
    assert "pip install 'ddetr-np[gpu12]'" in message


def test_the_message_comes_before_any_work(double, machine, run):
    machine.capability = 6, 0
    others = {
        'demo': [],
        'evaluate': ['--weights', 'none.pth', '--data', 'none'],
        'train': ['--data', 'none', '--out', 'run'],
    }
    for command, words in (COMMANDS | others).items():
        words = [w.replace('toy', 'none') for w in words]
        result = run(*command.split(), *words, '--device', 'cuda:0')
        assert result.exit_code == 2
        assert 'compute capability 6.0' in result.stderr
