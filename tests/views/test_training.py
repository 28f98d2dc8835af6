import numpy as np
import pytest
from PIL import Image

from ddetr_np.views.training import draw_training, save_training


def records(n, every=10):
    for step in range(1, n + 1):
        yield {
            'kind': 'step', 'step': step, 'loss': 9 / step, 'loss_ce': 1,
            'loss_bbox': 2, 'loss_giou': 3, 'lr': 1e-4,
        }  # fmt: skip
        if step % every == 0:
            yield {'kind': 'eval', 'step': step, 'AP': step / 200, 'AP50': step / 100}


def test_what_is_drawn():
    figure = draw_training(list(records(100)))
    total, ap, parts, rate = figure.axes
    x, y = total.lines[1].get_data()  # the mean of pairs: 50 windows
    assert len(x) == 50
    np.testing.assert_allclose((x[0], y[0]), (1.5, (9 + 4.5) / 2))
    np.testing.assert_allclose(ap.lines[0].get_ydata(), np.arange(1, 11) / 20)
    assert ap.get_legend().get_texts()[1].get_text() == 'AP50: 1.000'
    assert len(parts.lines) == 6
    assert set(rate.lines[0].get_ydata()) == {1e-4}


@pytest.mark.parametrize('n', [0, 1, 9, 61])
def test_short_runs(tmp_path, n):
    save_training(tmp_path / 'curves.png', list(records(n)))
    with Image.open(tmp_path / 'curves.png') as image:
        assert min(image.size) > 500


def test_without_evaluation():
    figure = draw_training([r for r in records(20) if r['kind'] == 'step'])
    assert [t.get_text() for t in figure.axes[1].texts] == ['not evaluated']
