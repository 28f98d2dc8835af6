import numpy as np
import pytest
from PIL import Image

from ddetr_np.evaluate.detection import Detections
from ddetr_np.views import detections as view
from ddetr_np.views.detections import COLOURS, draw_detections, save_detections


def some(boxes, size, labels=None, name='person'):
    n = len(boxes)
    labels = np.arange(n) if labels is None else np.asarray(labels)
    scores = np.linspace(0.9, 0.3, n)
    boxes = np.asarray(boxes, float).reshape(n, 4)
    return Detections(scores, labels, [name] * n, boxes, size)


@pytest.fixture
def chips(monkeypatch):
    """The labels that get drawn: (place, text)."""
    drawn = []
    draw = view._chip

    def spy(canvas, place, text, *rest):
        drawn.append((place, text))
        draw(canvas, place, text, *rest)

    monkeypatch.setattr(view, '_chip', spy)
    return drawn


def grey(H, W, value):
    return np.full((H, W, 3), value, np.uint8)


def test_no_detection_leaves_the_picture_alone():
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    drawn = draw_detections(picture, some([], (50, 70)))
    assert drawn.mode == 'RGB'
    np.testing.assert_array_equal(drawn, picture)


@pytest.mark.parametrize('ground', [0, 128, 255])
def test_frame_stands_out_on_any_ground(ground):
    """The class's colour on the box's edge, something dark or bright beside it."""
    drawn = draw_detections(
        grey(300, 400, ground), some([(100, 100, 300, 200)], (300, 400), [3])
    )
    column = np.array(drawn)[180, :110].astype(int)
    assert tuple(column[100]) == COLOURS[3]
    luminance = [view._luminance(c) for c in column[94:108]]
    contrast = (max(luminance) + 0.05) / (min(luminance) + 0.05)
    assert contrast > 4.5


@pytest.mark.parametrize('colour', COLOURS)
def test_text_is_legible_on_its_chip(colour):
    image = Image.new('RGB', (200, 60), (127, 127, 127))
    font = view.label_font(20)
    draw = view.ImageDraw.Draw(image)
    view._chip(draw, (5, 5, 190, 40), 'bicycle 0.87', font, 4, colour)
    inside = np.array(image)[8:37, 8:187].reshape(-1, 3)
    luminance = np.array([view._luminance(c) for c in inside])
    chip = view._luminance(colour)
    ink = luminance[np.abs(luminance - chip).argmax()]
    assert (max(ink, chip) + 0.05) / (min(ink, chip) + 0.05) > 4.5
    assert 0.05 < (np.abs(luminance - chip) > 0.5 * abs(ink - chip)).mean() < 0.5


def test_labels_stay_inside_and_apart(chips):
    rng = np.random.default_rng(0)
    corner = rng.uniform(-50, 350, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 200, (60, 2))], 1)
    draw_detections(grey(300, 400, 90), some(boxes, (300, 400)))
    assert len(chips) > 15
    for i, (place, _) in enumerate(chips):
        assert 0 <= place[0] < place[2] <= 400
        assert 0 <= place[1] < place[3] <= 300
        for other, _ in chips[:i]:
            assert not view._overlap(place, other)


def test_the_best_keeps_its_label_in_a_heap(chips):
    boxes = [(100, 100, 140, 120)] * 40
    draw_detections(grey(300, 400, 90), some(boxes, (300, 400)))
    assert chips[0][1] == 'person 0.90'
    assert 3 <= len(chips) < 40


@pytest.mark.parametrize('size', [(16, 16), (16, 600), (40, 24), (64, 48)])
def test_tiny_pictures(chips, size):
    H, W = size
    drawn = draw_detections(grey(H, W, 90), some([(1, 1, W - 2, H - 2)], size))
    assert drawn.size == (W, H)
    for place, text in chips:
        assert 0 <= place[0] < place[2] <= W
        assert 0 <= place[1] < place[3] <= H
        assert text


def test_sizes_grow_with_the_picture(chips):
    heights = []
    for zoom in (1, 2, 4):
        size = (400 * zoom, 600 * zoom)
        box = np.array([100, 100, 300, 300]) * zoom
        draw_detections(grey(*size, 90), some([box], size))
        (place, _) = chips.pop()
        heights.append(place[3] - place[1])
    assert heights[0] < heights[1] < heights[2]
    assert 3 < heights[2] / heights[0] < 5


def test_long_names_are_shortened(chips):
    draw_detections(
        grey(60, 60, 90), some([(5, 30, 50, 50)], (60, 60), name='x' * 200)
    )
    assert chips[0][1].endswith('…')


@pytest.mark.parametrize(
    'box',
    [
        (-900, -900, 900, 900),
        (-90, 10, -20, 30),
        (500, 500, 600, 600),
        (20, 20, 20, 20),
        (30, 30, 10, 10),
        (np.nan, 0, 10, 10),
        (0, 0, np.inf, 10),
        (1e30, 0, 2e30, 10),
    ],
)
def test_odd_boxes(box):
    size = (100, 120)
    assert draw_detections(grey(*size, 90), some([box], size)).size == (120, 100)


def test_save(tmp_path):
    path = tmp_path / 'a.png'
    save_detections(path, grey(50, 70, 90), some([(5, 5, 40, 40)], (50, 70)))
    with Image.open(path) as image:
        assert image.size == (70, 50)
        assert np.ptp(np.array(image)) > 100


def test_the_picture_may_be_a_rotated_file(tmp_path):
    """Boxes are those of the upright picture, so it is drawn upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'a.jpg'
    Image.new('RGB', (80, 40)).save(path, exif=exif)
    drawn = draw_detections(path, some([(5, 5, 30, 70)], (80, 40)))
    assert drawn.size == (40, 80)
