import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.ops.losses import (
    giou,
    giou_backward,
    l1,
    l1_backward,
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
)

rng = np.random.default_rng(0)


def test_focal_loss_at_zero():
    # p = ½: α ¼ ln 2 and (1 − α) ¼ ln 2; slopes ∓α_t ¼ (ln 2 + ½)
    target = np.array([True, False])
    y, cache = sigmoid_focal_loss(np.zeros(2), target)
    assert_allclose(y, np.array([0.25, 0.75]) * np.log(2) / 4, rtol=1e-15)
    dx = sigmoid_focal_loss_backward(np.ones(2), cache)
    slope = (np.log(2) + 0.5) / 4
    assert_allclose(dx, [-0.25 * slope, 0.75 * slope], rtol=1e-15)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_focal_loss_of_extreme_logits(dtype):
    x = np.array([-1000, -1000, 1000, 1000], dtype)
    target = np.array([True, False, True, False])
    y, cache = sigmoid_focal_loss(x, target)
    assert_allclose(y, [250, 0, 0, 750])
    assert y.dtype == dtype
    dx = sigmoid_focal_loss_backward(np.ones(4, dtype), cache)
    assert_allclose(dx, [-0.25, 0, 0, 0.75])
    assert dx.dtype == dtype


def test_focal_loss_keeps_small_losses():
    # (1 − p)² (−log p) at p = 1 − e⁻⁴⁰: naively 0
    y, _ = sigmoid_focal_loss(np.array([40.0]), np.array([True]))
    assert_allclose(y, 0.25 * np.exp(-120), rtol=1e-12)


def test_focal_loss_without_focus_is_the_cross_entropy():
    x, target = rng.standard_normal((5, 3)), rng.random((5, 3)) < 0.5
    y, _ = sigmoid_focal_loss(x, target, alpha=0.5, gamma=0.0)
    p = 1 / (1 + np.exp(-x))
    assert_allclose(2 * y, -np.log(np.where(target, p, 1 - p)), rtol=1e-12)


def test_focal_loss_leaves_its_inputs_and_cache():
    x, target = rng.standard_normal((5, 3)), rng.random((5, 3)) < 0.5
    before = x.copy()
    _, cache = sigmoid_focal_loss(x, target)
    first = sigmoid_focal_loss_backward(np.ones_like(x), cache)
    assert_array_equal(sigmoid_focal_loss_backward(np.ones_like(x), cache), first)
    assert_array_equal(x, before)


def test_l1():
    a, b = np.array([1.0, -2.0, 3.0]), np.array([3.0, -2.0, 2.5])
    y, sign = l1(a, b)
    assert_array_equal(y, [2, 0, 0.5])
    da, db = l1_backward(np.array([10.0, 10, 10]), sign)
    assert_array_equal(da, [-10, 0, 10])  # 0 at the kink
    assert_array_equal(db, [10, 0, -10])


@pytest.mark.parametrize(
    ('b', 'expected'),
    [
        ([1, 1, 3, 3], 1 / 7 + 7 / 9 - 1),
        ([0, 0, 2, 2], 1),
        ([0.5, 0.5, 1.5, 1], 0.5 / 4),  # inside: the hull is the union
        ([2, 0, 4, 2], 0),  # touching: no overlap, no gap
        ([3, 0, 5, 2], 8 / 10 - 1),
        ([3, 3, 5, 5], 8 / 25 - 1),  # apart along both axes: no negative overlap
    ],
)
def test_giou(b, expected):
    a, b = np.array([0.0, 0, 2, 2]), np.array(b, float)
    assert_allclose(giou(a, b)[0], expected, atol=1e-15)
    assert_allclose(giou(b, a)[0], expected, atol=1e-15)


def random_corners(*shape):
    edges = np.sort(rng.random((*shape, 2, 2)), -2)  # low, high; x, y
    return edges.reshape(*shape, 4)


def test_giou_of_all_pairs_is_that_of_each_pair():
    a, b = random_corners(6), random_corners(5)
    pairs, _ = giou(a[:, None], b)
    assert pairs.shape == (6, 5)
    for i in range(6):
        for j in range(5):
            assert_array_equal(pairs[i, j], giou(a[i], b[j])[0])


def test_giou_keeps_the_precision():
    a, b = random_corners(4).astype('float32'), random_corners(4).astype('float32')
    y, cache = giou(a, b)
    da, db = giou_backward(np.ones_like(y), cache)
    assert y.dtype == da.dtype == db.dtype == 'float32'


@pytest.mark.parametrize('edge', range(4))
def test_giou_splits_the_gradient_where_edges_coincide(edge):
    a, b = np.array([0.1, 0.2, 0.6, 0.9]), np.array([0.3, 0.1, 0.8, 0.7])
    a[edge] = b[edge]
    da, db = giou_backward(np.ones(()), giou(a, b)[1])
    for gradient, moved in ((da, a), (db, b)):
        slopes = []
        for h in (1e-6, -1e-6):
            there = moved.copy()
            there[edge] += h
            pair = (there, b) if moved is a else (a, there)
            slopes.append((giou(*pair)[0] - giou(a, b)[0]) / h)
        assert abs(slopes[0] - slopes[1]) > 0.1  # a kink indeed
        assert_allclose(gradient[edge], np.mean(slopes), atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize('gamma', [2.0, 0.0, 1.5])
def test_focal_loss_against_autograd(gamma):
    torch = pytest.importorskip('torch')
    x, dy = 4 * rng.standard_normal((40, 7)), rng.standard_normal((40, 7))
    target = rng.random((40, 7)) < 0.3
    y, cache = sigmoid_focal_loss(x, target, 0.25, gamma)
    dx = sigmoid_focal_loss_backward(dy, cache)

    t, one = torch.tensor(x, requires_grad=True), torch.tensor(target)
    p = torch.where(one, t.sigmoid(), 1 - t.sigmoid())
    alpha = torch.where(one, 0.25, 0.75).double()
    expected = -alpha * (1 - p) ** gamma * p.log()
    expected.backward(torch.tensor(dy))
    assert_allclose(y, expected.detach(), rtol=1e-10, atol=1e-14)
    assert_allclose(dx, t.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.oracle
def test_giou_against_autograd_ties_and_touching_boxes_included():
    torch = pytest.importorskip('torch')
    a, b = random_corners(300), random_corners(300)
    grid = np.sort(rng.integers(0, 4, (2, 400, 2, 2)), -2) + [[[0, 0], [1, 1]]]
    a, b = (np.concatenate([c, g.reshape(-1, 4)]) for c, g in zip((a, b), grid))
    dy = rng.standard_normal(len(a))
    y, cache = giou(a, b)
    da, db = giou_backward(dy, cache)

    ta, tb = (torch.tensor(c, requires_grad=True) for c in (a, b))

    def area(low, high):
        return (high - low).clamp(min=0).prod(-1)

    inter = area(
        torch.maximum(ta[:, :2], tb[:, :2]), torch.minimum(ta[:, 2:], tb[:, 2:])
    )
    hull = area(
        torch.minimum(ta[:, :2], tb[:, :2]), torch.maximum(ta[:, 2:], tb[:, 2:])
    )
    sizes = [(t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1]) for t in (ta, tb)]
    union = sum(sizes) - inter
    expected = inter / union - (hull - union) / hull
    expected.backward(torch.tensor(dy))
    assert_allclose(y, expected.detach(), atol=1e-13)
    assert_allclose(da, ta.grad, rtol=1e-10, atol=1e-12)
    assert_allclose(db, tb.grad, rtol=1e-10, atol=1e-12)
