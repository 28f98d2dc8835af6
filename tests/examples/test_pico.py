"""The whole forward pass in one file: against the published one and the package's."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ddetr_np

FILE = Path(__file__).resolve().parents[2] / 'examples' / 'pico_ddetr.py'


@pytest.fixture(scope='module')
def pico():
    spec = importlib.util.spec_from_file_location('pico_ddetr', FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def distance(a, b):
    """‖a − b‖ / ‖b‖."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
def test_the_published_pass(variant, pico, published_model, published_pass):
    arrays, images, mask, _ = published_pass(variant)
    weights = published_model(variant).state_dict()
    logits, boxes = pico.detector(images, mask, weights)
    assert distance(logits[-1], arrays['pred_logits']) < 1e-9
    assert distance(boxes[-1], arrays['pred_boxes']) < 1e-9
    for d in range(5):
        assert distance(boxes[d], arrays[f'aux{d}_pred_boxes']) < 1e-9
    for i in range(2):
        scores, labels, _ = pico.best(logits[-1, i], boxes[-1, i], 480, 640)
        assert distance(scores, arrays[f'post{i}_scores']) < 1e-9
        assert sorted(labels) == sorted(arrays[f'post{i}_labels'])


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['single_scale', 'single_scale_dc5', 'refine'])
def test_variants_of_which_no_pass_is_published(
    variant, pico, published_weights, published_pass
):
    model = ddetr_np.build_model(variant, dtype='float64')
    model.load_state_dict(published_weights(variant))
    _, images, mask, _ = published_pass('multi_scale')
    corner = np.s_[:, 64:, 80:]  # padding of the second picture included
    meet(pico, model, images[corner], mask[corner])


@pytest.mark.parametrize('levels', [2, 5])
def test_other_sizes(levels, pico):
    model = ddetr_np.build_model(
        'two_stage', dtype='float64', backbone='resnet34', width=8, C=20, M=5, K=3,
        L=levels, Nq=7, ffn=24, encoder_layers=1, decoder_layers=2, num_classes=3,
        base_scale=0.1, frozen_norm=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for _, p in model.named_params():  # initial weights leave much trivial
        p.data += 0.1 * rng.random(p.data.shape)
    pictures = [rng.standard_normal(s) for s in ((97, 131, 3), (65, 70, 3))]
    meet(pico, model, *ddetr_np.pad_batch(pictures))


def meet(pico, model, images, mask):
    c = model.config
    found = pico.detector(
        images, mask, model.state_dict(), c.M, c.dilation, c.Nq, c.base_scale,
        c.proposal_iou,
    )  # fmt: skip
    out, _ = model.forward(images, mask, keep='none')
    assert distance(found[0], out.logits) < 1e-9
    assert distance(found[1], out.boxes) < 1e-9


def test_the_packaged_detector(pico):
    model = ddetr_np.load_model('scenes', dtype='float64')
    scenes = [ddetr_np.draw_scene(seed, 160, 192).picture for seed in range(2)]
    normalised = [pico.normalise(picture) for picture in scenes]
    for ours, picture in zip(normalised, scenes):
        np.testing.assert_allclose(ours, ddetr_np.normalise(picture), atol=1e-6)
    images, mask = ddetr_np.pad_batch([normalised[0], normalised[1][:140]], 'float64')
    meet(pico, model, images, mask)


def test_its_command_finds_what_the_package_finds(tmp_path):
    (tmp_path / 'scene').mkdir()
    ddetr_np.write_scenes(tmp_path / 'scene', 1, seed=7)
    (picture,) = (tmp_path / 'scene' / 'pictures').iterdir()
    told = subprocess.run(
        [sys.executable, FILE, picture, '--weights', 'scenes'],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    found = ddetr_np.detect(ddetr_np.load_model('scenes'), picture, threshold=0.5)
    assert len(told) == len(found) > 0
    for line, d in zip(told, found):
        score, name, *box = line.split()
        assert name == d.name
        np.testing.assert_allclose(float(score), d.score, atol=2e-3)
        np.testing.assert_allclose([float(edge) for edge in box], d.box, atol=0.2)


def test_it_is_short_and_needs_numpy_alone():
    text = FILE.read_text(encoding='utf-8')
    assert len(text.splitlines()) < 300
    tree = ast.parse(text)
    main = next(n for n in tree.body if getattr(n, 'name', None) == 'main')
    assert imports(tree) == {'argparse', 'numpy', 'ddetr_np'}
    assert imports(main) == {'ddetr_np'}  # reads the files, and does nothing else
    used = {
        n.attr for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and getattr(n.value, 'id', None) == 'ddetr_np'
    }  # fmt: skip
    assert used == {'load_model', 'read_picture', 'resize'}


def imports(tree):
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def test_shapes_stand_on_the_def_lines():
    text = FILE.read_text(encoding='utf-8')
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.args.args:
            first = node.lineno
            if node.name not in ('under', 'standard'):  # of any shape
                assert '→' in lines[first - 1] or '→' in lines[first], node.name
