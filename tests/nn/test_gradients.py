"""The gradient of the whole detector, by random directions."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np.testing_model import check_model, random_batch, randomise

STRUCTURES = {
    **{v: {'variant': v} for v in ddetr_np.config.VARIANTS},
    'two_stage without refinement': {'variant': 'two_stage', 'refine': False},
    'two levels': {'variant': 'refine', 'L': 2},
    'five levels': {'variant': 'multi_scale', 'L': 5},
    'basic blocks': {'variant': 'multi_scale', 'backbone': 'resnet18'},
}


def build(tiny, variant, **fields):
    fields = {**tiny, 'dropout': 0.0, **fields}
    return randomise(ddetr_np.build_model(variant, dtype='float64', **fields))


def verdicts(model, batch, **options):
    checks = list(check_model(model, *batch, **options))
    assert len(checks) > 10
    return [c for c in checks if c.verdict != 'ok']


@pytest.mark.parametrize('block', [True, False], ids=['blocked', 'full'])
@pytest.mark.parametrize('name', STRUCTURES)
def test_every_part_and_the_pictures(tiny, name, block):
    model = build(tiny, **STRUCTURES[name])
    assert not verdicts(model, random_batch(4), block=block)


def test_dropout_and_everything_learning(tiny):
    model = build(tiny, 'refine', dropout=0.2, freeze_at=0)
    assert not verdicts(model, random_batch(4), train=True)


def test_learning_batch_norms(tiny):
    # large maps: statistics of a few pixels are too wild for finite differences
    model = build(
        tiny, 'multi_scale', freeze_at=0, frozen_norm=False, L=3, backbone='resnet18'
    )
    batch = random_batch(4, sizes=((132, 148), (140, 128)))
    assert not verdicts(model, batch, train=True, step=2.0**-18)
    assert not verdicts(model, batch, train=False)


def test_blocking_makes_a_difference(tiny):
    """What is blocked is not zero anyway: the two derivatives differ."""
    for variant in ('refine', 'two_stage'):
        model = build(tiny, variant)
        images, mask, targets = random_batch(4)
        out, cache = model.forward(images, mask)
        _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
        blocked = model.backward(dout, cache, images=True)
        full = model.backward(dout, cache, images=True, block=False)
        off = np.linalg.norm(blocked - full) / np.linalg.norm(full)
        assert off > 1e-3


def test_first_reference_points_learn_through_refinement(tiny):
    """The released code detaches refined boxes, not the learned reference points."""
    model = build(tiny, 'refine', decoder_layers=1)
    images, mask, targets = random_batch(4)
    out, cache = model.forward(images, mask)
    model.zero_grad()
    _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
    model.backward(dout, cache)
    assert np.abs(model.transformer.reference_points.weight.grad).max() > 0


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
@pytest.mark.parametrize('images', [False, True])
def test_recomputing_gives_the_same_bits(tiny, variant, images):
    model = build(tiny, variant, dropout=0.3, frozen_norm=False, freeze_at=1)
    batch, mask, targets = random_batch(4)
    grads, statistics = {}, {}
    start = {n: p.data.copy() for n, p in model.named_params()}
    for keep in ('all', 'inputs'):
        for n, p in model.named_params():
            p.data[...] = start[n]
        model.zero_grad()
        out, cache = model.forward(batch, mask, train=True, keep=keep, step=5)
        _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
        dimages = model.backward(dout, cache, images=images)
        grads[keep] = {**model.grad_dict(), 'images': dimages}
        statistics[keep] = model.state_dict()
    for name, g in grads['all'].items():
        np.testing.assert_array_equal(g, grads['inputs'][name], err_msg=name)
    for name, a in statistics['all'].items():  # running statistics moved once
        np.testing.assert_array_equal(a, statistics['inputs'][name], err_msg=name)
    running = [n for n in start if 'running' in n]
    assert any((statistics['all'][n] != start[n]).any() for n in running)


def test_nothing_kept_cannot_go_back(tiny):
    model = build(tiny, 'multi_scale')
    images, mask, targets = random_batch(4)
    out, cache = model.forward(images, mask, keep='none')
    _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
    with pytest.raises(ValueError, match="keep='all'"):
        model.backward(dout, cache)


def test_gradients_add_up(tiny):
    model = build(tiny, 'two_stage')
    images, mask, targets = random_batch(4)
    out, cache = model.forward(images, mask)
    _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
    model.zero_grad()
    model.backward(dout, cache)
    once = model.grad_dict()
    model.backward(dout, cache)
    for name, g in model.grad_dict().items():
        np.testing.assert_allclose(g, 2 * once[name], rtol=1e-12, atol=1e-300)


def test_only_the_pictures_gradient_reaches_the_frozen_stages(tiny):
    model = build(tiny, 'multi_scale')
    images, mask, targets = random_batch(4)
    out, cache = model.forward(images, mask)
    body = cache.backbone
    frozen = model.backbone[0].body._frozen
    assert frozen == 4  # the stem and three blocks
    assert all(c is None for c in body.parts[:frozen])
    assert all(c is not None for c in body.parts[frozen:])
    _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
    assert model.backward(dout, cache) is None
    assert model.backward(dout, cache, images=True).shape == images.shape
