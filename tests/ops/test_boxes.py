import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, logit

from ddetr_np.ops.boxes import (
    box_from_reference,
    box_from_reference_backward,
    cxcywh_to_xyxy,
    cxcywh_to_xyxy_backward,
    xyxy_to_cxcywh,
)


def test_no_correction_is_the_reference():
    p_hat = np.array([[0.2, 0.7, 0.1, 0.4]])
    box, _ = box_from_reference(np.zeros((1, 4)), p_hat)
    assert_allclose(box, p_hat, rtol=1e-14)
    box, _ = box_from_reference(np.zeros((1, 4)), p_hat[:, :2])
    assert_allclose(box, [[0.2, 0.7, 0.5, 0.5]], rtol=1e-14)


@pytest.mark.parametrize('n', [2, 4])
def test_against_scipy(n, rng):
    delta, p_hat = rng.standard_normal((2, 5, 4)), rng.uniform(0.01, 0.99, (2, 5, n))
    s = delta.copy()
    s[..., :n] += logit(p_hat)
    box, cache = box_from_reference(delta, p_hat)
    assert_allclose(box, expit(s), rtol=1e-12)
    dbox = rng.standard_normal(box.shape)
    ddelta, dp_hat = box_from_reference_backward(dbox, cache)
    slope = dbox * expit(s) * expit(-s)
    assert_allclose(ddelta, slope, rtol=1e-10)
    assert_allclose(dp_hat, slope[..., :n] / (p_hat * (1 - p_hat)), rtol=1e-10)


def test_a_reference_at_the_border_is_held():
    # a masked proposal's box is 1: its σ⁻¹ must stay finite, its gradient zero or small
    p_hat = np.array([[0.0, 1, 0, 1]])
    box, cache = box_from_reference(np.zeros((1, 4)), p_hat)
    assert_allclose(box, [[1e-5, 1 - 1e-5, 1e-5, 1 - 1e-5]], rtol=2e-5)
    ddelta, dp_hat = box_from_reference_backward(np.ones((1, 4)), cache)
    assert np.isfinite(ddelta).all()
    assert np.isfinite(dp_hat).all()


def test_forms_by_hand():
    box = np.array([[0.5, 0.25, 0.5, 0.25]])
    corners = np.array([[0.25, 0.125, 0.75, 0.375]])
    assert_array_equal(cxcywh_to_xyxy(box), corners)
    assert_array_equal(xyxy_to_cxcywh(corners), box)
    dbox = cxcywh_to_xyxy_backward(np.array([1.0, 10, 100, 1000]))
    assert_array_equal(dbox, [101, 1010, 49.5, 495])


def test_forms_undo_each_other(rng):
    box = rng.uniform(0, 1, (2, 3, 4))
    assert_allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(box)), box, rtol=1e-14, atol=1e-15)


def test_no_boxes():
    none = np.zeros((2, 0, 4))
    assert cxcywh_to_xyxy(none).shape == (2, 0, 4)
    assert xyxy_to_cxcywh(none).shape == (2, 0, 4)
    box, cache = box_from_reference(none, none[..., :2])
    assert box.shape == (2, 0, 4)
    ddelta, dp_hat = box_from_reference_backward(box, cache)
    assert ddelta.shape == (2, 0, 4)
    assert dp_hat.shape == (2, 0, 2)
