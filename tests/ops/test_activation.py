import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.activation import (
    inverse_sigmoid,
    inverse_sigmoid_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    softmax,
    softmax_backward,
)


def test_relu_by_hand():
    y, cache = relu(np.array([-2.0, -0.0, 0.0, 3.0, np.nan]))
    assert_array_equal(y, [0, 0, 0, 3, np.nan])
    assert_array_equal(relu_backward(np.full(5, 7.0), cache)[:4], [0, 0, 0, 7])


def test_softmax_by_hand():
    A, cache = softmax(np.log([[1.0, 2, 5], [4, 4, 8]]))
    assert_allclose(A, [[1 / 8, 2 / 8, 5 / 8], [1 / 4, 1 / 4, 1 / 2]], rtol=1e-15)
    # one weight's gradient: A ⊙ (e − A_j)
    ds = softmax_backward(np.array([[0.0, 0, 1], [0, 0, 0]]), cache)
    expected = [[-5 / 64, -10 / 64, 15 / 64], [0, 0, 0]]
    assert_allclose(ds, expected, rtol=1e-14)


def test_softmax_against_scipy(rng):
    s = 30 * rng.standard_normal((3, 4, 9))
    A, _ = softmax(s)
    assert_allclose(A, scipy.special.softmax(s, -1), rtol=1e-12)
    assert_allclose(A.sum(-1), 1, rtol=1e-14)
    assert_allclose(softmax(s + 1000)[0], A, rtol=1e-10)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_softmax_of_extreme_scores(dtype):
    s = np.array([[1e30, 0, -1e30], [-np.inf, 2, 2]], dtype)
    assert_array_equal(softmax(s)[0], [[1, 0, 0], [0, 0.5, 0.5]])


def test_softmax_of_one_key_is_one(rng):
    A, cache = softmax(rng.standard_normal((5, 1)))
    assert_array_equal(A, np.ones((5, 1)))
    assert_array_equal(softmax_backward(rng.standard_normal((5, 1)), cache), 0 * A)


def test_softmax_shows_a_bad_score_in_its_own_row():
    A, _ = softmax(np.array([[1.0, np.nan], [1.0, 1.0]]))
    assert np.isnan(A[0]).all()
    assert_array_equal(A[1], [0.5, 0.5])


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_sigmoid_against_scipy(dtype, rng):
    x = np.concatenate([30 * rng.standard_normal(1000), [0, -0.0, 700, -700]])
    x = x.astype(dtype)
    y, _ = sigmoid(x)
    assert_allclose(y, scipy.special.expit(x), rtol=4 * np.finfo(dtype).eps)


def test_sigmoid_of_the_extremes():
    x = np.array([np.inf, -np.inf, 1e4, -1e4, 0, np.nan])
    y, cache = sigmoid(x)
    assert_array_equal(y, [1, 0, 1, 0, 0.5, np.nan])
    # box of a masked proposal: σ(∞) = 1 learns nothing
    assert_array_equal(sigmoid_backward(np.ones(6), cache)[:5], [0, 0, 0, 0, 0.25])


def test_inverse_sigmoid_undoes_the_sigmoid(rng):
    p = rng.uniform(1e-5, 1 - 1e-5, 1000)
    x, _ = inverse_sigmoid(p)
    assert_allclose(x, scipy.special.logit(p), rtol=1e-10, atol=1e-12)
    assert_allclose(sigmoid(x)[0], p, rtol=1e-10)


def test_inverse_sigmoid_holds_its_argument():
    p = np.array([-1.0, 0, 1e-5, 0.5, 0.75, 1 - 1e-5, 1, 2])
    x, cache = inverse_sigmoid(p)
    low = np.log(1e-5)
    # both terms are held apart: at 1e-5 the other one still is 1 − 1e-5
    expected = [low, low, low - np.log1p(-1e-5), 0, np.log(3)]
    assert_allclose(x[:5], expected, atol=1e-12)
    assert_allclose(x, -x[[7, 6, 5, 3, 4, 2, 1, 0]] * [1, 1, 1, 1, -1, 1, 1, 1])
    slope = inverse_sigmoid_backward(np.ones(8), cache)
    assert_array_equal(slope[[0, 7]], [0, 0])
    assert_allclose(slope[3:5], [4, 16 / 3], rtol=1e-14)
    assert_allclose(slope[[1, 6]], [1, 1], rtol=1e-4)  # one term is held, one is not


def test_inverse_sigmoid_with_another_eps():
    x, cache = inverse_sigmoid(np.array([0.05, 0.5, 0.95]), eps=0.1)
    assert_allclose(x, [np.log(0.1 / 0.95), 0, np.log(0.95 / 0.1)])
    slope = inverse_sigmoid_backward(np.ones(3), cache)
    assert_allclose(slope, [1 / 0.95, 4, 1 / 0.95])


def test_inverse_sigmoid_at_the_edge_of_what_is_held():
    # 2⁻² is exact: at the edge the slope is that of the inside, as published
    _, cache = inverse_sigmoid(np.array([0.25, 0.75]), eps=0.25)
    slope = inverse_sigmoid_backward(np.ones(2), cache)
    assert_allclose(slope, [4 + 4 / 3, 4 + 4 / 3], rtol=1e-14)
