import json

import numpy as np
import pytest

from ddetr_np import InputError, build_model, coco_figures, detect, read_dataset
from ddetr_np.config import make_config
from ddetr_np.data.dataset import Dataset, make_example
from ddetr_np.data.scenes import Scenes
from ddetr_np.evaluate import evaluate
from ddetr_np.evaluate.evaluation import check_classes, reading_for

SIZES = {'short': 64, 'long': 96}


def small_model(**fields):
    return build_model(
        'multi_scale', backbone='resnet18', width=8, C=32, M=2, encoder_layers=1,
        decoder_layers=1, Nq=10, ffn=64, seed=3, **fields,
    )


def test_equals_its_parts():
    model, scenes = small_model(num_classes=6), Scenes(5, seed=2, H=64, W=96)
    done = []
    report = evaluate(model, scenes, batch=2, progress=done.append, **SIZES)
    results = []
    for example in scenes:
        found = detect(model, example.picture(), threshold=0, **SIZES)
        results += found.to_coco(example.id)
    assert report.pictures == 5
    assert done == [2, 4, 5]
    assert len(report.results) == len(results) == 5 * 60
    wanted = coco_figures(results, scenes).figures
    assert report.figures.keys() == wanted.keys()
    for name, value in report.figures.items():
        assert value == pytest.approx(wanted[name], abs=1e-4), name
    json.dumps([report.to_dict(), report.results])


def test_results_have_the_data_sets_ids():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
    examples = [make_example(39, pixels, (64, 96), [[5, 5, 30, 30]], [1])]
    data = Dataset(examples, ('cat', 'dog'), (17, 18))
    report = evaluate(small_model(num_classes=2), data, **SIZES)
    assert {r['category_id'] for r in report.results} == {17, 18}
    assert {r['image_id'] for r in report.results} == {39}


def test_bad_pictures(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    examples = []
    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
        path = tmp_path / f'{i}.png'
        examples.append(make_example(i, path, (64, 96), [[5, 5, 30, 30]], [0]))
    (tmp_path / '1.png').write_text('text')
    data, model = Dataset(examples, ('cat',)), small_model(num_classes=1)
    with pytest.raises(InputError, match=r'1\.png is not a picture'):
        evaluate(model, data, **SIZES)
    report = evaluate(model, data, skip_bad=True, batch=2, **SIZES)
    assert report.pictures == 2
    assert report.skipped == {'not a picture': 1}
    # the outcomes go by the whole data set's numbers
    assert {o.picture for o in report.outcomes} == {0, 2}


def test_coco_ids_as_they_are(shared):
    config = make_config('multi_scale')
    assert reading_for(config) == {'labels': 'ids'}
    folder = shared / 'data' / 'coco_mini'
    check_classes(config, read_dataset(folder, labels='ids'))
    with pytest.raises(InputError, match="labels='ids'"):
        check_classes(config, read_dataset(folder))


def classes(*names):
    return Dataset([], names)


def test_classes_must_be_the_same():
    named = make_config('refine', num_classes=2, names=('cat', 'dog'))
    assert reading_for(named) == {'names': ('cat', 'dog')}
    check_classes(named, classes('cat', 'dog'))
    with pytest.raises(InputError, match='finds cat, dog, in this order'):
        check_classes(named, classes('dog', 'cat'))
    nameless = make_config('refine', num_classes=2)
    assert reading_for(nameless) == {}
    check_classes(nameless, classes('x', 'y'))
    with pytest.raises(InputError, match=r'2 classes, .* has 3'):
        check_classes(nameless, classes('x', 'y', 'z'))
    # three blood cells are not the first three ids of COCO
    with pytest.raises(InputError, match='91 classes'):
        check_classes(make_config('refine'), classes('Platelets', 'RBC', 'WBC'))
