import numpy as np
import pytest

from ddetr_np.analysis import formulas as f
from ddetr_np.config import Config
from ddetr_np.views.complexity import draw_attention, draw_models


def test_lines_cross_where_the_min_of_a_1_does():
    figure = draw_attention(Config(), 800, 1333)
    assert len(figure.axes) == 6
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    x, before = lines["W' before sampling (as released)"].get_data()
    after = lines["W' after sampling (A.1)"].get_ydata()
    crossing = f.crossing(300, 4, 4)
    np.testing.assert_array_equal(np.less(before, after), x < crossing)
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_legend() is not None


def test_bars_are_as_long_as_the_models_are_dear():
    left, right = draw_models(800, 1066).axes
    last = {}
    for bar in right.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        last[row] = max(last.get(row, 0), bar.get_x() + bar.get_width())
    for row, d in enumerate(f.differences(*f.SIZE).values()):
        assert last[row] == pytest.approx(d.giga, abs=0.5)  # heads are not drawn
    assert '1066' in left.get_title()


def test_configurations_without_a_crossing_in_sight():
    draw_attention(Config(L=1, K=1, M=1, C=32, Nq=1), 64, 96)
    draw_attention(Config(K=64, Nq=5000), 1, 1)
