"""Cases of which the figures are worked out on paper."""

import contextlib
import io
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddetr_np import InputError, coco_figures, read_dataset
from ddetr_np.data.dataset import Dataset, make_example

SIDE = 100.0
ONE = pytest.approx(1, abs=1e-12)  # pycocotools divides by TP + FP + 2e-16


def truth(*pictures, names=('a', 'b'), areas=None, crowd=None):
    """Pictures of [(label, x0, y0, x1, y1), …]; their ids are 'p0', 'p1' …"""
    return Dataset(
        [
            make_example(
                f'p{i}', f'{i}.png', (1000, 1000), [row[1:] for row in rows],
                [row[0] for row in rows], crowd and crowd[i], areas and areas[i],
            )
            for i, rows in enumerate(pictures)
        ],
        names,
    )


def found(picture, label, x0, y0, x1, y1, score):
    return {
        'image_id': f'p{picture}', 'category_id': label, 'score': score,
        'bbox': [x0, y0, x1 - x0, y1 - y0],
    }


def box(x, y=0.0, side=SIDE):
    return x, y, x + side, y + side


def test_perfect():
    data = truth([(0, *box(0)), (1, *box(200))], [(0, *box(50))])
    results = [
        found(0, 0, *box(0), 0.9), found(0, 1, *box(200), 0.4),
        found(1, 0, *box(50), 0.2),
    ]
    report = coco_figures(results, data)
    # boxes of 100 × 100 are large: above 96²
    undefined = {'AP_small', 'AP_medium', 'AR_small', 'AR_medium'}
    for name, value in report.figures.items():
        assert value == (-1 if name in undefined else ONE), name
    assert [c.AP for c in report.classes] == [ONE, ONE]
    assert [c.objects for c in report.classes] == [2, 1]
    assert {o.kind for o in report.outcomes} == {'found'}
    # 1 − score is left of each: 0.1 + 0.6 and 0.8
    assert report.worst() == [1, 0]
    assert report.worst(1) == [1]
    assert report.results == results


@pytest.mark.parametrize(
    ('width', 'AP'),
    # IoU = width / 100: as many of the thresholds 0.50, 0.55 … 0.95 as it reaches
    [(100, 1.0), (93, 0.9), (75, 0.6), (74.9, 0.5), (52, 0.1), (49, 0.0)],
)
def test_narrower(width, AP):
    data = truth([(0, *box(0))])
    report = coco_figures([found(0, 0, 0, 0, width, SIDE, 0.5)], data)
    assert report.figures['AP'] == pytest.approx(AP, abs=1e-12)
    assert report.figures['AP50'] == pytest.approx(float(width > 50))
    assert report.figures['AP75'] == pytest.approx(float(width >= 75))
    assert report.figures['AR100'] == pytest.approx(AP, abs=1e-12)


def test_shifted():
    # by a tenth: IoU = 90 / 110 = 0.818, which reaches 0.50 … 0.80, seven of ten
    report = coco_figures([found(0, 0, *box(10), 0.5)], truth([(0, *box(0))]))
    assert report.figures['AP'] == pytest.approx(0.7)


def test_duplicate():
    data = truth([(0, *box(0)), (0, *box(300))])
    results = [
        found(0, 0, *box(0), 0.9), found(0, 0, *box(0), 0.8),  # again: false
        found(0, 0, *box(300), 0.7),
    ]
    report = coco_figures(results, data)
    # recall ½ at precision 1: the 51 points 0 … 0.5; recall 1 at precision ⅔: 50 more
    AP = (51 + 50 * 2 / 3) / 101
    assert report.figures['AP'] == pytest.approx(AP, abs=1e-12)
    assert report.figures['AR1'] == 0.5
    assert report.figures['AR10'] == 1
    kinds = [(o.kind, o.score) for o in report.outcomes]
    assert sorted(kinds) == [('false', 0.8), ('found', 0.7), ('found', 0.9)]


def test_crowd():
    rows = [(0, *box(0)), (0, 300, 300, 900, 900)]
    results = [
        found(0, 0, *box(400, 400), 0.9), found(0, 0, *box(600, 600), 0.8),
        found(0, 0, *box(0), 0.5),
    ]
    report = coco_figures(results, truth(rows, crowd=[[0, 1]]))
    assert report.figures['AP'] == ONE  # nothing in the crowd is false
    assert report.classes[0].objects == 1
    assert [o.kind for o in report.outcomes] == ['found']
    # without the flag: false, false, true; the large box is missed
    report = coco_figures(results, truth(rows))
    assert report.figures['AP'] == pytest.approx(51 / 101 / 3, abs=1e-12)
    # nobody asks for a crowd that is not found
    report = coco_figures(results[2:], truth(rows, crowd=[[0, 1]]))
    assert report.figures['AP'] == ONE


def test_empty_picture():
    right = found(0, 0, *box(0), 0.5)
    data = truth([(0, *box(0))], [])
    assert coco_figures([right], data).figures['AP'] == ONE
    # a false detection that comes first halves the precision at every recall
    report = coco_figures([right, found(1, 0, *box(0), 0.9)], data)
    assert report.figures['AP'] == pytest.approx(0.5)
    assert report.worst() == [1, 0]
    # one that comes last costs nothing
    report = coco_figures([right, found(1, 0, *box(0), 0.1)], data)
    assert report.figures['AP'] == ONE
    assert report.pictures == 2


def test_category_that_never_occurs():
    results = [found(0, 0, *box(0), 0.5), found(0, 1, *box(0), 0.9)]
    report = coco_figures(results, truth([(0, *box(0))]))
    assert report.figures['AP'] == ONE  # the mean of what occurs
    assert report.classes[1].AP == -1
    assert report.classes[1].objects == 0


def test_class_means():
    data = truth([(0, *box(0)), (1, *box(200))])
    report = coco_figures([found(0, 0, *box(0), 0.5)], data)
    assert [c.AP for c in report.classes] == [ONE, 0]
    assert report.figures['AP'] == pytest.approx(0.5)


def test_sizes_go_by_the_annotated_area():
    rows = [(0, *box(0, side=40)), (0, *box(200, side=40)), (0, *box(400))]
    # 40 × 40 is medium (32² to 96²); the first one's outline fills 1,000: small
    data = truth(rows, areas=[[1000, 1600, 10000]])
    results = [found(0, 0, *box(0, side=40), 0.9), found(0, 0, *box(400), 0.8)]
    figures = coco_figures(results, data).figures
    assert figures['AR_small'] == 1
    assert figures['AR_medium'] == 0
    assert figures['AR_large'] == 1
    # found: two of three at precision 1, the 67 points of recall 0 … 0.66
    assert figures['AP'] == pytest.approx(67 / 101)


def test_nothing():
    figures = coco_figures([], truth([(0, *box(0))])).figures
    assert figures['AP'] == figures['AR100'] == 0
    assert figures['AP_small'] == -1
    report = coco_figures([], truth([], []))
    assert set(report.figures.values()) == {-1}
    assert report.worst() == []
    assert '–' in repr(report)


def test_precision_curve():
    data = truth([(0, *box(0)), (0, *box(300))])
    results = [found(0, 0, *box(0), 0.9), found(0, 0, *box(600), 0.8)]
    report = coco_figures(results, data)
    assert report.precision.shape == (10, 101, 2)
    assert_allclose(report.precision[0, :51, 0], 1)
    assert_allclose(report.precision[0, 51:, 0], 0)
    assert (report.precision[:, :, 1] == -1).all()


def test_annotated_boxes_are_not_clipped():
    data = truth([(0, -100.0, 0, 100, 100)])
    report = coco_figures([found(0, 0, -100.0, 0, 100, 100, 0.5)], data)
    assert report.figures['AP'] == ONE


def test_says_nothing(capsys):
    coco_figures([found(0, 0, *box(0), 0.5)], truth([(0, *box(0))]))
    assert capsys.readouterr() == ('', '')


def test_repr():
    data = truth([(0, *box(0))], names=('a long name', 'b'))
    lines = repr(coco_figures([found(0, 0, *box(0), 0.5)], data)).splitlines()
    assert lines[0] == '1 pictures, 1 detections'
    assert lines[1].split() == ['AP', '1.000', 'AR1', '1.000']
    assert lines[-1].split() == ['a', 'long', 'name'] + ['1.000'] * 4 + ['1']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image_id': 'q'}, "no picture with id 'q'"),
        ({'category_id': 5}, 'no category 5'),
        ({'score': float('nan')}, 'all finite'),
        ({'bbox': [1, 2, 3]}, 'x, y, w, h'),
        ({'bbox': None}, 'not in COCO format'),
    ],
)
def test_refuses(change, message):
    with pytest.raises(InputError, match=message):
        coco_figures([found(0, 0, *box(0), 0.5) | change], truth([(0, *box(0))]))


def test_equals_pycocotools_by_its_own_way(shared, tmp_path):
    """Real annotations, detections at random near them, through files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = shared / 'data' / 'coco_mini' / 'annotations' / 'instances_val2017.json'
    rng = np.random.default_rng(0)
    results = []
    for a in json.loads(path.read_text())['annotations']:
        for _ in range(int(rng.integers(0, 4))):
            shift = rng.normal(0, 0.08, 4) * a['bbox'][2]
            bbox = (np.array(a['bbox']) + shift).clip(1).tolist()
            results.append({
                'image_id': a['image_id'], 'category_id': a['category_id'],
                'bbox': bbox, 'score': float(rng.random()),
            })
    (tmp_path / 'r.json').write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO(str(path))
        run = COCOeval(gold, gold.loadRes(str(tmp_path / 'r.json')), 'bbox')
        run.evaluate()
        run.accumulate()
        run.summarize()
    for labels in ('ids', 'contiguous'):
        report = coco_figures(results, read_dataset(path, labels=labels))
        assert_allclose(list(report.figures.values()), run.stats, rtol=1e-12)
    assert 0.1 < report.figures['AP'] < 0.9
