import re

import numpy as np
import pytest

from ddetr_np import Criterion, InputError, Scenes, build_model, load_model
from ddetr_np.analysis.complexity import counting
from ddetr_np.analysis.gradient_norm import ITEMS, GradientNorms, gradient_norms
from ddetr_np.analysis.gradient_shares import (
    GradientShares,
    _shares,
    gradient_shares,
    regions_of,
)
from ddetr_np.analysis.look import look
from ddetr_np.data.dataset import Dataset, make_example
from ddetr_np.nn.ddetr import Held
from ddetr_np.ops.activation import sigmoid
from ddetr_np.testing_model import randomise

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
STEP = 2.0**-14  # of the differences: kinks are dense in a whole model


@pytest.fixture
def seen_by(tiny):
    def of(variant, keep='inputs'):
        model = build_model(variant, dtype='float64', dropout=0.0, **tiny)
        return look(randomise(model), PICTURE, 48, 64, keep)

    return of


def differences(seen, norms, places, block):
    """Norms over channels of central differences at pixels: (items, places)."""
    n, (H, W) = len(places), seen.images.shape[1:3]
    step = np.zeros((n, 3, H, W, 3))
    for i, (y, x) in enumerate(places):
        step[i, range(3), y, x, range(3)] = STEP
    step = step.reshape(-1, H, W, 3)
    top, p_hats = seen.cache.hold(block)
    held = Held(
        None if top is None else top.repeat(len(step), 0),
        None if p_hats is None else [p.repeat(len(step), 0) for p in p_hats],
    )

    def items_at(pictures):
        out, _ = seen.model.forward(pictures, keep='none', held=held)
        c, _ = sigmoid(out.logits[-1][:, norms.query, norms.label])
        return np.column_stack([out.boxes[-1][:, norms.query], c])

    ahead, behind = items_at(seen.images + step), items_at(seen.images - step)
    slope = (ahead - behind) / (2 * STEP)
    return np.linalg.norm(slope.reshape(n, 3, len(ITEMS)), axis=1).T


@pytest.mark.parametrize('block', [False, True], ids=['full', 'blocked'])
@pytest.mark.parametrize('variant', ['multi_scale', 'refine', 'two_stage'])
def test_maps_are_what_central_differences_say(seen_by, variant, block):
    seen = seen_by(variant)
    norms = gradient_norms(seen, 1, block=block)
    assert norms.items == tuple(norms.maps) == ITEMS
    rng = np.random.default_rng(1)
    places = np.column_stack(np.divmod(rng.choice(48 * 64, 50, False), 64))
    wanted = differences(seen, norms, places, block)
    for item, row in zip(norms.items, wanted):
        y, x = places.T
        np.testing.assert_allclose(norms.maps[item][y, x], row, 1e-5, err_msg=item)


def test_the_full_derivative_is_the_default(seen_by):
    """Earlier layers and proposals move a box, though training does not see it."""
    for variant, same in (('multi_scale', True), ('refine', False)):
        seen = seen_by(variant)
        full, blocked = (
            gradient_norms(seen, 0, 'x', **block).maps['x']
            for block in ({}, {'block': True})
        )
        assert np.allclose(full, blocked, rtol=1e-3) is same


def test_what_is_differentiated(seen_by):
    seen = seen_by('two_stage')
    norms = gradient_norms(seen, 2, ('w', 'c'))
    assert tuple(norms.values) == norms.items == ('w', 'c')
    best = seen.best
    assert (norms.query, norms.label) == (best.queries[2], best.labels[2])
    assert norms.values['c'] == norms.score == best.scores[2]
    assert norms.values['w'] == seen.out.boxes[-1, 0, norms.query, 2]
    assert norms.maps['w'].shape == (48, 64)
    # as large as the picture, so both have the same pixels
    np.testing.assert_allclose(norms.box, best.boxes[2], rtol=1e-12)
    last = gradient_norms(seen, -1, 'c')
    assert last.score == best.scores.min()


def test_boxes_count_in_the_pixels_that_the_model_saw(seen_by):
    seen = seen_by('refine')
    large = look(seen.model, PICTURE, 96, 128)
    norms = gradient_norms(large, 0, 'c')
    assert norms.maps['c'].shape == (96, 128)
    np.testing.assert_allclose(norms.box, 2 * large.best.boxes[0], rtol=1e-12)


def test_what_was_kept_changes_nothing(seen_by):
    one, other = (
        gradient_norms(seen_by('refine', keep), 0, 'xc') for keep in ('all', 'inputs')
    )
    for item in 'xc':
        np.testing.assert_array_equal(one.maps[item], other.maps[item])


def test_a_training_is_left_as_it_was(seen_by):
    seen = seen_by('two_stage')
    params = dict(seen.model.named_params())
    some = list(params)[::2]  # the others have no gradient yet
    for i, name in enumerate(some):
        params[name].grad = np.full_like(params[name].data, i)
    learn = {name: p.learns for name, p in params.items()}
    gradient_norms(seen, 0, 'xc')
    with pytest.raises(ZeroDivisionError):
        gradient_norms(seen, progress=lambda done: 1 // 0)
    for name, p in params.items():
        assert p.learns == learn[name]
        if name in some:
            assert (p.grad == some.index(name)).all()
        else:
            assert p._grad is None


@pytest.mark.slow
@pytest.mark.parametrize('keep', ['all', 'inputs'])
def test_what_five_items_cost(keep):
    """In multiply-accumulates: at most six training passes of the published model."""
    model = build_model('multi_scale')
    picture = np.zeros((128, 176, 3), np.uint8)
    target = {'labels': np.array([1]), 'boxes': np.array([[0.5, 0.5, 0.2, 0.2]])}
    with counting(model) as training:
        seen = look(model, picture, 128, 176, 'all')
        _, _, dout = Criterion(model.config)(seen.out, [target])
        model.backward(dout, seen.cache)
    with counting(model) as five:
        gradient_norms(look(model, picture, 128, 176, keep))
    assert five.macs() < {'all': 4, 'inputs': 6}[keep] * training.macs()


def test_progress_and_smoothing(seen_by):
    seen, done = seen_by('multi_scale'), []
    raw = gradient_norms(seen, 0, 'yh', progress=done.append)
    assert done == [1, 2]
    smooth = gradient_norms(seen, 0, 'yh', smooth=2)
    for item in 'yh':
        a, b = raw.maps[item], smooth.maps[item]
        assert b.sum() == pytest.approx(a.sum())
        assert abs(np.diff(b)).sum() < 0.5 * abs(np.diff(a)).sum()


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'detection': 24}, 'no detection 24; this model has 0 to 23'),
        ({'detection': 'dog'}, 'no detection dog; this model has 0 to 23'),
        ({'items': ('x', 'score')}, "no item 'score'; choose from x, y, w, h"),
        ({'items': ()}, 'no items; choose from x, y, w, h, c'),
        ({'smooth': -1}, 'smooth is -1; expected pixels'),
    ],
)
def test_bad_input_says_what_there_is(seen_by, arguments, says):
    with pytest.raises(InputError, match=re.escape(says)):
        gradient_norms(seen_by('multi_scale'), **arguments)


def test_regions_by_hand():
    # 10 wide and 20 high: an edge is 1 pixel to either side, the margin 2 and 4
    window, (sides, ends, inside) = regions_of((10, 20, 20, 40), (60, 50), 0.1, 0.2)
    assert window.sum() == 14 * 28
    assert window[16:44, 8:22].all()
    assert sides.sum() == 28 * 2 * 2
    assert sides[16:44, [9, 10, 19, 20]].all()
    assert ends.sum() == 14 * 2 * 4
    assert ends[[18, 21, 38, 41], 8:22].all()
    assert inside.sum() == 8 * 16
    assert inside[22:38, 11:19].all()


def test_the_window_ends_with_the_picture():
    window, regions = regions_of((-10, 5, 10, 15), (20, 30), 0.1, 0.25)
    assert window[:, :15].sum() == window.sum()
    sides, _, inside = regions
    assert not sides[:, :8].any()  # the left edge is out of the picture
    assert inside[10, :8].all()
    assert not regions_of((40, 5, 50, 15), (20, 30))[0].any()


def test_shares_of_a_data_set(tiny):
    model = randomise(build_model('two_stage', short=48, long=64, **tiny))
    data = Dataset([make_example(0, PICTURE, (48, 64), [], [])] * 2, 'abcd')
    done = []
    table = gradient_shares(
        model, data, items='xyc', threshold=0, top=3, progress=done.append
    )
    assert done == [1, 2]
    n = len(table.shares)
    assert n == 6
    assert table.shares.shape == (n, 3, 3)
    assert table.uniform.shape == (n, 3)
    assert (table.shares >= 0).all()
    assert (table.shares <= 1).all()
    norms = gradient_norms(look(model, PICTURE), 0, 'y')
    window, regions = regions_of(norms.box, (48, 64))
    y = norms.maps['y']
    wanted = [y[r].sum() / y[window].sum() for r in regions]
    np.testing.assert_allclose(table.shares[0, 1], wanted, rtol=1e-5)
    wanted = [r.sum() / window.sum() for r in regions]
    np.testing.assert_allclose(table.uniform[0], wanted, rtol=1e-12)


def test_where_there_is_nothing_to_share():
    maps = {'x': np.ones((20, 30)), 'c': np.zeros((20, 30))}
    norms = GradientNorms(('x', 'c'), maps, (5, 5, 15, 15), 0, 1.0, 0, {})
    share, uniform = _shares(norms, 0.1, 0.25)
    np.testing.assert_array_equal(share[0], uniform)
    assert np.isnan(share[1]).all()
    outside, _ = _shares(norms._replace(box=(40, 5, 50, 15)), 0.1, 0.25)
    assert np.isnan(outside).all()


def test_shares_print_as_a_table():
    shares = np.array([[[0.6, 0.2, 0.1], [0.2, 0.6, 0.1]]] * 2)
    regions = ('left, right', 'top, bottom', 'inside')
    uniform = np.array([[0.3, 0.2, 0.4], [0.3, 0.2, 0.4]])
    table = GradientShares(('x', 'y'), regions, shares, uniform, 5, 0.1, 0.25)
    lines = repr(table).splitlines()
    assert max(map(len, lines)) <= 88
    assert lines[0].startswith('2 detections in 5 pictures')
    assert lines[3].split() == 'x 0.600 ×2.00 0.200 ×1.00 0.100 ×0.25'.split()
    assert lines[4].split() == 'y 0.200 ×0.67 0.600 ×3.00 0.100 ×0.25'.split()
    assert lines[5].split() == 'uniform 0.300 0.200 0.400'.split()


def test_without_detections(tiny):
    model = build_model('multi_scale', short=48, long=64, **tiny)
    table = gradient_shares(model, [PICTURE], threshold=1)
    assert table.shares.shape == (0, 5, 3)
    assert repr(table).startswith('0 detections in 1 pictures')


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'threshold': 2}, 'threshold is 2; expected 0'),
        ({'top': 0}, 'top is 0'),
        ({'edge': 0.5}, 'edge is 0.5; expected a fraction'),
        ({'edge': 0.2, 'margin': 0.1}, 'margin is 0.1; expected'),
        ({'items': 'z'}, "no item 'z'"),
    ],
)
def test_bad_numbers(arguments, says):
    with pytest.raises(InputError, match=says):
        gradient_shares(None, [], **arguments)


@pytest.mark.slow
def test_the_packaged_detectors_look_where_the_paper_says():
    shares = gradient_shares(load_model('scenes'), Scenes(12, seed=8))
    assert len(shares.shares) > 30
    by_item = dict(zip(shares.items, shares.shares.mean(0)))
    for item in 'xw':
        sides, ends, _ = by_item[item]
        assert sides > 1.3 * ends, item
    for item in 'yh':
        sides, ends, _ = by_item[item]
        assert ends > 1.3 * sides, item
    assert max(by_item, key=lambda item: by_item[item][2]) == 'c'
