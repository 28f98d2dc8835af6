import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.loss.criterion import Weights
from ddetr_np.loss.matcher import hungarian, match_cost
from ddetr_np.loss.targets import Target


def test_cost_by_hand():
    # p = ½; the class costs (α − (1 − α)) ¼ ln 2, up to 1e-8 in the logarithm
    aims = np.array([[0.5, 0.5, 0.2, 0.4], [0.4, 0.5, 1, 1]])
    target = Target(np.array([1, 0]), aims)
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [0.2, 0.5, 0.2, 0.4]])
    logits = np.zeros((2, 3))
    costs = match_cost(logits, boxes, target, Weights(1, 0, 0), 0.25, 2.0)
    assert_allclose(costs, np.full((2, 2), -0.5 * np.log(2) / 4), rtol=1e-7)
    costs = match_cost(logits, boxes, target, Weights(0, 1, 0), 0.25, 2.0)
    assert_allclose(costs, [[0, 0.1 + 0.8 + 0.6], [0.3, 0.2 + 0.8 + 0.6]])
    costs = match_cost(logits, boxes, target, Weights(0, 0, 1), 0.25, 2.0)
    assert_allclose(costs[:, 0], [-1, -(0.16 / 0.2 - 1)])  # the second is apart


def test_cost_prefers_the_likely_class():
    target = Target(np.array([2]), np.array([[0.5, 0.5, 0.2, 0.4]]))
    # the other classes' logits do not matter
    logits = np.array([[0, 0, -4.0], [9, 9, 0], [0, 0, 4], [0, 0, 1000], [0, 0, -1000]])
    boxes = np.repeat(target.boxes, 5, 0)
    cost = match_cost(logits, boxes, target, Weights(), 0.25, 2.0)[:, 0]
    assert np.isfinite(cost).all()
    assert_array_equal(np.argsort(cost), [3, 2, 1, 0, 4])


def test_leading_axes_are_apart():
    rng = np.random.default_rng(0)
    target = Target(rng.integers(0, 4, 3), rng.uniform(0.2, 0.6, (3, 4)))
    logits, boxes = rng.standard_normal((5, 7, 4)), rng.uniform(0.2, 0.6, (5, 7, 4))
    together = match_cost(logits, boxes, target, Weights(), 0.25, 2.0)
    assert together.shape == (5, 7, 3)
    for d in range(5):
        alone = match_cost(logits[d], boxes[d], target, Weights(), 0.25, 2.0)
        assert_array_equal(together[d], alone)


@pytest.mark.parametrize(('Nq', 'n'), [(5, 3), (3, 3), (2, 4)])
def test_no_other_assignment_is_cheaper(Nq, n):
    cost = np.random.default_rng(Nq).standard_normal((20, Nq, n))
    for c, (query, target) in zip(cost, hungarian(cost)):
        assert len(query) == min(Nq, n)
        assert (np.diff(query) > 0).all()
        assert len(set(target)) == len(target)
        if n <= Nq:
            least = min(
                sum(c[q, t] for t, q in enumerate(order))
                for order in itertools.permutations(range(Nq), n)
            )
        else:
            least = min(
                sum(c[q, t] for q, t in enumerate(order))
                for order in itertools.permutations(range(n), Nq)
            )
        assert_allclose(c[query, target].sum(), least)


@pytest.mark.parametrize('shape', [(3, 5, 0), (3, 0, 2)])
def test_nothing_to_match(shape):
    pairs = hungarian(np.zeros(shape))
    assert len(pairs) == 3
    assert all(q.size == t.size == 0 for q, t in pairs)
