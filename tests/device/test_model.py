"""Whole detectors on a device: forward, loss and backward as NumPy has them."""

import contextlib

import numpy as np
import pytest

from ddetr_np import Criterion, build_model
from ddetr_np.backend import mixed, plain, to_device
from ddetr_np.config import VARIANTS
from ddetr_np.testing_model import SMALL, random_batch, randomise

MORE = {'encoder_layers': 1, 'dropout': 0.1}
TARGETS = random_batch(SMALL['num_classes'])[2]


def build(variant, gpu=None, dtype='float64', **fields):
    if variant != 'single_scale_dc5':  # only bottlenecks have a dilated form
        fields = {'backbone': 'resnet18', **fields}
    model = build_model(variant, dtype=dtype, **SMALL | MORE | fields)
    return randomise(model).to(gpu.name if gpu else 'cpu')


def batch(gpu=None):
    images, mask, _ = random_batch(SMALL['num_classes'])
    return gpu.put((images, mask)) if gpu else (images, mask)


def learn(model, images, mask, keep='all'):
    """Return all that a training pass makes."""
    out, cache = model.forward(images, mask, train=True, keep=keep, step=3)
    total, losses, dout = Criterion(model.config)(out, TARGETS, cache=cache)
    dimages = model.backward(dout, cache, images=True)
    return out, total, losses, dimages, [p.grad for p in model.params()]


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_training_pass(gpu, variant):
    with plain():
        expected = learn(build(variant), *batch())
    got = learn(build(variant, gpu), *batch(gpu))
    gpu.check(got, expected, 1e-9)


@pytest.mark.parametrize('keep', ['inputs', 'none'])
def test_passes_that_keep_less(gpu, keep):
    if keep == 'inputs':
        with plain():
            expected = learn(build('two_stage'), *batch(), keep)
        got = learn(build('two_stage', gpu), *batch(gpu), keep)
    else:
        with plain():
            expected, _ = build('two_stage').forward(*batch(), keep='none')
        got, _ = build('two_stage', gpu).forward(*batch(gpu), keep='none')
    gpu.check(got, expected, 1e-9)


def test_distinct_proposals(gpu):
    """One best after the other, on the device."""
    fields = {'proposal_iou': 0.1, 'base_scale': 0.3}
    with plain():
        expected = learn(build('two_stage', **fields), *batch())
        published = learn(build('two_stage', base_scale=0.3), *batch())
    assert not np.array_equal(published[0].boxes, expected[0].boxes)
    got = learn(build('two_stage', gpu, **fields), *batch(gpu))
    gpu.check(got, expected, 1e-9)


def test_norms_that_learn(gpu):
    fields = {'freeze_at': 0, 'frozen_norm': False}
    models = build('multi_scale', **fields), build('multi_scale', gpu, **fields)
    with plain():
        expected = learn(models[0], *batch())
    gpu.check(learn(models[1], *batch(gpu)), expected, 1e-9)
    states = [[p.data for _, p in m.named_params()] for m in models]  # statistics too
    gpu.check(*states[::-1], 1e-9)


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_training_pass_in_mixed_precision(gpu, variant):
    """Near single precision; recomputed layers have the bits of those kept."""
    fields = {'freeze_at': 0, 'frozen_norm': False} if variant == 'refine' else {}
    images, mask = (a.astype('float32') if a.dtype != bool else a for a in batch())

    def run(keep, wide=False):
        model = build(variant, gpu, dtype='float32', **fields)
        given = gpu.put((images, mask))
        with contextlib.nullcontext() if wide else mixed():
            out, total, losses, dimages, gradients = learn(model, *given, keep)
        assert out.logits.dtype == out.boxes.dtype == 'float32'
        assert all(g.dtype == 'float32' for g in gradients)
        assert all(np.isfinite(gpu.fetch(g)).all() for g in gradients)
        return total, losses, dimages, gradients

    single, half = run('all', wide=True), run('all')
    assert half[0] == pytest.approx(single[0], rel=0.02)
    assert half[0] != single[0]
    if gpu.traffic:
        gpu.check(run('inputs'), gpu.fetch(half), 0)


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
def test_what_crosses(double, variant):
    """The matching's costs, and a few numbers; the step's figures in one crossing."""
    model, traffic = build(variant, double), double.traffic
    images, mask = batch(double)
    traffic.clear()
    out, cache = model.forward(images, mask, train=True, step=3)
    assert traffic.to_host == [1, 1]  # is there padding, and none at a first pixel
    D, N, Nq, _ = out.logits.shape
    stages = D + (variant == 'two_stage')
    costs = [8 * D * Nq * len(t['labels']) for t in TARGETS]
    if variant == 'two_stage':
        S = out.proposal_logits.shape[1]
        costs += [8 * S * len(t['labels']) for t in TARGETS]
    traffic.clear()
    _, losses, dout = Criterion(model.config)(out, TARGETS, cache=cache)
    assert traffic.to_host == [2 * stages * N, *costs, 8 * len(losses)]
    assert traffic.asked == []
    traffic.clear()
    model.backward(dout, cache, images=True)
    assert traffic.to_host == []
    traffic.clear()
    model.forward(images, keep='none')
    assert traffic.to_host == []  # without a mask, nothing at all


def test_a_target_may_be_on_the_device_or_empty(gpu):
    model = build('multi_scale', gpu)
    out, _ = model.forward(*batch(gpu))
    criterion = Criterion(model.config)
    expected = criterion(out, TARGETS)
    gpu.check(criterion(out, gpu.put(TARGETS)), gpu.fetch(expected), 1e-12)
    nothing = {'labels': np.zeros(0, int), 'boxes': np.zeros((0, 4))}
    _, losses, _ = criterion(out, [nothing, nothing])
    assert losses['class_error'] == 100


def test_where_a_nan_began(gpu):
    model = build('refine', gpu)
    images, mask = batch(gpu)
    images[1, 3, 4] = np.nan
    with np.errstate(invalid='ignore'):
        _, cache = model.forward(images, mask)
    assert str(cache.first_not_finite()) == (
        'the pictures are not finite, picture 1 of the batch'
    )
    model.transformer.encoder.layers[0].linear1.weight.data[0, 0] = np.inf
    with np.errstate(invalid='ignore'):  # the double's
        _, cache = model.forward(*batch(gpu))
    assert 'encoder.layers.0.linear1.weight' in str(cache.first_not_finite())


def test_there_and_back(gpu):
    model = build('multi_scale')
    before = model.state_dict()
    state = model.to(gpu.name).state_dict()
    gpu.check(state, before, 0)
    model.load_state_dict(state)
    gpu.check(model.to('cpu').state_dict(), before, 0)


def test_a_second_gpu_becomes_the_current_one(double):
    """CuPy computes on the current device, wherever the arrays are."""
    a = to_device(np.ones(3), 'cuda:1')
    assert a.device.id == 1
    assert (a + a).device.id == 1
    assert to_device(a, 'cuda:0').device.id == 0
    with pytest.raises(RuntimeError, match='device 1'):
        a + a


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
@pytest.mark.gpu
def test_the_published_pass(real, variant, published_model, published_pass):
    arrays, images, mask, _ = published_pass(variant)
    model = published_model(variant).to(real.name)
    try:
        out, _ = model.forward(*real.put((images, mask)), keep='none')
        out = real.fetch(out)
    finally:
        model.to('cpu')  # other tests use it

    def distance(a, b):
        return np.linalg.norm(a - b) / np.linalg.norm(b)

    assert distance(out.logits[-1], arrays['pred_logits']) < 1e-9
    assert distance(out.boxes[-1], arrays['pred_boxes']) < 1e-9
    if variant == 'two_stage':
        assert distance(out.proposal_boxes, arrays['enc_pred_boxes']) < 1e-9
