import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ddetr_np


def test_one_picture(detect, picture, weights, here):
    result = detect(picture('a.png'))
    assert result.exit_code == 0, result.output
    found = ddetr_np.detect(
        ddetr_np.load_model(weights), 'a.png', threshold=0, top=5, short=64, long=96
    )
    assert 'a.png (40 × 50)' in result.stdout
    for d in found:
        assert f'{d.score:.3f}' in result.stdout
        assert f'{d.box[0]:.1f}' in result.stdout
    assert os.listdir(here) == ['a.png']


def test_drawn_pictures_and_json(detect, picture, here):
    for i, name in enumerate(('in/000000000139.png', 'in/cat.jpg', 'other/cat.jpg')):
        picture(name, (50 + i, 40), i)
    result = detect('in', 'other/*.jpg', '--out', 'out', '--json', 'new/results.json')
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(here / 'out')) == [
        '000000000139.png', 'in_cat.png', 'other_cat.png'
    ]
    with Image.open(here / 'out' / 'other_cat.png') as drawn:
        assert drawn.size == (40, 52)
        with Image.open(here / 'other' / 'cat.jpg') as source:
            assert np.abs(np.asarray(drawn) - np.asarray(source, float)).max() > 100
    results = json.loads((here / 'new' / 'results.json').read_text())
    assert len(results) == 15
    ids = [139, 'in/cat.jpg', 'other/cat.jpg']
    assert [r['image_id'] for r in results[::5]] == ids
    assert set(results[0]) == {'image_id', 'category_id', 'bbox', 'score'}
    assert os.listdir(here / 'new') == ['results.json']


def test_pycocotools_reads_the_results(detect, shared, here, monkeypatch):
    from pycocotools.coco import COCO

    coco = shared / 'data' / 'coco_mini'
    result = detect(coco / 'val2017' / '000000006818.jpg', '--json', 'results.json')
    assert result.exit_code == 0, result.output
    truth = COCO(coco / 'annotations' / 'instances_val2017.json')
    assert len(truth.loadRes('results.json').getAnnIds(imgIds=[6818])) == 5


def test_batches_are_only_a_matter_of_speed(detect, picture, here):
    for name in 'abcde':
        picture(f'{name}.png', seed=ord(name))
    tables = [detect('*.png', '--batch', batch).stdout for batch in (1, 2, 9)]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].count('(40 × 50)') == 5


@pytest.mark.parametrize('batch', [1, 2, 4])
def test_bad_pictures_do_not_lose_the_others(detect, picture, here, batch):
    picture('a.png')
    (here / 'b.jpg').write_text('no picture')
    picture('c.png')
    data = (here / picture('d.png')).read_bytes()
    (here / 'd.png').write_bytes(data[:900])
    (here / 'e.jpg').touch()
    Image.new('RGB', (1, 1)).save(here / 'f.png')
    Image.new('1', (50_000, 16)).save(here / 'g.png')
    picture('h.png')
    result = detect(
        '.', 'lost.jpg', '*.gif', '--batch', batch, '--out', 'out', '--json', 'r.json'
    )
    assert result.exit_code == 2
    assert sorted(os.listdir(here / 'out')) == ['a.png', 'c.png', 'h.png']
    results = json.loads((here / 'r.json').read_text())
    assert [r['image_id'] for r in results[::5]] == ['a.png', 'c.png', 'h.png']
    lines = result.stderr.strip().splitlines()
    assert lines[0] == '7 could not be used:'
    for name in ('b.jpg', 'd.png', 'e.jpg', 'f.png', 'g.png', 'lost.jpg', '*.gif'):
        assert sum(name in line for line in lines) == 1, name
    assert 'Traceback' not in result.output


def test_only_bad_pictures(detect, here):
    (here / 'b.jpg').touch()
    result = detect('b.jpg', '--json', 'r.json')
    assert result.exit_code == 2
    assert 'b.jpg is empty' in result.stderr
    assert json.loads((here / 'r.json').read_text()) == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['*.gif'], 'no file matches'),
        ([''], 'empty name'),
        (['a.png', '--threshold', '2'], 'threshold is 2'),
        (['a.png', '--top', '0'], 'top is 0'),
        (['a.png', '--batch', '-1'], 'batch is -1'),
        (['a.png', '--short', '0'], 'short is 0'),
        (['a.png', '--short', '900', '--long', '800'], 'short is 900'),
        (['a.png', '--device', 'gpu'], "device is 'gpu'"),
        (['a.png', '--out', 'a.png'], 'is a file; expected a folder'),
        (['a.png', '--out', '.'], 'would be overwritten'),
        (['a.png', '--json', '.'], 'is a folder; expected a file'),
        (['a.png', '--json', 'a.png/x.json'], 'a.png'),
        (['a.png', '--weights', 'gone.pth'], 'gone.pth'),
        (['a.png', '--weights', 'a.png'], 'a.png'),
        (['a.png', '--dtype', 'int8'], 'float64'),
        (['a.png', '--set', 'M'], 'NAME=VALUE'),
        (['a.png', '--set', 'heads=3'], 'heads'),
        ([], 'PICTURES'),
    ],
)
def test_refused(detect, picture, here, arguments, message):
    picture('a.png')
    result = detect(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert 'Traceback' not in result.output
    assert os.listdir(here) == ['a.png']


def test_cuda_without_cupy(detect, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cupy', None)
    result = detect(picture('a.png'), '--device', 'cuda:0')
    assert result.exit_code == 2
    assert "pip install 'ddetr-np[gpu1" in result.stderr


def test_out_of_memory_in_one_batch(detect, picture, here, monkeypatch):
    from ddetr_np.nn.ddetr import DeformableDETR

    forward = DeformableDETR.forward

    def limited(self, images, *args, **kwargs):
        if images.shape[1] > 80:
            raise MemoryError
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(DeformableDETR, 'forward', limited)
    result = detect(picture('a.png', (40, 40)), picture('b.png', (60, 40)))
    assert result.exit_code == 2
    assert 'a.png (40 × 40)' in result.stdout
    assert "'b.png': the memory is not enough" in result.stderr


def test_nothing_found(run, picture, weights):
    result = run('detect', picture('a.png'), '--weights', weights, '--short', '64')
    assert result.exit_code == 0
    assert 'nothing scores 0.5 or more' in result.stdout


def test_brackets_in_names_are_no_markup(detect, picture):
    result = detect(picture('[red]a[/].png'))
    assert result.exit_code == 0
    assert '[red]a[/].png' in result.stdout


def test_interrupted(detect, picture, here, monkeypatch):
    """Nothing half-written, no traceback, the shell's code for Ctrl-C."""
    from ddetr_np.nn.ddetr import DeformableDETR

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(DeformableDETR, 'forward', interrupt)
    result = detect(picture('a.png'), '--json', 'r.json', '--out', 'out')
    assert result.exit_code == 130
    assert result.stderr.strip() == 'interrupted'
    assert not (here / 'r.json').exists()
    assert os.listdir(here / 'out') == []


@pytest.mark.skipif(os.name == 'nt', reason='pipes close otherwise on Windows')
def test_reader_of_the_output_has_gone(picture, weights, here):
    names = [picture(f'{i}.png') for i in range(3)]
    command = [sys.executable, '-m', 'ddetr_np', 'detect', *names, '--weights', weights]
    options = ['--short', '64', '--threshold', '0']
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=here
    ) as process:
        process.stdout.close()
        error = process.stderr.read().decode()
        process.wait(120)
    assert 'Traceback' not in error
    assert 'Exception' not in error
