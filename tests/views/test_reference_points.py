import numpy as np
import pytest
from PIL import Image

from ddetr_np import build_model
from ddetr_np.analysis.look import look
from ddetr_np.config import Config
from ddetr_np.testing_model import randomise
from ddetr_np.views.reference_points import (
    draw_padding,
    draw_reference_points,
    save_reference_points,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize('variant', ['multi_scale', 'refine', 'two_stage'])
def test_all_four_pictures(tmp_path, tiny, variant):
    seen = look(randomise(build_model(variant, **tiny)), PICTURE, 96, 128)
    grid, start, boxes, moves, other = draw_reference_points(seen).axes
    tokens = sum(len(c.get_offsets()) for c in grid.collections)
    assert tokens == sum(h * w for h, w in seen.cache.shapes)
    if variant == 'two_stage':
        assert 'proposals' in start.get_title()
    else:
        assert len(start.collections[0].get_offsets()) == tiny['Nq']
    assert len(boxes.patches) % tiny['decoder_layers'] == 0
    assert len(moves.lines) == len(other.lines) == 2
    save_reference_points(tmp_path / 'points.png', seen)
    with Image.open(tmp_path / 'points.png') as image:
        assert min(image.size) > 800


def test_padding():
    plots = draw_padding(Config(), [(64, 128), (64, 40)]).axes
    assert [axes.get_title() for axes in plots] == [
        '64 × 128 of 64 × 128', '64 × 40 of 64 × 128',
    ]
    hollow = [sum(len(c.get_offsets()) for c in a.collections[1::2]) for a in plots]
    # levels 3 and 4 have 2 × 4 and 1 × 2 tokens; two and one columns are the picture's
    assert hollow == [0, 2 * 2 + 1]
