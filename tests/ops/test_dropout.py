import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.dropout import DRAWN, dropout, dropout_backward, kept, scale


def test_off():
    x = np.ones((3, 4))
    for p, key in ((0.5, None), (0.0, (1, 2, 3))):
        y, cache = dropout(x, p, key)
        assert_array_equal(y, x)
        assert_array_equal(dropout_backward(x, cache), x)


@pytest.mark.parametrize('p', [0.1, 0.5, 0.9])
def test_drops_a_share_of_p_and_keeps_the_mean(p):
    n = 200_000
    y, _ = dropout(np.ones(n), p, (0, 0, 0))
    assert set(np.unique(y)) == {0, scale(p)}
    assert_allclose(scale(p), 1 / (1 - p), rtol=2**-16 / (1 - p))
    # five standard deviations of the mean
    assert abs((y == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    assert abs(y.mean() - 1) < 5 * np.sqrt(p / (1 - p) / n)


def test_backward_draws_the_same_mask():
    x = np.ones((50, 7))
    y, cache = dropout(x, 0.3, (7, 1, 2))
    assert_array_equal(dropout_backward(x, cache), y)
    assert_array_equal(dropout(x, 0.3, (7, 1, 2))[0], y)


def test_the_mask_is_a_function_of_the_whole_key():
    x = np.ones(400)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 2, 0)]
    masks = [dropout(x, 0.5, key)[0] for key in keys]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            # independent masks agree on half, give or take five deviations
            assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(x.size)


def test_the_mask_is_known():
    # resuming and recomputing rest on it: a change of the generator must be noticed
    y, _ = dropout(np.ones(16), 0.5, (42, 3, 1))
    assert_array_equal(y / 2, [1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1])


def test_any_part_of_the_mask_can_be_drawn():
    whole = kept(0.3, (5, 6, 7), 200)
    assert_array_equal(kept(0.3, (5, 6, 7), 50, 3 * DRAWN), whole[48:98])


@pytest.mark.parametrize('p', [1e-9, 1 - 1e-9])
def test_a_share_too_small_for_the_numbers(p):
    y, _ = dropout(np.ones(1000), p, (1, 2, 3))
    assert np.isfinite(y).all()
    if p < 0.5:
        assert_array_equal(y, 1)


def test_single_precision_has_the_same_mask():
    x = np.linspace(1, 2, 100)
    y, _ = dropout(x, 0.4, (1, 2, 3))
    y32, _ = dropout(x.astype(np.float32), 0.4, (1, 2, 3))
    assert_allclose(y32, y, rtol=1e-6)


def test_nothing_to_drop():
    y, cache = dropout(np.ones((0, 4)), 0.5, (1, 1, 1))
    assert y.shape == (0, 4)
    assert dropout_backward(y, cache).shape == (0, 4)


@pytest.mark.parametrize('kind', ['uint8', 'int16', 'int32', 'uint64'])
def test_a_step_may_be_of_any_integer_type(kind):
    step = np.iinfo(kind).max >> 17 if kind == 'uint64' else np.iinfo(kind).max
    ours = kept(0.5, (0, np.dtype(kind).type(step), 1), 64)
    assert_array_equal(ours, kept(0.5, (0, int(step), 1), 64))
    assert (ours != kept(0.5, (0, int(step) - 1, 1), 64)).any()
