import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.errors import InputError
from ddetr_np.evaluate.postprocess import postprocess


def logit(p):
    return np.log(p / (1 - p))


def test_by_hand():
    logits = logit(np.array([[[0.2, 0.9], [0.7, 0.1], [0.5, 0.6]]]))
    boxes = np.array([[[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.2], [0.9, 0.1, 0.4, 0.4]]])
    (best,) = postprocess(logits, boxes, [(100, 200)], top=3)
    assert_allclose(best.scores, [0.9, 0.7, 0.6])
    assert_array_equal(best.labels, [1, 0, 1])
    # x by the width, y by the height; the last one reaches past the picture
    assert_allclose(
        best.boxes, [[0, 0, 200, 100], [0, 40, 100, 60], [140, -10, 220, 30]]
    )


def test_a_query_may_appear_under_several_classes():
    logits, boxes = np.array([[[1.0, 2.0, 3.0]]]), np.full((1, 1, 4), 0.5)
    (best,) = postprocess(logits, boxes, [(9, 9)])
    assert_array_equal(best.labels, [2, 1, 0])
    assert_allclose(best.boxes, np.broadcast_to(best.boxes[:1], (3, 4)))


def test_top_past_all_gives_all():
    (best,) = postprocess(np.zeros((1, 4, 5)), np.zeros((1, 4, 4)), [(9, 9)], top=100)
    assert len(best.scores) == 20


def test_equal_scores_keep_their_order():
    logits = np.zeros((1, 50, 7))
    boxes = np.zeros((1, 50, 4))
    boxes[0, :, 0] = np.arange(50)
    (best,) = postprocess(logits, boxes, [(1, 1)], top=30)
    assert_array_equal(best.labels, np.arange(30) % 7)
    assert_array_equal(best.boxes[:, 0], np.arange(30) // 7)


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
def test_published(shared, variant):
    oracle = np.load(shared / 'oracles' / f'official_{variant}.npz')
    best = postprocess(oracle['pred_logits'], oracle['pred_boxes'], [(480, 640)] * 2)
    for i in range(2):
        assert_allclose(best[i].scores, oracle[f'post{i}_scores'], rtol=1e-9)
        assert_array_equal(best[i].labels, oracle[f'post{i}_labels'])
        assert_allclose(best[i].boxes, oracle[f'post{i}_boxes'], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('shapes', 'sizes', 'top', 'message'),
    [
        (((1, 2, 3), (1, 2, 5)), [(9, 9)], 1, 'do not fit'),
        (((1, 2, 3), (1, 3, 4)), [(9, 9)], 1, 'do not fit'),
        (((2, 3), (2, 4)), [(9, 9)], 1, 'do not fit'),
        (((2, 2, 3), (2, 2, 4)), [(9, 9)], 1, '1 sizes for 2'),
        (((1, 2, 3), (1, 2, 4)), [(9, 9)], 0, 'top is 0'),
    ],
)
def test_refuses(shapes, sizes, top, message):
    logits, boxes = map(np.zeros, shapes)
    with pytest.raises(InputError, match=message):
        postprocess(logits, boxes, sizes, top)
