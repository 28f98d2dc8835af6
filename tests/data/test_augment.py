import math
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np import Augment, InputError
from ddetr_np.data.augment import (
    CROP,
    MIDDLE,
    SCALES,
    change_colours,
    crop,
    flip_x,
    flip_y,
    published,
    random_colours,
    random_share_crop,
    random_size_crop,
    resize_with_boxes,
)


def marked(H=40, W=60):
    """A picture whose pixels know their place, and two boxes."""
    rows, columns = np.mgrid[0:H, 0:W]
    picture = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
    boxes = np.array([[10.0, 5, 30, 25], [0, 0, W, 8]])
    return picture, {'boxes': boxes, 'labels': np.array([3, 1])}


class Script:
    """A generator that draws what the test has written down."""

    def __init__(self, *values):
        self.values, self.asked = list(values), []

    def random(self):
        return self.values.pop(0)

    def integers(self, low, high):
        value = self.values.pop(0)
        assert low <= value < high
        self.asked.append((low, high - 1))
        return value

    def choice(self, options):
        value = self.values.pop(0)
        assert value in options
        return value


def test_flip_x_by_hand():
    picture, target = marked()
    flipped, after = flip_x(picture, target)
    assert_array_equal(flipped[3, 0], picture[3, 59])
    assert_array_equal(after['boxes'], [[30, 5, 50, 25], [0, 0, 60, 8]])
    assert_array_equal(after['labels'], [3, 1])
    assert_array_equal(target['boxes'][0], [10, 5, 30, 25])  # the given one is kept
    again, back = flip_x(flipped, after)
    assert_array_equal(again, picture)
    assert_array_equal(back['boxes'], target['boxes'])


def test_flip_y_by_hand():
    picture, target = marked()
    flipped, after = flip_y(picture, target)
    assert_array_equal(flipped[0], picture[39])
    assert_array_equal(after['boxes'], [[10, 15, 30, 35], [0, 32, 60, 40]])


def test_crop_by_hand():
    picture, target = marked()
    target['extra'] = np.array(['a', 'b'])
    cut, after = crop(picture, target, 8, 20, 20, 15)
    assert cut.shape == (20, 15, 3)
    assert_array_equal(cut[0, 0], picture[8, 20])
    # the second box ends where the region begins: no area is left of it
    assert_array_equal(after['boxes'], [[0, 0, 10, 17]])
    assert_array_equal(after['labels'], [3])
    assert_array_equal(after['extra'], ['a'])


def test_crop_asks_for_a_visible_share():
    picture, target = marked()
    # of the first box 10 × 20 of 20 × 20 are left, of the second 40 × 8 of 60 × 8
    for visible, labels in ((0.49, [3, 1]), (0.5, [1]), (0.7, [])):
        _, after = crop(picture, target, 0, 20, 40, 40, visible)
        assert after['labels'].tolist() == labels


def test_resize_by_hand():
    picture, target = marked()
    small, after = resize_with_boxes(picture, target, 20)
    assert small.shape == (20, 30, 3)
    assert_array_equal(after['boxes'], [[5, 2.5, 15, 12.5], [0, 0, 30, 4]])
    # 33 · 60 / 40 = 49.5 is cut to 49: each side has a ratio of its own
    small, after = resize_with_boxes(picture, target, 33)
    assert small.shape == (33, 49, 3)
    assert_allclose(after['boxes'][1], [0, 0, 49, 8 * 33 / 40])


def test_size_crop_draws_width_then_height_both_ends_included():
    picture, target = marked(500, 700)
    script = Script(600, 384, 116, 100)
    cut, _ = random_size_crop(picture, target, script)
    assert script.asked == [(384, 600), (384, 500), (0, 116), (0, 100)]
    assert cut.shape == (384, 600, 3)
    assert_array_equal(cut[0, 0], picture[116, 100])
    small, _ = marked(300, 384)  # a side below 384 stays whole
    assert random_size_crop(small, target, Script(384, 300, 0, 0))[0].shape[0] == 300


def test_published_first_way():
    picture, target = marked(480, 640)
    got, after = published(picture, target, Script(0.4, 0.3, 800))
    wanted, boxes = resize_with_boxes(*flip_x(picture, target), 800, 1333)
    assert_array_equal(got, wanted)
    assert got.shape == (800, 1066, 3)
    assert_array_equal(after['boxes'], boxes['boxes'])
    first = [610 * 1066 / 640, 5 * 800 / 480, 630 * 1066 / 640, 25 * 800 / 480]
    assert_allclose(after['boxes'][0], first)


def test_published_second_way_by_hand():
    picture, target = marked(480, 640)
    target['boxes'] = np.array([[240.0, 120, 400, 360], [0, 0, 16, 480]])
    # 600 → 600 × 800; region 400 wide, 500 high, from row 60, column 100 → 480
    script = Script(0.9, 0.6, 600, 400, 500, 60, 100, 480)
    got, after = published(picture, target, script)
    assert script.values == []
    assert got.shape == (600, 480, 3)
    # (240, 120, 400, 360) · 1.25 − (100, 60) = (200, 90, 400, 390), then · 1.2
    assert_allclose(after['boxes'], [[240, 108, 480, 468]])
    assert_array_equal(after['labels'], [3])


def test_published_sizes_and_frequencies():
    assert SCALES == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert MIDDLE == (400, 500, 600)
    assert CROP == (384, 600)
    picture, target = marked(100, 160)
    target = {'boxes': np.array([[0.0, 0, 80, 100]]), 'labels': np.array([2])}
    rng = np.random.default_rng(0)
    shorts, flips, crops = set(), 0, 0
    for _ in range(60):
        got, after = published(picture, target, rng)
        H, W = got.shape[:2]
        shorts.add(min(H, W))
        crops += abs(W / H - 1.6) > 0.01
        if abs(W / H - 1.6) < 0.01:  # whole: the box fills a half
            flips += after['boxes'][0, 0] > 1
    assert shorts <= set(SCALES)
    assert len(shorts) > 6
    assert 15 < crops < 45
    assert 5 < flips < 60 - crops - 4


def test_colours_by_hand():
    pixel = np.array([[[200, 100, 40]]], np.uint8)
    assert_array_equal(change_colours(pixel, brightness=0.5)[0, 0], [100, 50, 20])
    assert_array_equal(change_colours(pixel, brightness=2)[0, 0], [255, 200, 80])
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 40
    flat = change_colours(pixel, saturation=0)[0, 0]
    assert_array_equal(flat, [round(grey)] * 3)
    half = change_colours(pixel, contrast=0.5)[0, 0]
    assert_array_equal(half, np.rint(grey + (np.array([200, 100, 40]) - grey) / 2))
    # a third of the circle: red becomes green becomes blue
    assert_array_equal(change_colours(pixel, hue=1 / 3)[0, 0], [40, 200, 100])
    assert_array_equal(change_colours(pixel)[0, 0], pixel[0, 0])
    assert_array_equal(change_colours(pixel, saturation=1, hue=1)[0, 0], pixel[0, 0])


def test_random_colours_stay_in_range():
    picture = np.full((4, 4, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    means = [random_colours(picture, rng, brightness=0.2).mean() for _ in range(200)]
    assert 80 <= min(means) < 85
    assert 115 < max(means) <= 120


def test_share_crop_stays_inside():
    picture, target = marked()
    rng = np.random.default_rng(1)
    for _ in range(50):
        cut, after = random_share_crop(picture, target, rng, (0.5, 1.0))
        H, W = cut.shape[:2]
        assert 20 <= H <= 40
        assert 30 <= W <= 60
        boxes = after['boxes']
        assert (boxes >= 0).all()
        assert (boxes <= [W, H, W, H]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_augment():
    picture, target = marked()
    nothing = Augment((20,), 30, flip_x=0)
    got, after = nothing(picture, target, np.random.default_rng(0))
    assert got.shape == (20, 30, 3)
    assert_array_equal(after['boxes'][0], [5, 2.5, 15, 12.5])
    everything = Augment(
        [20, 24], 99, flip_x=0.5, flip_y=0.5, crop=0.5, share=[0.5, 1], visible=0.2,
        brightness=0.3, contrast=0.2, saturation=0.3, hue=0.05,
    )
    assert pickle.loads(pickle.dumps(everything)) == everything
    a, b = (everything(picture, target, np.random.default_rng(5)) for _ in range(2))
    assert_array_equal(a[0], b[0])
    assert_array_equal(a[1]['boxes'], b[1]['boxes'])
    seen = [everything(picture, target, np.random.default_rng(i)) for i in range(40)]
    assert {min(p.shape[:2]) for p, _ in seen} == {20, 24}
    assert len({p.tobytes() for p, _ in seen}) == 40


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'scales': ()}, 'scales'),
        ({'scales': (800,), 'long': 600}, 'short is 800 and long is 600'),
        ({'flip_x': 1.5}, 'flip_x is 1.5; it must be a probability'),
        ({'share': (0.9, 0.5)}, 'share'),
        ({'visible': 1}, 'visible'),
        ({'brightness': -0.1}, 'brightness'),
        ({'hue': math.nan}, 'hue'),
    ],
)
def test_augment_refuses(fields, message):
    with pytest.raises(InputError, match=message):
        Augment(**fields)
