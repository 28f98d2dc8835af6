"""The optimisers on whole detectors: who moves, how far, and how often."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np.testing_model import random_batch, randomise

LR, DECAY, CLIP, EPS = 1e-3, 1e-2, 0.1, 1e-8


@pytest.fixture(params=ddetr_np.config.VARIANTS)
def model(request, tiny):
    return randomise(ddetr_np.build_model(request.param, dtype='float64', **tiny))


def gradients(model, step=0, seed=0):
    images, mask, targets = random_batch(4, seed=seed)
    out, cache = model.forward(images, mask, train=True, step=step)
    _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
    model.zero_grad()
    assert model.backward(dout, cache, images=False, block=True) is None


def rate(name):
    slow = ('backbone.0', 'reference_points', 'sampling_offsets')
    return LR * (0.1 if any(word in name for word in slow) else 1)


def test_one_step_is_adamw_once_for_every_tensor(model):
    before = {n: p.data.copy() for n, p in model.named_params()}
    gradients(model)
    optimizer = ddetr_np.AdamW(model, lr=LR, weight_decay=DECAY, clip=CLIP)
    grads = {n: p.grad.copy() for n, p in model.named_params() if p.learns}
    norm = optimizer.step()
    assert norm == pytest.approx(
        np.sqrt(sum((g**2).sum() for g in grads.values())), rel=1e-12
    )
    scale = min(1, CLIP / (norm + 1e-6))
    for name, p in model.named_params():
        if not p.learns:
            np.testing.assert_array_equal(p.data, before[name], err_msg=name)
            continue
        # the first step: m̂ = g, v̂ = g²
        g = scale * grads[name]
        lr = rate(name)
        moved = (1 - lr * DECAY) * before[name] - lr * g / (abs(g) + EPS)
        np.testing.assert_allclose(p.data, moved, rtol=1e-9, atol=1e-12, err_msg=name)


def test_what_is_shared_is_one_parameter(model):
    optimizer = ddetr_np.AdamW(model)
    params = [p for g in optimizer.groups for p in g.params.values()]
    assert len({id(p) for p in params}) == len(params)
    assert {id(p) for p in params} == {id(p) for p in model.params()}
    heads = model.class_embed
    assert len({id(h) for h in heads}) == (
        len(heads) if model.config.refine else 1
    )


def test_steps_in_training(model):
    """The loop of the README: the rate falls, the loss too, what is frozen stays."""
    optimizer = ddetr_np.AdamW(model, lr=LR, weight_decay=DECAY, clip=CLIP)
    schedule = ddetr_np.StepLR(optimizer, step=4)
    criterion = ddetr_np.Criterion(model.config)
    frozen = {n: p.data.copy() for n, p in model.named_params() if not p.learns}
    assert any('layer1' in name for name in frozen)
    images, mask, targets = random_batch(4)
    totals = []
    for step in range(6):
        out, cache = model.forward(images, mask, train=True, step=step)
        total, _, dout = criterion(out, targets, cache=cache)
        totals.append(total)
        model.zero_grad()
        model.backward(dout, cache)
        norm = optimizer.step()
        schedule.step()
        assert np.isfinite(norm)
        assert norm > 0
    assert optimizer.lr[0] == pytest.approx(0.1 * LR)
    assert totals[-1] < totals[0]
    for name, p in model.named_params():
        if name in frozen:
            np.testing.assert_array_equal(p.data, frozen[name], err_msg=name)
        assert np.isfinite(p.data).all(), name
