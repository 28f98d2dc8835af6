import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.linear import linear, linear_backward


def test_by_hand():
    x = np.array([[[1.0, 2.0]], [[0.0, -1.0]]])  # (2, 1, 2)
    W = np.array([[3.0, 4.0], [5.0, 6.0], [0.0, 1.0]])
    y, cache = linear(x, W, np.array([0.5, 0, -1]))
    assert_array_equal(y, [[[11.5, 17, 1]], [[-3.5, -6, -2]]])
    dx, dW, db = linear_backward(np.array([[[1.0, 0, 2]], [[0.0, 1, 0]]]), cache)
    assert_array_equal(dx, [[[3, 6]], [[5, 6]]])
    assert_array_equal(dW, [[1, 2], [0, -1], [2, 4]])
    assert_array_equal(db, [1, 1, 2])


def test_is_the_sum_it_stands_for(rng):
    x, W, b = (rng.standard_normal(s) for s in ((2, 3, 4, 5), (6, 5), (6,)))
    y, cache = linear(x, W, b)
    assert_allclose(y, np.einsum('...i,oi->...o', x, W) + b, rtol=1e-12)
    dy = rng.standard_normal(y.shape)
    dx, dW, db = linear_backward(dy, cache)
    assert_allclose(dx, np.einsum('...o,oi->...i', dy, W), rtol=1e-12)
    assert_allclose(dW, np.einsum('abco,abci->oi', dy, x), rtol=1e-12)
    assert_allclose(db, dy.sum((0, 1, 2)), rtol=1e-12)


def test_no_rows():
    y, cache = linear(np.ones((2, 0, 4)), np.ones((3, 4)), np.ones(3))
    assert y.shape == (2, 0, 3)
    dx, dW, db = linear_backward(y, cache)
    assert dx.shape == (2, 0, 4)
    assert not dW.any()
    assert not db.any()


def test_one_bad_row_spoils_no_other(rng):
    x = rng.standard_normal((3, 4))
    x[1, 2] = np.nan
    y, _ = linear(x, np.ones((2, 4)), np.zeros(2))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
