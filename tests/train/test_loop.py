"""One step, and what a run leaves behind."""

import json
import math

import numpy as np
import pytest

import ddetr_np
from ddetr_np import AdamW, Criterion, InputError, NotFiniteError, load_model
from ddetr_np.data.loader import Batch
from ddetr_np.testing_model import random_batch, randomise
from ddetr_np.train.checkpoint import read_checkpoint
from ddetr_np.train.loop import learn
from ddetr_np.train.state import State
from ddetr_np.train.team import Team

NOT_JUDGED = {'scenes.val_count': 0}


def batch_of(pictures, boxes, seed=0):
    sizes = ((48, 64),) * pictures  # of one size: padding would tell the batches apart
    images, mask, targets = random_batch(4, sizes, boxes, seed)
    return Batch(images, mask, targets, [f'id{seed}_{i}' for i in range(pictures)])


def team_of(state):
    return Team(state.model, Criterion(state.model.config))


def split(batch, *parts):
    """Parts of a batch as batches of their own."""
    ends = np.cumsum(parts)
    return [
        Batch(*(field[a:b] for field in batch)) for a, b in zip([0, *ends[:-1]], ends)
    ]


@pytest.fixture(params=['multi_scale', 'two_stage'])
def state(request, tiny, small):
    model = ddetr_np.build_model(
        request.param, dtype='float64', **tiny | {'dropout': 0.0}
    )
    return State(small(ema=0.0, warmup=0), randomise(model), 3)


def weights_after(state, batches):
    before = {n: p.data.copy() for n, p in state.model.named_params()}
    figures = learn(state, team_of(state), batches)
    after = {n: p.data.copy() for n, p in state.model.named_params()}
    grads = {n: p.grad.copy() for n, p in state.model.named_params() if p.learns}
    for name, p in state.model.named_params():
        p.data[...] = before[name]
    return figures, after, grads


def test_accumulated_batches_are_one_large_batch(state):
    """With boxes shared unevenly, so that a mean of means would be another number."""
    batch = batch_of(4, (5, 1, 0, 2))
    whole, _, expected = weights_after(state, [batch])
    for parts in ((1, 1, 1, 1), (3, 1)):
        figures, _, grads = weights_after(state, split(batch, *parts))
        for name in ('loss', 'loss_ce', 'loss_bbox', 'loss_giou', 'grad_norm'):
            assert figures[name] == pytest.approx(whole[name], rel=1e-9), name
        assert (figures['boxes'], figures['pictures']) == (8, 4)
        for name, g in grads.items():
            # the bias of the keys has none but rounding
            atol = 1e-12 * whole['grad_norm'] + 1e-9 * abs(g).max()
            np.testing.assert_allclose(g, expected[name], 1e-7, atol, err_msg=name)


def test_a_step_is_the_optimisers(state, small):
    """learn() is zero, forward, loss, backward, step, with the published groups."""
    batch = batch_of(2, (2, 3))
    _, after, grads = weights_after(state, [batch])
    optimizer = AdamW(state.model, lr=1e-3)
    for name, p in state.model.named_params():
        if p.learns:
            p.grad[...] = grads[name]
    optimizer.step()
    for name, p in state.model.named_params():
        np.testing.assert_array_equal(p.data, after[name], err_msg=name)


def test_parts_drop_other_values(tiny, small):
    """Each part of a step has its own dropout; two equal parts are not one twice."""
    model = randomise(ddetr_np.build_model('multi_scale', **tiny | {'dropout': 0.5}))
    state = State(small(ema=0.0), model, 3)
    seen = []
    forward = model.forward

    def watch(*args, **keywords):
        seen.append(keywords['step'])
        return forward(*args, **keywords)

    model.forward = watch
    for _ in range(2):
        learn(state, team_of(state), split(batch_of(2, (1, 1)), 1, 1))
    assert seen == [0, 1, 2, 3]


def test_a_loss_that_is_not_finite(state):
    batches = split(batch_of(4, (1, 1, 1, 1)), 2, 2)
    batches[1].images[1, 3, 4] = np.nan
    before = {n: p.data.copy() for n, p in state.model.named_params()}
    with pytest.raises(NotFiniteError) as caught:
        learn(state, team_of(state), batches)
    message = str(caught.value)
    assert 'it begins here: the pictures are not finite, picture 1' in message
    assert message.endswith('ids of the pictures, in order: id0_2, id0_3')
    assert state.step == 0
    for name, p in state.model.named_params():
        np.testing.assert_array_equal(p.data, before[name])


def test_a_gradient_that_is_not_finite(state):
    def backward(dout, cache, **keywords):
        p = next(p for _, p in state.model.named_params() if p.learns)
        p.grad[...] = math.inf

    state.model.backward = backward
    with pytest.raises(NotFiniteError, match='the gradient of .* is not finite') as e:
        learn(state, team_of(state), split(batch_of(2, (1, 1)), 1, 1))
    assert str(e.value).endswith('id0_0, id0_1')


def test_a_run_that_diverges_keeps_its_checkpoint(train, small, tmp_path):
    settings = small(save_every=1, epochs=1, **NOT_JUDGED)
    steps = []

    def poison(kind, **facts):
        if kind == 'start':
            steps.append(facts['state'])
        elif kind == 'step' and facts['record']['step'] == 2:
            steps[0].model.transformer.level_embed.data[0, 0] = np.nan

    with pytest.raises(NotFiniteError, match='transformer.level_embed') as caught:
        train(settings, tell=poison)
    assert 'checkpoint' in str(caught.value)
    weights, _, _, facts = read_checkpoint(tmp_path / 'run')
    assert facts['step'] == 1
    assert all(np.isfinite(a).all() for a in weights.values())
    train(settings, resume=True)  # without the poison it goes on


def test_what_a_run_leaves(straight, small, diary):
    names = [
        'best.safetensors', 'checkpoint.safetensors', 'figures.json', 'metrics.jsonl',
        'model.safetensors', 'previous.safetensors', 'settings.toml',
    ]
    assert sorted(p.name for p in straight.iterdir()) == names
    assert ddetr_np.read_settings(straight / 'settings.toml') == small()
    records = diary(straight)
    kinds = [(r['kind'], r['epoch'], r['step']) for r in records]
    steps = [('step', 1 + n // 2, n + 1) for n in range(4)]
    assert kinds == [*steps[:2], ('eval', 1, 2), *steps[2:], ('eval', 2, 4)]
    # warm-up over three steps; the drop after the first epoch
    warm = [0.001 + 0.999 * n / 3 for n in range(4)]
    drop = [1, 1, 0.1, 0.1]
    assert [r['lr'] for r in records if r['kind'] == 'step'] == pytest.approx(
        [1e-3 * w * d for w, d in zip(warm, drop)]
    )
    for r in records:
        if r['kind'] == 'step':
            parts = sum(
                weight * r[f'loss_{name}{suffix}']
                for name, weight in (('ce', 2), ('bbox', 5), ('giou', 2))
                for suffix in ('', '_0', '_enc')
            )
            assert r['loss'] == pytest.approx(parts, rel=1e-6)
            assert r['pictures'] == 4
    figures = json.loads((straight / 'figures.json').read_text())
    assert figures['figures']['AP'] == records[-1]['AP']
    assert figures['pictures'] == 2


def test_the_weights_are_the_average(straight):
    """model.safetensors is the average; the checkpoint is a weights file by itself."""
    weights, _, tensors, _ = read_checkpoint(straight)
    model = load_model(straight / 'model.safetensors')
    assert model.config.names == ddetr_np.Scenes(1).names
    raw = load_model(straight / 'checkpoint.safetensors')
    differ = 0
    for (name, p), (_, q) in zip(model.named_params(), raw.named_params()):
        np.testing.assert_array_equal(p.publish(p.data), tensors['ema'][name])
        np.testing.assert_array_equal(q.publish(q.data), weights[name])
        differ += not np.array_equal(p.data, q.data)
    assert differ > 50


def test_it_returns_what_it_wrote(train, small, tmp_path):
    model, report = train(small(epochs=1))
    written = load_model(tmp_path / 'run' / 'model.safetensors')
    for (name, p), (_, q) in zip(model.named_params(), written.named_params()):
        np.testing.assert_array_equal(p.data, q.data, err_msg=name)
    assert report.pictures == 2


def test_folders_that_will_not_do(train, small, straight, tmp_path):
    with pytest.raises(InputError, match='holds a run already; add --resume'):
        ddetr_np.train_model(small(), straight)
    with pytest.raises(InputError, match='holds no run'):
        train(small(), 'none', resume=True)
    assert not (tmp_path / 'none').exists()
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='is a file'):
        train(small(), 'file')


def test_resuming_something_else(train, small, tmp_path):
    settings = small(epochs=1, **NOT_JUDGED)
    train(settings)
    with pytest.raises(InputError, match=r'(?s)lr: began with 0.001, now 0.5.*--wei'):
        train(settings.replace(lr=0.5), resume=True)
    train(settings.replace(workers=1, evaluate_every=7), resume=True)
    cosine = settings.replace(schedule='cosine')
    train(cosine, 'cosine')
    with pytest.raises(InputError, match='epochs: began with 1, now 2'):
        train(cosine.replace(epochs=2), 'cosine', resume=True)


def test_too_few_pictures(train, small):
    with pytest.raises(InputError, match='9 pictures, fewer than the 2 × 7'):
        train(small(accumulate=7))
