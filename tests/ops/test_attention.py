import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.attention import attention, attention_backward
from ddetr_np.ops.dropout import dropout


def naive(q, k, v, mask=None):
    """Eq. 1's inside, query by query; mask of the weights (N, M, Nq, Nk)."""
    N, Nq, M, Cv = q.shape
    y = np.zeros((N, Nq, M, v.shape[3]))
    for n in range(N):
        for m in range(M):
            for i in range(Nq):
                e = [math.exp(q[n, i, m] @ kk / math.sqrt(Cv)) for kk in k[n, :, m]]
                for j, weight in enumerate(e):
                    A = weight / sum(e)
                    if mask is not None:
                        A *= mask[n, m, i, j]
                    y[n, i, m] += A * v[n, j, m]
    return y


@pytest.mark.parametrize('Nk', [1, 3, 6])
def test_against_loops(Nk, rng):
    q = rng.standard_normal((2, 4, 3, 5))
    k, v = rng.standard_normal((2, 2, Nk, 3, 5))
    y, cache = attention(q, k, v)
    assert_allclose(y, naive(q, k, v), rtol=1e-11)
    assert cache.A.shape == (2, 3, 4, Nk)
    assert_allclose(cache.A.sum(-1), 1, rtol=1e-14)


def test_dropout_acts_on_the_weights(rng):
    q, k, v = rng.standard_normal((3, 2, 4, 3, 5))
    key = (3, 1, 4)
    mask, _ = dropout(np.ones((2, 3, 4, 4)), 0.5, key)
    y, _ = attention(q, k, v, 0.5, key)
    assert_allclose(y, naive(q, k, v, mask), rtol=1e-11, atol=1e-13)


def test_equal_keys_share_alike(rng):
    q, v = rng.standard_normal((2, 1, 3, 2, 4))
    k = np.broadcast_to(rng.standard_normal((1, 1, 2, 4)), v.shape)
    y, _ = attention(q, k, v)
    assert_allclose(y, np.broadcast_to(v.mean(1, keepdims=True), y.shape), rtol=1e-12)


def test_one_key_is_copied(rng):
    q, k, v = (rng.standard_normal((1, n, 2, 4)) for n in (3, 1, 1))
    y, cache = attention(q, k, v)
    assert_allclose(y, np.broadcast_to(v, y.shape), rtol=1e-15)
    dy = rng.standard_normal(y.shape)
    dq, dk, dv = attention_backward(dy, cache)
    assert_allclose(dv[:, 0], dy.sum(1), rtol=1e-12)
    assert not dq.any()
    assert not dk.any()


def test_the_order_of_the_keys_is_nothing(rng):
    q, k, v = (rng.standard_normal((2, n, 3, 4)) for n in (5, 6, 6))
    order = rng.permutation(6)
    y, cache = attention(q, k, v)
    y2, cache2 = attention(q, k[:, order], v[:, order])
    assert_allclose(y2, y, rtol=1e-11, atol=1e-13)
    dy = rng.standard_normal(y.shape)
    dq, dk, dv = attention_backward(dy, cache)
    dq2, dk2, dv2 = attention_backward(dy, cache2)
    assert_allclose(dq2, dq, rtol=1e-10, atol=1e-13)
    assert_allclose(dk2, dk[:, order], rtol=1e-10, atol=1e-13)
    assert_allclose(dv2, dv[:, order], rtol=1e-10, atol=1e-13)


def test_a_shift_of_all_keys_has_no_gradient(rng):
    # softmax forgets what all scores share: U_m's bias on the keys' side learns nothing
    q, k, v, dy = rng.standard_normal((4, 2, 5, 3, 4))
    _, cache = attention(q, k, v)
    _, dk, dv = attention_backward(dy, cache)
    assert_allclose(dk.sum(1), 0, atol=1e-13)
    assert_allclose(dv.sum(1), dy.sum(1), rtol=1e-10)


def test_pictures_and_heads_are_apart(rng):
    q, k, v = rng.standard_normal((3, 2, 3, 2, 4))
    y, _ = attention(q, k, v)
    v[1, 0, 1] = np.nan
    moved, _ = attention(q, k, v)
    assert np.isnan(moved[1, :, 1]).all()
    assert_array_equal(moved[0], y[0])
    assert_array_equal(moved[1, :, 0], y[1, :, 0])


def test_large_scores_do_not_overflow(rng):
    q, k, v = (rng.standard_normal((1, 3, 2, 4)).astype(np.float32) for _ in range(3))
    y, cache = attention(q * np.float32(1e3), k * np.float32(1e3), v)
    assert np.isfinite(y).all()
    for g in attention_backward(np.ones_like(y), cache):
        assert np.isfinite(g).all()


@pytest.mark.parametrize(('N', 'Nq'), [(0, 3), (2, 0)])
def test_nothing_to_attend_from(N, Nq):
    k = np.ones((N, 4, 2, 3))
    y, cache = attention(np.ones((N, Nq, 2, 3)), k, k)
    assert y.shape == (N, Nq, 2, 3)
    dq, dk, dv = attention_backward(y, cache)
    assert dq.shape == y.shape
    assert not dk.any()
    assert not dv.any()
