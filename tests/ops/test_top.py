"""The choice of the best: values by hand, and what the twin for a GPU is given."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddetr_np.fast import cuda, gpu_top
from ddetr_np.ops.top import distinct_top, top


def test_by_hand():
    """Best first; of equals the first; infinities are numbers, NaN comes last."""
    nan, inf = np.nan, np.inf
    scores = np.array([[1, 3, 2, 3], [nan, -inf, inf, nan], [-0.0, 0.0, 0.0, 1]])
    expected = np.array([[1, 3, 2, 0], [2, 1, 0, 3], [3, 0, 1, 2]])
    for n in (1, 2, 4):
        places = top(scores, n)
        assert places.dtype == np.int64
        assert_array_equal(places, expected[:, :n])


@pytest.mark.parametrize('dtype', gpu_top.TYPES)
def test_the_twin_copies_views_and_writes_all(monkeypatch, dtype):
    """As `nn.proposals` calls it: a column of the logits, which is no whole memory."""
    logits = np.random.default_rng(1).integers(0, 9, (2, 200, 3)).astype(dtype)
    view, launched = logits[..., 0], []

    def run(xp, launch):
        launched.append(launch)
        scores, places, S, n = launch.args
        assert scores.flags.c_contiguous
        assert places.flags.c_contiguous
        assert (places.dtype, S.dtype, n.dtype) == (np.int64, np.int32, np.int32)
        assert scores.shape == (2, S)
        assert places.shape == (2, n)
        assert launch.blocks == 2 * 2  # of 128 threads for 200 scores
        places[...] = top.plain(scores, n)

    monkeypatch.setattr(cuda, 'launch', run)
    for n in (1, 130, 200):
        assert_array_equal(gpu_top.gpu_top(view, n), top.plain(view, n))
    assert len(launched) == 3


@pytest.mark.parametrize(('shape', 'n'), [((2, 5), 0), ((0, 5), 3), ((2, 5), 9)])
def test_the_twin_s_shapes_are_the_plain_ones(monkeypatch, shape, n):
    monkeypatch.setattr(cuda, 'launch', lambda xp, launch: launch.args[1].fill(0))
    scores = np.zeros(shape, 'float32')
    got, expected = gpu_top.gpu_top(scores, n), top.plain(scores, n)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize(
    ('iou', 'expected'),
    [
        (1.0, [1, 0, 3, 2, 4]),  # by score alone
        (0.5, [1, 3, 4, 0, 2]),  # 0 and 2 lie on 1: they follow, the better one first
        (0.3, [1, 3, 4, 0, 2]),
        (0.2, [1, 4, 0, 3, 2]),  # 3 overlaps 1 by a quarter
    ],
)
def test_distinct_boxes_by_hand(iou, expected):
    boxes = np.array([[
        [0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.3],
        [0.74, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1],
    ]])
    scores = np.array([[4.0, 5.0, 2.0, 3.0, 1.0]])
    for n in (1, 3, 5):
        places = distinct_top(scores, boxes, n, iou)
        assert places.dtype == np.int64
        assert_array_equal(places, [expected[:n]])


def overlap(a, b):
    """IoU of two boxes, by its definition."""
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
        - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)
        for i in (0, 1)
    ]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('iou', [0.1, 0.5, 0.7, 0.95])
def test_distinct_boxes_are_the_greedy_choice(iou, dtype):
    """Each picture by itself, against the loop of the docstring; with equal scores."""
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 40, (3, 80)).astype(dtype)
    boxes = rng.random((3, 80, 4)).astype(dtype) * [0.2, 0.2, 0.3, 0.3] + 0.2
    boxes[1] = boxes[1, 0]  # one picture's are all the same
    scores[2, :9] = np.nan
    boxes = boxes.astype(dtype)
    got = distinct_top(scores, boxes, 30, iou)
    for s, box, places in zip(scores, boxes, got, strict=True):
        taken, left = [], []
        for i in top(s[None], len(s))[0]:
            alone = all(overlap(box[i], box[j]) <= iou for j in taken)
            (taken if alone else left).append(i)
        assert_array_equal(places, (taken + left)[:30])
    assert_array_equal(got[1], top(scores[1:2], 30)[0])


@pytest.mark.parametrize(('shape', 'n'), [((2, 5), 0), ((0, 5), 3), ((2, 5), 9)])
def test_distinct_boxes_of_few_tokens(shape, n):
    boxes = np.full((*shape, 4), 0.5)
    places = distinct_top(np.zeros(shape), boxes, n, 0.5)
    assert_array_equal(places, top(np.zeros(shape), n))
