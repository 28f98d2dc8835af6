"""Each example runs as it stands, and with what a reader would give it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddetr_np

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'
SCRIPTS = sorted(path.name for path in EXAMPLES.glob('*.py'))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script in an empty folder and return what it printed."""
    monkeypatch.setenv('PYTHONIOENCODING', 'utf-8')

    def run(name, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            encoding='utf-8',
        )
        assert done.returncode == code, done.stderr
        return done

    return run


def test_the_readme_has_each_with_a_command_it_takes():
    text = (EXAMPLES / 'README.md').read_text(encoding='utf-8')
    for name in SCRIPTS:
        assert f'[{name}]({name})' in text
        (command,) = re.findall(rf'`python examples/{name}([^`]*)`', text)
        source = (EXAMPLES / name).read_text(encoding='utf-8')
        assert f'python examples/{name}' in source
        for option in re.findall(r'--\w+', command):
            assert f"'{option}'" in source, f'{name} has no {option}'


def test_they_are_short():
    for name in SCRIPTS:
        lines = len((EXAMPLES / name).read_text(encoding='utf-8').splitlines())
        assert lines < (300 if name == 'pico_ddetr.py' else 71), name


def test_detect_folder(run, tmp_path):
    folder = tmp_path / 'mine' / 'pictures'
    ddetr_np.write_scenes(folder.parent, 2, seed=7)
    (folder / 'notes.txt').write_text('no picture')
    done = run('detect_folder.py', folder, '--threshold', 0.6)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line['picture'] for line in lines] == ['000000.png', '000001.png']
    model = ddetr_np.load_model('scenes')
    for line in lines:
        found = ddetr_np.detect(model, folder / line['picture'], 0.6)
        assert [d['name'] for d in line['found']] == found.names
        assert [tuple(d['box']) for d in line['found']] == [d.box for d in found]
    assert 'notes.txt' in done.stderr


def test_detect_folder_as_it_stands(run):
    assert len(run('detect_folder.py').stdout.splitlines()) == 4


def test_fine_tune(run, tmp_path):
    data = ddetr_np.write_scenes(tmp_path / 'train', 4, seed=1, H=64, W=80)
    val = ddetr_np.write_scenes(tmp_path / 'val', 1, seed=2, H=64, W=80)
    options = ['--data', data, '--val', val, '--size', 64, '--epochs', 1]
    options += ['--out', 'tuned']
    told = run('fine_tune.py', *options).stdout
    assert 'step 1: loss' in told
    assert 'AP50' in told
    model = ddetr_np.load_model(tmp_path / 'tuned' / 'run' / 'model.safetensors')
    assert model.config.short == 64
    again = run('fine_tune.py', *options, code=1)
    assert 'holds a run already' in again.stderr
    assert 'Traceback' not in again.stderr


def test_plot_sampling(run, tmp_path):
    told = run('plot_sampling.py', '--query', 3, '--out', 'figure.svg').stdout
    assert 'query 3' in told
    shares = [int(share) for share in re.findall(r'(\d+)% of the attention', told)]
    assert len(shares) == 4
    assert abs(sum(shares) - 100) <= 2
    assert '<svg' in (tmp_path / 'figure.svg').read_text(encoding='utf-8')


def test_attention_in_my_model(run):
    told = run('attention_in_my_model.py').stdout
    losses = [float(loss) for loss in re.findall(r'loss ([\d.]+)', told)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 100
    x, y = map(float, re.search(r'looks \[\s*(\S+)\s+(\S+)\]', told).groups())
    assert abs(x - 3) < 0.2
    assert abs(y + 2) < 0.2


def test_compare_with_pytorch_says_what_it_needs(run, tmp_path, monkeypatch):
    (tmp_path / 'torch.py').write_text("raise ImportError('No module named torch')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    told = run('compare_with_pytorch.py', code=1).stderr
    assert 'pip install torch' in told
    assert 'Traceback' not in told


@pytest.mark.oracle
def test_compare_with_pytorch(run):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    told = run('compare_with_pytorch.py').stdout
    found = dict(re.findall(r'(logits|boxes): (\S+) of', told))
    assert set(found) == {'logits', 'boxes'}
    assert all(float(difference) < 1e-5 for difference in found.values())
