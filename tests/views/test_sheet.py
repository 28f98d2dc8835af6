import numpy as np
from PIL import Image

from ddetr_np import coco_figures
from ddetr_np.data.dataset import Dataset, make_example
from ddetr_np.evaluate.coco_ap import Miss
from ddetr_np.views.curves import draw_curves, save_curves
from ddetr_np.views.detections import COLOURS
from ddetr_np.views.sheet import draw_outcomes, draw_truth, make_sheet

GREY = np.full((300, 450, 3), 128, np.uint8)
ORANGE, GREEN, VERMILION = (COLOURS[i] for i in (0, 2, 5))


def has(image, colour):
    return (np.asarray(image) == colour).all(-1).any()


def column(image, x):
    """Colours of the left edge of a box at x, halfway down the picture."""
    return [tuple(p) for p in np.asarray(image)[150, x - 2 : x + 3].tolist()]


def test_truth_is_drawn_where_it_is():
    example = make_example(
        0, GREY, (300, 450), [[60, 50, 200, 250], [240, 100, 400, 200]], [0, 5], [0, 1]
    )
    image = draw_truth(GREY, example, [f'c{i}' for i in range(6)])
    assert image.size == (450, 300)
    assert ORANGE in column(image, 60)
    assert VERMILION in column(image, 240)
    assert not has(image, GREEN)


def test_small_pictures_are_enlarged_with_their_boxes():
    example = make_example(0, GREY, (75, 100), [[20, 10, 60, 50]], [0])
    image = draw_truth(GREY[:75, :100], example, ['a'])
    assert image.size == (500, 375)
    assert ORANGE in column(image, 100)


def outcome(kind, x, score):
    return Miss(0, kind, 0, (x, 100.0, x + 60, 200.0), score)


def test_outcomes_have_their_colours():
    outcomes = [
        outcome('found', 40, 0.9), outcome('missed', 140, 0.0),
        outcome('false', 240, 0.8), outcome('found', 340, 0.1),
    ]
    image = draw_outcomes(GREY, outcomes, ['a'])
    for x, colour in ((40, GREEN), (140, VERMILION), (240, ORANGE), (340, VERMILION)):
        assert colour in column(image, x), x
    # below the threshold a false detection is not worth showing
    assert not has(draw_outcomes(GREY, [outcome('false', 240, 0.2)], ['a']), ORANGE)


def test_sheet():
    images = [Image.new('RGB', size, 'red') for size in ((100, 50), (50, 50), (60, 90))]
    page = make_sheet(images, ['a', 'b', 'c'], 'title', columns=2, width=100)
    assert page.width == 2 * 100 + 3 * 14
    assert page.height > 100 + 150 + 3 * 14
    red = (np.asarray(page) == (255, 0, 0)).all(-1).sum()
    assert red == 100 * 50 + 100 * 100 + 100 * 150


def test_curves(tmp_path):
    example = make_example(0, GREY, (300, 450), [[60, 50, 200, 250]], [0])
    data = Dataset([example], ('dog', 'cat'))
    result = {
        'image_id': 0, 'category_id': 0, 'bbox': [60, 50, 140, 200], 'score': 0.5
    }
    report = coco_figures([result], data)
    left, right = draw_curves(report).axes
    assert len(left.lines) == 10
    assert [line.get_label() for line in right.lines] == ['dog: AP50 1.000, 1 objects']
    np.testing.assert_allclose(right.lines[0].get_ydata(), 1)
    save_curves(tmp_path / 'c.png', report)
    with Image.open(tmp_path / 'c.png') as image:
        assert image.width > 1000
    save_curves(tmp_path / 'none.png', coco_figures([], Dataset([], ('a',))))
