"""What README tells people to type does what it says; options elsewhere exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

import ddetr_np
from ddetr_np.cli import cli

ROOT = Path(__file__).parents[2]
README = ROOT / 'README.md'
PAGES = sorted([README, *ROOT.glob('docs/**/*.md'), *ROOT.glob('ddetr_np/**/*.md')])
PAGES += sorted(ROOT.glob('notebooks/*.md'))
TINY = {'C': 16, 'M': 2, 'ffn': 16, 'encoder_layers': 1, 'decoder_layers': 1, 'Nq': 12}
QUICK = [  # the same, but over before long
    '--epochs', '1', '--accumulate', '1', '--workers', '0', '--set', 'short=64',
    '--set', 'long=64', '--set', 'augment.kind=none',
]
ELSEWHERE = 'pip install '  # by `.ci/run`, or with a network


def blocks(path, language):
    """Return a page's blocks of a language, lines that go on joined."""
    text = path.read_text(encoding='utf-8')
    found = re.findall(rf'^( *)```{language}\n(.*?)^\1```$', text, re.M | re.S)
    return [re.sub(r'\\\n\s*', '', block) for _, block in found]


def commands(path):
    """Return the lines of a page's shell blocks, without their comments."""
    lines = [line for block in blocks(path, 'sh') for line in block.splitlines()]
    lines = [re.sub(r'(^|\s+)#.*$', '', line).strip() for line in lines]
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what README's snippets take for granted."""
    monkeypatch.chdir(tmp_path)
    model = ddetr_np.build_model('multi_scale', backbone='resnet18', width=8, **TINY)
    checkpoint = 'r50_deformable_detr-checkpoint.pth'
    ddetr_np.save_model(model, 'small.safetensors')
    run(['ddetr-np', 'convert', 'small.safetensors', checkpoint])
    Path('folder').mkdir()
    ddetr_np.save_model(model, 'folder/model.safetensors')
    Path('folder/config.json').write_text('{"model_type": "deformable_detr"}')
    scenes = ddetr_np.Scenes(6, H=64, W=72)
    for name in ('photo.jpg', 'shots/1.jpg', 'more/of/them/2.png'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[0].picture()).save(name)
    ddetr_np.write_scenes('cells', 3, seed=1)
    shutil.copy('cells/annotations.json', 'cells/train.json')
    shutil.copy('cells/annotations.json', 'cells/val.json')


def run(command):
    """Run a command of the package's; return what it printed."""
    command = [sys.executable, '-m', 'ddetr_np', *command[1:]]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding='utf-8',
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'utf-8'},
    )
    assert done.returncode == 0, f'{command}\n{done.stdout}{done.stderr}'
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures('folder')
def test_readme_commands():
    lines = [line for line in commands(README) if not line.startswith(ELSEWHERE)]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)
        assert words[0] == 'ddetr-np'
        quick = QUICK if '--data' in words else []
        run(words + quick)
    assert list(Path('drawn').iterdir())
    assert Path('results.json').is_file()
    assert Path('runs/cells/model.safetensors').is_file()


@pytest.mark.slow
@pytest.mark.usefixtures('folder')
def test_readme_python():
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((160, w, 3)).astype('float32') for w in (160, 192)]
    names = dict(zip(('img0', 'img1'), images))
    first, second = blocks(README, 'python')
    exec(first, names)
    assert isinstance(names['found'], ddetr_np.Detections)
    exec(second, names)
    layers, N, Nq, classes = names['out'].logits.shape
    assert (layers, N, Nq, classes) == (6, 2, 300, 91)
    assert names['out'].boxes.shape == (6, 2, 300, 4)


def options(command):
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(path):
    for line in commands(path):
        for part in re.split(r'&&|\|', line):
            words = shlex.split(part)
            if words[:1] != ['ddetr-np']:
                continue
            words = words[1:]
            command = cli
            while isinstance(command, click.Group) and words:
                assert words[0] in command.commands, line
                command = command.commands[words.pop(0)]
            known = options(command) | {'-h', '--help'}
            for word in words:
                if re.match(r'--?[a-z]', word):
                    assert word.partition('=')[0] in known, f'{line}: {word}'
