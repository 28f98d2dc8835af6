"""What of `benchmarks/gpu_model.py` can be run without a GPU."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from ddetr_np import build_model, load_model, save_model
from ddetr_np.testing_model import SMALL, randomise

FOLDER = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def script(monkeypatch):
    if not FOLDER.is_dir():
        pytest.skip('needs the checkout')
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_model

    return gpu_model


@pytest.fixture
def toy(tmp_path):
    """A small model's file, and sets of pictures."""
    fields = {**SMALL, 'backbone': 'resnet18', 'num_classes': 91}
    model = randomise(build_model('multi_scale', **fields))
    save_model(model, tmp_path / 'toy.safetensors')
    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((2, 40, 56, 3), 'float32') for _ in range(3)]
    return tmp_path / 'toy.safetensors', sets


@pytest.mark.usefixtures('recorder')
@pytest.mark.parametrize('precision', ['single', 'half'])
def test_our_side(script, toy, gpu, precision):
    """Each task runs, on the pictures it is told, in the precision it is told."""
    path, sets = toy
    tasks = script.ours(path, sets, gpu.name, precision)
    assert list(tasks) == ['ddetr-np', 'ddetr-np, CUDA graph']
    model = load_model(path)
    for i in (0, 2):
        expected = model.forward(sets[i], keep='none')[0].logits[-1]
        got = gpu.fetch(tasks['ddetr-np']['logits'](i))
        scale = abs(expected).max()
        if precision == 'single':
            np.testing.assert_allclose(got, expected, atol=1e-4 * scale)
        else:
            assert 1e-6 < np.median(abs(got - expected)) / scale < 1e-2
    for some in tasks.values():
        some[script.INFERENCE](1)
    for i in range(2):  # the optimiser learns
        tasks['ddetr-np'][script.STEP](i)
    assert not np.allclose(gpu.fetch(tasks['ddetr-np']['logits'](0)), got)


def test_ratios_are_of_one_round(script, capsys):
    times = {'ddetr-np': [2.0, 30.0, 4.0], 'PyTorch': [4.0, 60.0, 4.0],
             'PyTorch, half': [5.0, 61.0, 6.0]}  # fmt: skip
    assert script.report('inference', times) == [
        ('inference: ddetr-np / PyTorch', 0.5, script.TARGET)
    ]
    assert '0.50' in capsys.readouterr().out
    assert script.report('inference', {'ddetr-np': [1.0]}) == []


def test_other_models_are_refused(script):
    def logits(factor):
        return {'logits': lambda i: factor * np.arange(4.0)}

    ours = {'ddetr-np': logits(1.0)}
    assert script.compare(ours, {'PyTorch': logits(1.001)}, 1e-2)['PyTorch'] < 2e-3
    with pytest.raises(SystemExit, match='not the same models'):
        script.compare(ours, {'PyTorch': logits(1.1)}, 1e-2)


def test_gradients_stay_in_half_precision_s_range(script, toy, double):
    """They are scaled up, and an overflow would end the run."""
    path, sets = toy
    tasks = script.ours(path, sets[:1], 'cpu', 'half')
    step = tasks['ddetr-np'][script.STEP]
    cells = dict(zip(step.__code__.co_freevars, step.__closure__))
    model, seen = cells['model'].cell_contents, []
    backward = type(model).backward

    def watch(self, *args, **kwargs):
        found = backward(self, *args, **kwargs)
        seen.append(max(abs(g).max() for g in self.grad_dict().values()))
        return found

    model.backward = watch.__get__(model)
    step(0)
    assert 1e-3 < seen[0] < 65504 / 100


def test_a_case_that_fails_does_not_end_the_others(script, monkeypatch, tmp_path):
    words = []

    def run(command):
        words.append(command)
        return types.SimpleNamespace(returncode=int('half' in command))

    monkeypatch.setattr(script.subprocess, 'run', run)
    assert script.main(['--all', '--json', str(tmp_path / 'gpu')]) == 1
    cases = [(w[w.index('--batch') + 1], w[w.index('--precision') + 1]) for w in words]
    assert cases == [(str(N), p) for N in script.BATCHES for p in script.PRECISIONS]
    paths = {w[-1] for w in words}
    assert str(tmp_path / 'gpu-8-half') in paths
    assert len(paths) == 6


def test_who_does_not_fit_is_left_out(script, capsys):
    def full(i):
        raise MemoryError('Out of memory allocating 1 byte')

    def torch_full(i):
        raise RuntimeError('CUDA out of memory. Tried to allocate')

    def wrong(i):
        raise RuntimeError('misaligned address')

    clock = script.Clock('cpu')
    contenders = {'a': lambda i: None, 'b': full, 'c': torch_full}
    assert list(script.rounds(clock, contenders, 2)) == ['a']
    told = capsys.readouterr().out
    assert 'b does not fit: Out of memory' in told
    assert 'c does not fit: CUDA out of memory' in told
    with pytest.raises(RuntimeError, match='misaligned'):
        script.rounds(clock, {'d': wrong}, 2)


def test_without_pytorch_it_has_weights_of_its_own(script, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert script.peers.without_torch('cpu')
    monkeypatch.setattr(
        'ddetr_np.build_model', lambda name: build_model(name, **SMALL)
    )
    path = script.save_weights(tmp_path)
    assert load_model(path).config.Nq == SMALL['Nq']


@pytest.mark.oracle
def test_it_runs(script, monkeypatch, tmp_path, capsys):
    """On the CPU, with PyTorch: the models are the same, the tables there."""
    pytest.importorskip('transformers')
    monkeypatch.setattr(script, 'WARM_UP', 0)
    path = tmp_path / 'figures.json'
    words = ['--device', 'cpu', '--height', '48', '--width', '64', '--runs', '1']
    assert script.main([*words, '--json', str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures['differences']['PyTorch'] < 1e-4
    assert len(figures['targets']) == 2
    assert 'training step' in capsys.readouterr().out


def test_no_device(script):
    with pytest.raises(SystemExit, match='cuda:0'):
        script.main(['--runs', '1'])
