import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np import InputError, build_model
from ddetr_np.analysis.look import look
from ddetr_np.analysis.reference_points import (
    first_stage,
    iou,
    learned_points,
    steps,
    token_grid,
)
from ddetr_np.config import Config
from ddetr_np.testing_model import randomise

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture(scope='module')
def seen(tiny):
    """{variant: a random model's Look at a picture of 48 × 64, seen as 96 × 128}."""
    return {
        variant: look(randomise(build_model(variant, **tiny)), PICTURE, 96, 128)
        for variant in ('multi_scale', 'refine', 'two_stage')
    }


def test_a_token_looks_from_its_own_place():
    grid = token_grid(Config(), [(64, 96)])
    assert grid.shapes == [(8, 12), (4, 6), (2, 3), (1, 2)]
    assert grid.p_hat.shape == (1, 96 + 24 + 6 + 2, 4, 2)
    # level 1, third row, second column
    token = 96 + 2 * 6 + 1
    assert grid.level[token] == 1
    assert_allclose(grid.p_hat[0, token], [[1.5 / 6, 2.5 / 4]] * 4)
    assert_array_equal(np.bincount(grid.level), [96, 24, 6, 2])


def test_padding_scales_references_by_whole_pixels_of_a_level():
    # of 64 × 128 pixels, the second picture has the left 40 columns
    grid = token_grid(Config(), [(64, 128), (64, 40)])
    assert_allclose(grid.ratios[0], 1)
    # 40 / 8 = 5 of 16 pixels; 2.5, 1.25 and 0.625 are rounded up
    assert_allclose(grid.ratios[1], [[5 / 16, 1], [3 / 8, 1], [2 / 4, 1], [1 / 2, 1]])
    # a token's place on its own level is where it is; elsewhere its share of the valid
    assert_allclose(grid.p_hat[1, 0, 0], [0.5 / 16, 0.5 / 8])
    assert_allclose(grid.p_hat[1, 0, 1, 0], 0.5 / 5 * 3 / 8)


@pytest.mark.parametrize('sizes', [[], [(0, 5)], [(5, 5, 3)], [5]])
def test_sizes_must_be_those_of_pictures(sizes):
    with pytest.raises(InputError, match='expected'):
        token_grid(Config(), sizes)


def test_learned_points_are_what_the_decoder_starts_from(seen):
    for variant in ('multi_scale', 'refine'):
        points = learned_points(seen[variant].model)
        assert_array_equal(points, seen[variant].cache.decoder.p_hats[0][0])
    with pytest.raises(InputError, match='first_stage'):
        learned_points(seen['two_stage'].model)


def test_proposals(seen, tiny):
    look_ = seen['two_stage']
    found = first_stage(look_)
    assert_array_equal(found.boxes[found.top], look_.cache.decoder.p_hats[0][0])
    assert (np.diff(found.scores[found.top]) <= 0).all()
    assert found.scores[found.top[-1]] >= np.delete(found.scores, found.top).max()
    none = np.isnan(found.base).all(-1)
    assert_array_equal(found.boxes[none], 1)
    for l in range(4):  # 2^(l−1) s, the levels counted from 1
        wh = found.base[(found.level == l) & ~none, 2:]
        assert_allclose(wh, 2**l * 0.05, rtol=1e-5)
    for variant in ('multi_scale', 'refine'):
        with pytest.raises(InputError, match=f'{variant}.*learned_points'):
            first_stage(seen[variant])


@pytest.mark.parametrize('variant', ['multi_scale', 'refine', 'two_stage'])
def test_steps_of_the_boxes(seen, tiny, variant):
    look_ = seen[variant]
    found = steps(look_)
    D, Nq = tiny['decoder_layers'], tiny['Nq']
    assert found.boxes.shape == (D, Nq, 4)
    assert found.iou.shape == found.shift.shape == (D, Nq)
    assert_array_equal(found.iou[-1], 1)
    assert ((found.iou >= 0) & (found.iou <= 1)).all()
    # in pixels of the picture that came in, not of what the model saw
    best = look_.best.queries[0]
    assert_allclose(found.boxes[-1, best], look_.best.boxes[0], rtol=1e-4)
    box = look_.out.boxes[:, 0, 1, :2] * (64, 48)
    assert_allclose(found.shift[2, 1], np.hypot(*(box[2] - box[1])), rtol=1e-3)
    if variant == 'multi_scale':  # every layer looks from the same points
        assert_array_equal(found.p_hat, np.tile(found.p_hat[:1], (D, 1, 1)))
    else:  # and here from the box of the layer before
        assert_allclose(found.p_hat[1:], look_.out.boxes[:-1, 0])
        assert np.isnan(found.p_hat[0, :, 2:]).all() == (variant == 'refine')


def test_some_queries(seen):
    some, every = steps(seen['refine'], [4, 0]), steps(seen['refine'])
    assert_array_equal(some.boxes, every.boxes[:, [4, 0]])
    assert_array_equal(some.shift, every.shift[:, [4, 0]])
    assert steps(seen['refine'], []).iou.shape == (3, 0)
    with pytest.raises(InputError, match='no query 6; this pass has 0 to 5'):
        steps(seen['refine'], [1, 6])
    for wrong in ([0.5], 3, [[1]]):
        with pytest.raises(InputError, match='whole numbers'):
            steps(seen['refine'], wrong)


def test_iou_by_hand():
    a = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [1, 1, 1, 1.0]])
    b = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [1, 0, 2, 1], [1, 1, 1, 1.0]])
    assert_allclose(iou(a, b), [1 / 3, 1, 0, 0])
