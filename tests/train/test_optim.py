import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ddetr_np
from ddetr_np import threads
from ddetr_np.config import VARIANTS
from ddetr_np.errors import InputError, NotFiniteError
from ddetr_np.module import Module, Param
from ddetr_np.ops import update
from ddetr_np.train import SGD, AdamW, GroupRule


class Small(Module):
    """A matrix, a bias, a kernel in its own layout, and one that is frozen."""

    def __init__(self, dtype='float64', seed=0):
        rng = np.random.default_rng(seed)

        def draw(*shape, **kind):
            return Param(rng.standard_normal(shape).astype(dtype), **kind)

        self.weight, self.bias = draw(5, 3), draw(5)
        self.kernel = draw(3, 2, 4, 6, conv=True)
        self.frozen = draw(4, learns=False)


def give_gradients(model, seed, size=1.0):
    rng = np.random.default_rng(seed)
    for _, p in model.named_params():
        p.grad[...] = size * rng.standard_normal(p.data.shape)


def one(value, grad):
    model = Module()
    model.w = Param(np.array(value, float))
    model.w.grad = np.array(grad, float)
    return model


def test_adamw_first_step_by_hand():
    # m̂ = g and v̂ = g² after the first step, so each weight moves by lr · sign(g)
    model = one([1.0, -2.0, 0.5], [3.0, -1e-3, 0.0])
    norm = AdamW(model, lr=0.1, weight_decay=0.2, clip=None, groups=()).step()
    assert_allclose(norm, np.hypot(3, 1e-3))
    expected = np.array([1, -2, 0.5]) * (1 - 0.1 * 0.2) - [0.1, -0.1, 0]
    assert_allclose(model.w.data, expected, rtol=1e-5)


def test_sgd_by_hand():
    model = one([1.0], [2.0])
    sgd = SGD(model, lr=0.1, momentum=0.5, weight_decay=0.0, clip=None, groups=())
    sgd.step()
    assert_allclose(model.w.data, 1 - 0.2)
    sgd.step()
    assert_allclose(model.w.data, 1 - 0.2 - 0.1 * (0.5 * 2 + 2))


def test_clipping_by_the_global_norm():
    model = one([1.0, 1.0], [3.0, 4.0])
    sgd = SGD(model, lr=1, momentum=0, weight_decay=0, clip=0.5, groups=())
    assert sgd.step() == 5
    factor = 0.5 / (5 + 1e-6)
    assert_allclose(model.w.data, [1 - 3 * factor, 1 - 4 * factor], rtol=1e-15)
    assert_array_equal(model.w.grad, [3, 4])
    model.w.grad /= 100
    before = model.w.data.copy()
    sgd.step()
    assert_allclose(model.w.data, before - [0.03, 0.04])  # 0.05 is below the clip


def test_norm_in_single_precision_does_not_overflow():
    model = Module()
    model.w = Param(np.zeros(4, 'float32'))
    model.w.grad = np.full(4, 1e30, 'float32')
    assert_allclose(AdamW(model, groups=()).step(), 2e30, rtol=1e-6)
    assert np.isfinite(model.w.data).all()


@pytest.mark.parametrize('variant', VARIANTS)
def test_published_groups(variant, tiny, published_names):
    # membership goes by name, so that a small model has the published groups
    fields = {**tiny, 'encoder_layers': 6, 'decoder_layers': 6}
    model = ddetr_np.build_model(variant, **fields)
    optimizer = AdamW(model)
    assert optimizer.lr == [2e-4, 2e-5, 2e-5]
    expected = [set(), set(), set()]
    for name, p in model.named_params():
        parts = name.split('.')
        slow = parts[-2] in ('sampling_offsets', 'reference_points')
        if p.learns:
            expected[1 if parts[0] == 'backbone' else 2 * slow].add(name)
    assert [set(g.params) for g in optimizer.groups] == expected
    assert set().union(*expected) <= set(published_names[variant])
    # three stages learn: 13 blocks of three convolutions, three shortcuts
    assert len(expected[1]) == 13 * 3 + 3
    # weight and bias of each attention's offsets, and of the learned reference points
    assert len(expected[2]) == 2 * (12 + (variant != 'two_stage'))


def test_groups_of_ones_own():
    rules = [GroupRule(('bias',), weight_decay=0.0), GroupRule(('kernel',), lr=0.5)]
    rest, bias, kernel = AdamW(Small(), lr=1.0, weight_decay=0.1, groups=rules).groups
    assert list(rest.params) == ['weight']
    assert list(bias.params) == ['bias']
    assert list(kernel.params) == ['kernel']
    assert (bias.lr, bias.weight_decay) == (1.0, 0.0)
    assert (kernel.lr, kernel.weight_decay) == (0.5, 0.1)
    with pytest.raises(InputError, match='nothing_like_it'):
        AdamW(Small(), groups=[GroupRule(('nothing_like_it',))])


@pytest.mark.parametrize('make', [AdamW, SGD])
def test_in_place_and_what_is_frozen_stays(make):
    model = Small()
    arrays = {name: p.data for name, p in model.named_params()}
    copies = {name: a.copy() for name, a in arrays.items()}
    optimizer = make(model, groups=())
    for t in range(3):
        give_gradients(model, t)
        optimizer.step()
    for name, p in model.named_params():
        assert p.data is arrays[name]
        assert p.learns != (p.data == copies[name]).all()


@pytest.mark.parametrize('make', [AdamW, SGD, lambda m, **k: SGD(m, momentum=0, **k)])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_restored_exactly(make, dtype):
    model = Small(dtype)
    optimizer = make(model, groups=())
    for t in range(3):
        give_gradients(model, t)
        optimizer.step()
    other = Small(dtype, seed=1)
    other.load_state_dict(model.state_dict())
    restored = make(other, groups=())
    state = optimizer.state_dict()
    restored.load_state_dict(state)
    for t in range(3, 6):
        for m, o in ((model, optimizer), (other, restored)):
            give_gradients(m, t)
            o.step()
    for (name, a), (_, b) in zip(model.named_params(), other.named_params()):
        assert_array_equal(a.data, b.data, err_msg=name)
    again, expected = restored.state_dict(), optimizer.state_dict()
    assert again['steps'] == expected['steps'] == 6
    for slot in optimizer.slots:
        for name, array in expected[slot].items():
            assert_array_equal(again[slot][name], array)


@pytest.mark.parametrize('make', [AdamW, SGD])
def test_the_same_bits_with_any_number_of_threads(make):
    models = [Small('float32') for _ in range(2)]
    states = []
    for n, model in zip((1, 3), models):
        with threads.limit(n):
            optimizer = make(model, clip=0.1)
            for seed in range(3):
                give_gradients(model, seed)
                optimizer.step()
        states.append(optimizer.state_dict())
    for (name, a), (_, b) in zip(*(m.named_params() for m in models), strict=True):
        assert a.data.tobytes() == b.data.tobytes(), name
    for slot in make(models[0]).slots:
        one, many = (state[slot] for state in states)
        assert list(one) == list(many) == list(optimizer.params)  # not as they ended
        assert all(one[name].tobytes() == many[name].tobytes() for name in one)


def test_state_is_published():
    model = Small()
    optimizer = AdamW(model, groups=())
    give_gradients(model, 0)
    optimizer.step()
    state = optimizer.state_dict()
    weights = model.state_dict()
    for slot in ('exp_avg', 'exp_avg_sq'):
        assert set(state[slot]) == {'weight', 'bias', 'kernel'}
        for name, array in state[slot].items():
            assert array.shape == weights[name].shape
    scale = 0.1 / (optimizer.step() + 1e-6)
    kernel = model.kernel.grad.transpose(3, 2, 0, 1)
    assert_allclose(state['exp_avg']['kernel'], 0.1 * scale * kernel, rtol=1e-12)
    state['exp_avg']['kernel'][...] = 0  # a copy
    assert optimizer.state_dict()['exp_avg']['kernel'].any()


def test_fresh_state():
    state = AdamW(Small(), groups=()).state_dict()
    assert state['steps'] == 0
    model = Small()
    give_gradients(model, 0)
    used = AdamW(model, groups=())
    used.step()
    used.load_state_dict(state)
    assert used.state_dict() == state


def test_state_of_another_model_is_refused():
    model = Small()
    optimizer = AdamW(model, groups=())
    give_gradients(model, 0)
    optimizer.step()
    state = optimizer.state_dict()
    del state['exp_avg_sq']['bias']
    other = AdamW(Small(), groups=())
    with pytest.raises(InputError, match=r'exp_avg_sq .* bias: expected \(5,\)'):
        other.load_state_dict(state)
    assert other.steps == 0
    with pytest.raises(InputError, match='SGD here needs'):
        SGD(Small(), groups=()).load_state_dict(optimizer.state_dict())
    grouped = AdamW(Small(), groups=[GroupRule(('bias',))])
    with pytest.raises(InputError, match='1 groups, the optimiser 2'):
        grouped.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize('make', [AdamW, SGD])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(make, value):
    model = Small()
    optimizer = make(model, groups=())
    give_gradients(model, 0)
    optimizer.step()
    weights, state = model.state_dict(), optimizer.state_dict()
    model.kernel.grad[1, 0, 2, 3] = value
    with pytest.raises(NotFiniteError, match='gradient of kernel'):
        optimizer.step()
    for name, array in model.state_dict().items():
        assert_array_equal(array, weights[name])
    after = optimizer.state_dict()
    assert after['steps'] == 1
    for slot in optimizer.slots:
        for name, array in after[slot].items():
            assert_array_equal(array, state[slot][name])


@pytest.mark.parametrize(
    'settings',
    [{'lr': -1}, {'clip': -1}, {'betas': (0.9, 1)}, {'eps': 0}, {'weight_decay': -1}],
)
def test_impossible_settings(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        AdamW(Small(), groups=(), **settings)


@pytest.mark.parametrize('make', [AdamW, SGD])
def test_no_temporary_as_large_as_a_tensor(make):
    model = Module()
    model.w = Param(np.zeros((1000, 2000), 'float32'))  # 8 MB
    model.w.grad[...] = 1
    optimizer = make(model, groups=())
    optimizer.step()  # makes the state
    tracemalloc.start()
    optimizer.step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


def test_blocks_cover_every_layout_once(monkeypatch):
    monkeypatch.setattr(update, 'BLOCK', 7)
    rng = np.random.default_rng(0)
    for shape in ((50,), (6, 5), (3, 2, 4, 5), (1, 1, 9, 3), (0, 3), ()):
        a = rng.standard_normal(shape)
        for array in (a, a.T, np.flip(a)) if shape else (a,):
            copy = array.copy()
            assert_allclose(update.sum_of_squares(array), (array**2).sum())
            update.sgd_update(array, copy, None, 0.5, 0, 0)
            assert_allclose(array, copy / 2)


@pytest.mark.oracle
@pytest.mark.parametrize('dtype', ['float64', 'float32'])
@pytest.mark.parametrize('kind', ['adamw', 'sgd', 'nesterov', 'plain'])
def test_against_pytorch(kind, dtype):
    torch = pytest.importorskip('torch')
    model = Small(dtype)
    params = {n: p for n, p in model.named_params() if p.learns}
    theirs = {n: torch.tensor(p.data.copy()) for n, p in params.items()}
    if kind == 'adamw':
        settings = {'lr': 0.01, 'weight_decay': 0.1, 'betas': (0.8, 0.95), 'eps': 1e-6}
        ours, torch_class = AdamW, torch.optim.AdamW
    else:
        momentum = 0 if kind == 'plain' else 0.7
        settings = {'lr': 0.01, 'weight_decay': 0.1, 'momentum': momentum}
        settings['nesterov'] = kind == 'nesterov'
        ours, torch_class = SGD, torch.optim.SGD
    optimizer = ours(model, clip=3.0, groups=[GroupRule(('bias',), lr=0.1)], **settings)
    slow = theirs['bias']
    rest = [t for n, t in theirs.items() if n != 'bias']
    groups = [{'params': rest}, {'params': [slow], 'lr': 1e-3}]
    torch_optimizer = torch_class(groups, **settings)
    tolerance = 1e-12 if dtype == 'float64' else 1e-5
    for t in range(12):
        give_gradients(model, t, size=0.05 * t)  # below and above the clip
        for name, p in params.items():
            theirs[name].grad = torch.tensor(p.grad.copy())
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), 3.0)
        norm = optimizer.step()
        torch_optimizer.step()
        assert_allclose(norm, expected, rtol=tolerance)
        for name, p in params.items():
            assert_allclose(p.data, theirs[name], rtol=tolerance, atol=tolerance)
