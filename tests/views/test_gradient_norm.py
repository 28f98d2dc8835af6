import warnings

import numpy as np
import pytest

from ddetr_np import build_model
from ddetr_np.analysis.gradient_norm import ITEMS, GradientNorms
from ddetr_np.analysis.look import look
from ddetr_np.views.gradient_norm import brightest, draw_gradient_norms, draw_map

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
BOX = (8.0, 12.0, 40.0, 36.0)


@pytest.fixture
def seen(tiny):
    names = ('disc', 'ring', 'star $^', 'cross')
    return look(build_model('multi_scale', **tiny, names=names), PICTURE, 60, 80)


def norms_of(items, shape=(60, 80)):
    rng = np.random.default_rng(1)
    maps = {item: rng.random(shape) ** 4 for item in items}
    values = dict(zip(items, (0.3, 0.4, 0.5, 0.6, 0.7)))
    return GradientNorms(tuple(items), maps, BOX, 2, 0.7, 3, values)


def test_the_panels(seen, tmp_path):
    norms = norms_of(ITEMS)
    figure = draw_gradient_norms(norms, seen)
    picture, *panels = figure.axes
    assert len(panels) == 5
    assert picture.get_title() == 'star $^ 0.70'
    np.testing.assert_array_equal(picture.images[0].get_array(), PICTURE)
    for axes, item in zip(panels, ITEMS):
        assert f'partial {item} ' in axes.get_title()
        assert axes.get_xlabel().startswith(f'{item} = {norms.values[item]:.3f}')
        np.testing.assert_array_equal(axes.images[0].get_array(), norms.maps[item])
    for axes in figure.axes:  # all count in the pixels that the model saw
        assert tuple(axes.images[0].get_extent()) == (0, 80, 60, 0)
        (box,) = axes.patches
        assert box.get_bbox().extents.tolist() == list(BOX)
    with warnings.catch_warnings():  # a sign that the font lacks, a layout too tight
        warnings.simplefilter('error')
        figure.savefig(tmp_path / 'figure5.png')


@pytest.mark.parametrize('items', ['c', 'xy', 'xyw'])
def test_fewer_items_take_fewer_panels(seen, items):
    axes = draw_gradient_norms(norms_of(items), seen).axes
    assert sum(a.get_visible() for a in axes) == 1 + len(items)


def test_a_few_bright_pixels_do_not_darken_the_map(seen):
    norm = np.full((60, 80), 2.0)
    norm[30, 40:43] = 1000
    axes = draw_gradient_norms(norms_of('c'), seen).axes[1]
    assert draw_map(axes, norm).get_clim() == (0, 2)


def test_maps_of_almost_nothing(seen):
    norm = np.zeros((60, 80))
    axes = draw_gradient_norms(norms_of('c'), seen).axes[1]
    assert draw_map(axes, norm).get_clim() == (0, 1)
    norm[3, 4] = 1e-9
    assert brightest(norm) == 1e-9
