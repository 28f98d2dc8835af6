import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from ddetr_np import build_model, detect
from ddetr_np.config import Config
from ddetr_np.data.prepare import normalise, pad_batch, resize
from ddetr_np.errors import InputError
from ddetr_np.evaluate.detection import Detections, class_name
from ddetr_np.evaluate.postprocess import postprocess

SIZES = {'short': 64, 'long': 96}


@pytest.fixture(scope='module')
def model():
    return build_model(
        'multi_scale', backbone='resnet18', width=8, C=32, M=2, encoder_layers=1,
        decoder_layers=2, Nq=10, ffn=64, seed=3,
    )


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((50, 70), (80, 60))]


def test_equals_its_parts(model, pictures):
    found = detect(model, pictures[0], threshold=0, **SIZES)
    images, mask = pad_batch([normalise(resize(pictures[0], **SIZES))])
    out, _ = model.forward(images, mask, train=False, keep='none')
    (best,) = postprocess(out.logits[-1], out.boxes[-1], [(50, 70)])
    assert len(found) == 100
    assert found.size == (50, 70)
    assert_array_equal(found.scores, best.scores)
    assert_array_equal(found.labels, best.labels)
    assert_array_equal(found.boxes, best.boxes)


def test_path_image_and_array_agree(model, pictures, tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(pictures[0]).save(path)
    wanted = detect(model, pictures[0], threshold=0, **SIZES)
    for source in (path, str(path), Image.fromarray(pictures[0])):
        found = detect(model, source, threshold=0, **SIZES)
        assert_array_equal(found.boxes, wanted.boxes)


def test_threshold_and_top(model, pictures):
    everything = detect(model, pictures[0], threshold=0, top=1000, **SIZES)
    assert len(everything) == 910
    assert (np.diff(everything.scores) <= 0).all()
    middle = float(everything.scores[40])
    some = detect(model, pictures[0], threshold=middle, top=1000, **SIZES)
    assert_array_equal(some.scores, everything.scores[everything.scores >= middle])
    assert len(detect(model, pictures[0], threshold=0, top=7, **SIZES)) == 7
    assert len(detect(model, pictures[0], threshold=1, **SIZES)) == 0


def test_several_pictures(model, pictures):
    alone = [detect(model, picture, threshold=0, **SIZES) for picture in pictures]
    for found, one in zip(detect(model, pictures, threshold=0, **SIZES), alone):
        assert_array_equal(found.boxes, one.boxes)
    assert detect(model, [], **SIZES) == []
    same = [pictures[0]] * 3
    for found in detect(model, same, threshold=0, batch=2, **SIZES):
        assert_allclose(found.scores, alone[0].scores, rtol=1e-5)


def test_a_padded_batch_has_each_pictures_own_size(model, pictures):
    found = detect(model, pictures, threshold=0, batch=2, **SIZES)
    assert [d.size for d in found] == [(50, 70), (80, 60)]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'threshold': 1.5}, 'threshold is 1.5'),
        ({'threshold': float('nan')}, 'threshold is nan'),
        ({'threshold': '0.5'}, "threshold is '0.5'"),
        ({'threshold': None}, 'threshold is None'),
        ({'top': 0}, 'top is 0'),
        ({'top': 2.5}, 'top is 2.5'),
        ({'batch': 0}, 'batch is 0'),
        ({'short': 900, 'long': 800}, 'short'),
        ({'short': 32.5}, 'short is 32.5'),
        ({'long': '800'}, "long is '800'"),
    ],
)
def test_refuses_numbers(model, pictures, fields, message):
    with pytest.raises(InputError, match=message):
        detect(model, pictures[0], **{**SIZES, **fields})


def test_refuses_pictures(model, tmp_path):
    with pytest.raises(InputError, match='no such file'):
        detect(model, tmp_path / 'none.jpg')
    with pytest.raises(InputError, match='at least 16'):
        detect(model, np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(InputError, match='picture is 5'):
        detect(model, 5)


# ---- Detections


@pytest.fixture
def two():
    boxes = np.array([[1, 2, 11, 22], [-3.5, 0, 4, 8]], np.float32)
    scores = np.array([0.75, 0.5], np.float32)
    return Detections(scores, np.array([17, 1]), ['cat', 'person'], boxes, (30, 40))


def test_iteration(two):
    assert len(two) == 2
    first, second = two
    assert first == (0.75, 17, 'cat', (1, 2, 11, 22))
    assert second.box == (-3.5, 0, 4, 8)


def test_repr(two):
    lines = repr(two).splitlines()
    assert lines[0] == '2 detections in a picture of 40 × 30 pixels'
    assert lines[2].split() == ['0.750', 'cat', '1.0', '2.0', '11.0', '22.0']
    assert len({len(line) for line in lines[1:]}) == 1
    none = Detections(np.zeros(0), np.zeros(0, int), [], np.zeros((0, 4)), (30, 40))
    assert repr(none).startswith('0 detections')


def test_to_coco(two):
    results = json.loads(json.dumps(two.to_coco(139)))
    assert results[0] == {
        'image_id': 139, 'category_id': 17, 'bbox': [1, 2, 10, 20], 'score': 0.75
    }
    assert results[1]['bbox'] == [-3.5, 0, 7.5, 8]


def test_class_names(shared):
    coco = shared / 'data' / 'coco_mini' / 'annotations' / 'instances_val2017.json'
    names = {c['id']: c['name'] for c in json.loads(coco.read_text())['categories']}
    for label in range(91):
        wanted = names.get(label, f'class {label}')
        assert class_name(Config(), label) == wanted
    assert class_name(Config(num_classes=3), 1) == 'class 1'
    assert class_name(Config(num_classes=2, names=('cell', 'plate')), 1) == 'plate'
