import json
import sys

import numpy as np
import pytest
from PIL import Image

from ddetr_np import draw_scene


@pytest.fixture
def scenes(run, here):
    result = run('data', 'scenes', '--out', 'set', '--count', 3, '--seed', 5)
    assert result.exit_code == 0, result.output
    assert 'annotations.json' in result.stdout
    return here / 'set'


def spoil(scenes, **fields):
    path = scenes / 'annotations.json'
    data = json.loads(path.read_text())
    data['annotations'][0] |= fields
    path.write_text(json.dumps(data))


def test_scenes(scenes):
    with Image.open(scenes / 'pictures' / '000002.png') as image:
        assert np.array_equal(image, draw_scene((5, 2)).picture)
    assert len(list((scenes / 'pictures').iterdir())) == 3


def test_scenes_of_another_size(run, here):
    run('data', 'scenes', '--out', 'a', '--count', 1, '--height', 64, '--width', 96,
        '--kind', 'jpg')
    with Image.open(here / 'a' / 'pictures' / '000000.jpg') as image:
        assert image.size == (96, 64)
    for bad in (['--count', '0'], ['--height', '8'], ['--seed', '-1']):
        assert run('data', 'scenes', '--out', 'b', *bad).exit_code == 2


def test_check_finds_nothing(run, scenes):
    result = run('data', 'check', scenes)
    assert result.exit_code == 0
    assert 'no problems' in result.stdout
    assert '3 usable pictures' in result.stdout


def test_check_lists_problems(run, scenes):
    spoil(scenes, bbox=[4, 4, -3, 5])
    (scenes / 'pictures' / '000001.png').write_text('text')
    result = run('data', 'check', scenes)
    assert result.exit_code == 2
    assert 'annotations.json, annotation 1: the box' in result.stdout
    assert '000001.png is not a picture' in result.stdout
    assert '1 × negative size' in result.stdout
    assert '2 problems' in result.stdout
    assert '2 have to be mended, or left out by --skip-bad' in result.stdout
    assert 'COCO has' not in result.stdout
    # rich before 14.3 ends the line of a bar that it does not show
    assert result.stderr.strip() == ''
    fast = run('data', 'check', scenes, '--no-decode')
    assert 'not a picture' not in fast.stdout
    assert fast.exit_code == 2


def test_check_wonders_about_corners(run, scenes):
    path = scenes / 'annotations.json'
    data = json.loads(path.read_text())
    for a in data['annotations']:
        x, y, w, h = a['bbox']
        a['bbox'] = [x, y, x + w, y + h]
    path.write_text(json.dumps(data))
    said = run('data', 'check', scenes).stdout
    assert 'COCO has x, y, width and height' in said
    assert 'training can start as it is' in said


def test_check_as_json(run, scenes, here):
    assert json.loads(run('data', 'check', scenes, '--json').stdout)['problems'] == []
    spoil(scenes, category_id=99)
    result = run('data', 'check', scenes, '--json')
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found['counts'] == {'unknown category': 1}
    assert found['problems'][0]['id'] == 'annotation 1'
    run('data', 'check', scenes, '--json', 'new/p.json')
    assert json.loads((here / 'new' / 'p.json').read_text()) == found


def test_check_broken_json(run, scenes):
    (scenes / 'annotations.json').write_text('{"images": [}')
    result = run('data', 'check', scenes)
    assert result.exit_code == 2
    assert 'annotations.json:1: broken JSON at line 1, column 13' in result.stdout
    assert 'nothing can be read until it is mended' in result.stdout


def test_check_classes(run, scenes):
    result = run('data', 'check', scenes, '--classes', 'disc,ring')
    assert result.exit_code == 2
    assert "'star' is none of disc, ring" in result.stdout


def test_check_refuses(run, here):
    result = run('data', 'check', 'gone')
    assert result.exit_code == 2
    assert 'no such file or folder' in result.stderr


def test_check_bccd(run, shared):
    result = run('data', 'check', shared / 'data' / 'bccd', '--no-decode')
    assert result.exit_code == 2
    assert '364 usable pictures, 4886 boxes' in result.stdout
    assert 'BloodImage_00343.xml:50, object 3' in result.stdout
    assert 'BloodImage_00338.xml:158, object 12' in result.stdout
    assert '2 × zero area (when read: left out)' in result.stdout


def test_show(run, scenes, here):
    (scenes / 'pictures' / '000001.png').write_text('text')
    result = run('data', 'show', scenes, '--out', 'new')
    assert result.exit_code == 0, result.output
    assert 'left out: ' in result.stderr
    with Image.open(here / 'new' / 'samples.png') as page:
        assert page.width > 2 * 480
    first = (here / 'new' / 'samples.png').read_bytes()
    run('data', 'show', scenes, '--out', 'new', '--count', 1)
    assert (here / 'new' / 'samples.png').read_bytes() != first
    assert run('data', 'show', scenes, '--out', 'new', '--count', 0).exit_code == 2


# ---- evaluate


@pytest.fixture
def evaluate(run, here, tmp_path_factory):
    from ddetr_np import build_model, save_model

    path = tmp_path_factory.mktemp('weights') / 'six.safetensors'
    model = build_model(
        'refine', backbone='resnet18', width=8, C=32, M=2, encoder_layers=1,
        decoder_layers=1, Nq=10, ffn=64, seed=3, num_classes=6,
    )
    save_model(model, path)

    def evaluate(*arguments):
        sizes = '--short', 64, '--long', 96
        return run('evaluate', '--weights', path, *sizes, *arguments)

    return evaluate


def test_evaluate(evaluate, scenes, here):
    result = evaluate('--data', scenes, '--out', 'new/out')
    assert result.exit_code == 0, result.output
    assert '3 pictures, 180 detections' in result.stdout
    out = here / 'new' / 'out'
    names = ['curves.png', 'figures.json', 'misses.png', 'results.json']
    assert sorted(p.name for p in out.iterdir()) == names
    figures = json.loads((out / 'figures.json').read_text())['figures']
    assert len(figures) == 12
    assert f'AP50      {figures["AP50"]:.3f}' in result.stdout
    results = json.loads((out / 'results.json').read_text())
    assert len(results) == 180
    assert set(results[0]) == {'image_id', 'category_id', 'bbox', 'score'}
    for name in ('curves.png', 'misses.png'):
        with Image.open(out / name) as image:
            assert min(image.size) > 300


def test_evaluate_as_json(evaluate, scenes):
    result = evaluate('--data', scenes, '--json')
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)['figures']) >= {'AP', 'AP50', 'AR_large'}


def test_evaluate_skips_bad(evaluate, scenes):
    spoil(scenes, category_id=99)
    (scenes / 'pictures' / '000001.png').write_text('text')
    result = evaluate('--data', scenes)
    assert result.exit_code == 2
    assert 'unknown category' in result.stderr
    result = evaluate('--data', scenes, '--skip-bad')
    assert result.exit_code == 0, result.output
    assert '2 pictures' in result.stdout
    assert 'left out: 1 × unknown category' in result.stderr
    assert 'left out: 1 × not a picture' in result.stderr


def test_evaluate_refuses(evaluate, scenes, shared):
    result = evaluate('--data', shared / 'data' / 'bccd', '--split', 'val')
    assert result.exit_code == 2
    assert 'the model has 6 classes' in result.stderr
    assert evaluate('--data', scenes, '--batch', 0).exit_code == 2


def test_evaluate_on_coco_ids(run, weights, shared):
    """A model of 91 classes takes COCO's ids without being told."""
    result = run(
        'evaluate', '--weights', weights, '--data', shared / 'data' / 'coco_mini',
        '--short', 64, '--long', 96, '--json',
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)['pictures'] == 20


def test_help_of_data_imports_nothing_heavy():
    import subprocess

    code = (
        'import sys\n'
        'from click.testing import CliRunner\n'
        'from ddetr_np.cli import cli\n'
        'for c in (["data", "-h"], ["data", "check", "-h"], ["evaluate", "-h"]):\n'
        '    assert CliRunner().invoke(cli, c).exit_code == 0\n'
        'sys.exit("numpy" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
