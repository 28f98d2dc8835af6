import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddetr_np.errors import InputError
from ddetr_np.module import (
    EVAL,
    Inputs,
    Module,
    Param,
    Run,
    forward_keeping,
    recall,
)


class Layer(Module):
    """y = x W + 1 at evaluation; counts its calls, and draws noise as dropout does."""

    def __init__(self, seed=0):
        self.weight = Param(np.random.default_rng(seed).standard_normal((2, 3)))
        self.running = Param(np.zeros(3), buffer=True)
        self.calls = 0

    def forward(self, x, run=EVAL):
        self.calls += 1
        y = x @ self.weight.data + 1
        if run.train:
            y = y + np.random.default_rng([run.seed, run.step]).standard_normal(3)
            if not run.again:
                self.running.data += y.mean(0)
        return y, (x, y)


class Model(Module):
    def __init__(self):
        self.kernel = Param(np.zeros((3, 5, 2, 4)), conv=True)
        self.frozen = Param(np.zeros(2), learns=False)
        self.layers = [Layer(1), Layer(2)]
        self.shared = self.layers[1]
        self.head = Layer(3)
        self.number = 7  # no Param: not seen


OWN = [  # in order, each once
    'kernel',
    'frozen',
    'layers.0.weight',
    'layers.0.running',
    'layers.1.weight',
    'layers.1.running',
    'head.weight',
    'head.running',
]
ALIASES = ['shared.weight', 'shared.running']


@pytest.fixture
def model():
    return Model()


def full(model, value=None):
    """A mapping that fits, aliases left out."""
    rng = np.random.default_rng(9)
    return {
        name: rng.standard_normal(p.shape) if value is None else np.full(p.shape, value)
        for name, p in model.named_params()
    }


def test_names(model):
    assert [name for name, _ in model.named_params()] == OWN
    names = [name for name, _ in model.named_params(aliases=True)]
    assert names == [*OWN[:6], *ALIASES, *OWN[6:]]
    params = dict(model.named_params(aliases=True))
    assert params['shared.weight'] is params['layers.1.weight']


def test_modules_come_once_and_in_order(model):
    found = list(model.modules())
    assert found == [model, model.layers[0], model.layers[1], model.head]
    assert list(model.modules(Layer)) == found[1:]


def test_params_are_what_learns(model):
    expected = [model.kernel, *(m.weight for m in (*model.layers, model.head))]
    assert all(a is b for a, b in zip(model.params(), expected, strict=True))


def test_a_buffer_never_learns():
    assert not Param(np.ones(2), learns=True, buffer=True).learns


def test_gradients_add_up_and_are_cleared(model):
    p = model.head.weight
    assert_array_equal(p.grad, np.zeros((2, 3)))
    p.grad += 1
    p.grad += np.arange(6).reshape(2, 3)
    assert_array_equal(p.grad, 1 + np.arange(6).reshape(2, 3))
    kept = p.grad
    model.zero_grad()
    assert p.grad is kept  # in place: no second copy
    assert not kept.any()


def test_a_shared_param_has_one_gradient(model):
    model.layers[1].weight.grad += 1
    model.shared.weight.grad += 2
    gradients = model.grad_dict()
    assert_array_equal(gradients['layers.1.weight'], np.full((2, 3), 3))
    assert_array_equal(gradients['shared.weight'], np.full((2, 3), 3))


def test_grad_dict_holds_what_learns_in_the_published_layout(model):
    model.kernel.grad += np.arange(120).reshape(3, 5, 2, 4)
    gradients = model.grad_dict()
    learns = ['kernel', *(n for n in (*OWN, *ALIASES) if n.endswith('weight'))]
    assert sorted(gradients) == sorted(learns)
    assert gradients['kernel'].shape == (4, 2, 3, 5)
    assert gradients['kernel'][3, 1, 2, 4] == model.kernel.grad[2, 4, 1, 3]


def test_kernels_are_turned_on_the_way_in_and_out(model):
    mapping = full(model)
    assert mapping['kernel'].shape == model.kernel.shape == (4, 2, 3, 5)
    model.load_state_dict(mapping)
    assert model.kernel.data.shape == (3, 5, 2, 4)
    assert model.kernel.data[2, 4, 1, 3] == mapping['kernel'][3, 1, 2, 4]
    state = model.state_dict()
    for name, array in mapping.items():
        assert_array_equal(state[name], array)
        assert state[name].flags.c_contiguous


def test_state_dict_is_a_copy(model):
    state = model.state_dict()
    state['head.weight'][...] = 99
    assert not (model.head.weight.data == 99).any()


def test_loading_keeps_the_arrays_and_their_precision(model):
    before = model.head.weight.data
    mapping = full(model)
    mapping['head.weight'] = mapping['head.weight'].astype(np.float16)
    model.load_state_dict(mapping)
    assert model.head.weight.data is before
    assert before.dtype == np.float64
    assert_array_equal(before, mapping['head.weight'])


def test_one_of_the_names_of_a_shared_param_is_enough(model):
    mapping = full(model)
    for name in ('weight', 'running'):
        mapping[f'shared.{name}'] = mapping.pop(f'layers.1.{name}')
    report = model.load_state_dict(mapping)
    assert report.missing == report.unexpected == report.wrong_shape == []
    assert_array_equal(model.layers[1].weight.data, mapping['shared.weight'])


def test_of_several_names_the_last_counts_whatever_the_order_of_the_mapping(model):
    mapping = full(model)
    # the mapping's order says nothing: the model's does
    mapping = {'shared.weight': np.full((2, 3), 5.0), **mapping}
    model.load_state_dict(mapping)
    assert_array_equal(model.layers[1].weight.data, np.full((2, 3), 5))


def test_batch_counters_are_passed_over(model):
    mapping = full(model) | {'layers.0.num_batches_tracked': np.array(7)}
    report = model.load_state_dict(mapping)
    assert sorted(report.loaded) == sorted(OWN)
    assert report.unexpected == []


def test_what_does_not_fit_is_all_listed_and_changes_nothing(model):
    before = model.state_dict()
    mapping = full(model, 5.0)
    mapping['heads.weight'] = mapping.pop('head.weight')
    mapping['foreign'] = np.ones(3)
    mapping['frozen'] = np.ones(4)
    mapping['kernel'] = np.ones((3, 5, 2, 4))  # not the published layout
    with pytest.raises(InputError) as raised:
        model.load_state_dict(mapping)
    lines = str(raised.value).splitlines()
    assert '  missing: head.weight (near: heads.weight)' in lines
    assert '  unexpected: heads.weight' in lines
    assert '  unexpected: foreign' in lines
    assert '  wrong shape: frozen is (4,), the model has (2,)' in lines
    wrong = '  wrong shape: kernel is (3, 5, 2, 4), the model has (4, 2, 3, 5)'
    assert wrong in lines
    assert not any('missing: frozen' in line for line in lines)
    assert 'strict=False' in lines[-1]
    for name, array in model.state_dict().items():
        assert_array_equal(array, before[name])


def test_lenient_loading_takes_what_fits_and_reports_the_rest(model):
    mapping = full(model, 5.0)
    del mapping['head.weight']
    mapping['foreign'] = np.ones(3)
    mapping['frozen'] = np.ones(4)
    report = model.load_state_dict(mapping, strict=False)
    assert report.missing == ['head.weight']
    assert report.unexpected == ['foreign']
    assert report.wrong_shape == [('frozen', (2,), (4,))]
    assert 'kernel' in report.loaded
    assert 'frozen' not in report.loaded
    assert (model.kernel.data == 5).all()
    assert not (model.head.weight.data == 5).any()
    assert not model.frozen.data.any()


def test_an_empty_mapping_misses_everything(model):
    with pytest.raises(InputError) as raised:
        model.load_state_dict({})
    for name in OWN:
        assert f'missing: {name}' in str(raised.value)


def test_to_the_cpu_is_the_model_itself(model):
    assert model.to('cpu') is model
    with pytest.raises(InputError, match="'tpu'"):
        model.to('tpu')


TRAIN = Run(train=True, seed=3, step=5)


def test_keeping_all_inputs_or_nothing():
    layer, x = Layer(), np.ones((4, 2))
    y, cache = forward_keeping(layer, 'all', x)
    assert recall(layer, cache) is cache
    assert layer.calls == 1
    y2, cache = forward_keeping(layer, 'inputs', x)
    assert isinstance(cache, Inputs)
    assert cache.inputs[0] is x
    assert_array_equal(recall(layer, cache)[1], y)
    assert layer.calls == 3
    y3, cache = forward_keeping(layer, 'none', x)
    assert cache is None
    assert_array_equal(y2, y)
    assert_array_equal(y3, y)
    with pytest.raises(ValueError, match="keep='all'"):
        recall(layer, cache)


def test_recomputation_is_exact_and_moves_no_statistics():
    layer, x = Layer(), np.ones((4, 2))
    y, cache = forward_keeping(layer, 'inputs', x, run=TRAIN)
    running = layer.running.data.copy()
    _, again = recall(layer, cache)
    assert_array_equal(again, y)
    assert_array_equal(layer.running.data, running)
    assert running.any()
