import ast
import inspect
import math
import textwrap

import numpy as np
import pytest

from ddetr_np import backend, build_model, ops
from ddetr_np.analysis.complexity import COSTS, counting
from ddetr_np.analysis.measure import measure, part_of
from ddetr_np.analysis.watch import named_modules, watch
from ddetr_np.module import EVAL, Module
from ddetr_np.nn.init import Init
from ddetr_np.nn.layers import Conv2d, Linear

INIT = Init(0, 'float64')


class Pair(Module):
    """A convolution and a linear map, which is used twice."""

    def __init__(self):
        self.conv = Conv2d(INIT.normal((3, 3, 2, 5)), None, stride=2, padding=1)
        self.linear = Linear(*INIT.linear(7, 5))
        self._again = self.linear  # another road, no other name
        self._unnamed = [Linear(*INIT.linear(5, 7))]

    def forward(self, x, run=EVAL):
        y, conv = self.conv.forward(x)
        y, linear = self.linear.forward(y)
        y, unnamed = self._unnamed[0].forward(y)
        y, again = self.linear.forward(y)
        return y, (conv, linear, unnamed, again)

    def backward(self, dy, cache):
        conv, linear, unnamed, again = cache
        dy = self.linear.backward(dy, again)
        dy = self._unnamed[0].backward(dy, unnamed)
        dy = self.linear.backward(dy, linear)
        return self.conv.backward(dy, conv, need_dx=False)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 9, 12, 2))


def test_modules_have_their_published_names_once():
    pair = Pair()
    assert [n for n, _ in named_modules(pair)] == ['', 'conv', 'linear', '(Linear)']
    names = [n for n, _ in named_modules(build_model('refine', width=4, C=16, M=2))]
    assert len(set(names)) == len(names)
    assert 'backbone.0.body.layer3.5' in names
    assert 'backbone.0.body.(Stem)' in names
    for place in ('(AddNorm)', '(AddNorm 2)', '(AddNorm 3)'):
        assert f'transformer.decoder.layers.5.{place}' in names
    # shared by the decoder and the detector: the first of its names, as for Params
    assert 'transformer.decoder.bbox_embed.5.layers.2' in names
    assert not any(n.startswith('bbox_embed') for n in names)


def test_products_are_counted_by_hand(x):
    pair = Pair()
    pixels = 2 * 5 * 6  # of 9 × 12 with stride 2
    linear, conv = pixels * 5 * 7, pixels * 9 * 2 * 5
    with counting(pair) as count:
        y, cache = pair.forward(x)
        assert count.macs() == conv + 3 * linear
        assert count.macs('conv') == conv
        assert count.macs('linear', 'forward') == 2 * linear
        assert count.macs('linear', 'backward') == 0
        pair.backward(np.ones_like(y), cache)
    assert count.macs('linear', 'backward') == 4 * linear  # dx and dW of two calls
    assert count.macs('(Linear)', 'backward') == 2 * linear
    assert count.macs('conv', 'backward') == conv  # dW alone
    assert count.macs() == 2 * conv + 9 * linear
    assert count.shapes('conv', 'forward') == {(pixels, 18, 5): 1}
    assert count.shapes('conv', 'backward') == {(18, pixels, 5): 1}
    assert count.shapes('linear', 'forward') == {(pixels, 5, 7): 2}
    assert count.sampled() == 0


def test_counting_changes_no_result_and_ends(x):
    pair = Pair()
    before = pair.forward(x)[0]
    with counting(pair) as count:
        during = pair.forward(x)[0]
    counted = count.macs()
    assert 'forward' not in vars(pair.linear)
    after = pair.forward(x)[0]
    np.testing.assert_array_equal(before, during)
    np.testing.assert_array_equal(before, after)
    assert count.macs() == counted


def test_another_model_is_not_counted(x):
    pair, other = Pair(), Pair()
    with counting(pair) as count:
        other.forward(x)
    assert count.macs() == 0


def encoder_layer(S, C, M, L, K, ffn):
    """A.1 of one encoder layer: products, and four reads of Cv channels a sample."""
    return S * (2 * C**2 + 3 * M * L * K * C + 2 * C * ffn), 4 * S * L * K * C


def test_the_encoder_costs_what_the_formula_says(tiny):
    model = build_model('multi_scale', **{**tiny, 'C': 32, 'M': 4, 'ffn': 24})
    images = np.zeros((2, 70, 100, 3))
    with counting(model) as count:
        _, cache = model.forward(images, keep='none')
    S = 2 * sum(H * W for H, W in cache.shapes)
    layer = encoder_layer(S, 32, 4, 4, tiny['K'], 24)
    for i in range(tiny['encoder_layers']):
        name = f'transformer.encoder.layers.{i}'
        assert (count.macs(name), count.sampled(name)) == layer
    assert count.macs('transformer.encoder') == tiny['encoder_layers'] * layer[0]
    parts = 'backbone.0.body', '(MultiScale)', 'transformer.encoder'
    parts += 'transformer.decoder', 'transformer.reference_points'
    assert count.macs() == sum(map(count.macs, parts))


@pytest.mark.parametrize('variant', ['single_scale_dc5', 'two_stage'])
def test_a_training_pass_costs_three_times_and_layers_again(variant, tiny):
    model = build_model(variant, **tiny)
    images = np.random.default_rng(0).standard_normal((1, 80, 60, 3))
    with counting(model) as inference:
        model.forward(images, keep='none')
    with counting(model) as training:
        out, cache = model.forward(images, train=True, keep='inputs')
        zeros = type(out)(*(None if a is None else 0 * a for a in out))
        model.backward(zeros, cache)
    assert training.macs(kind='forward') > inference.macs()  # layers computed again
    once = inference.macs('(MultiScale)')
    assert training.macs('(MultiScale)', 'forward') == once
    assert training.macs('(MultiScale)', 'backward') == 2 * once


def test_the_decoder_s_attention_is_counted_head_by_head(tiny):
    model = build_model('multi_scale', **tiny)
    with counting(model) as count:
        out, cache = model.forward(np.zeros((1, 40, 40, 3)))
        model.backward(out, cache)
    name = 'transformer.decoder.layers.0.self_attn'
    Nq, C, M = tiny['Nq'], tiny['C'], tiny['M']
    scores, linears = Nq * Nq * C, 4 * Nq * C * C
    assert count.macs(name, 'forward') == linears + 2 * scores
    assert count.macs(name, 'backward') == 2 * linears + 4 * scores
    assert count.shapes(name, 'forward')[Nq, C // M, Nq] == M


def test_watching_ends_with_an_error_too(x):
    pair = Pair()

    def around(name, method, call, *args, **kwargs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch(pair, around):
        pair.forward(x)
    assert pair.forward(x)[0].shape == (2, 5, 6, 7)


def test_watching_within_watching(x):
    pair, seen = Pair(), []

    def around(which):
        def call_it(name, method, call, *args, **kwargs):
            seen.append((which, name))
            return call(*args, **kwargs)

        return call_it

    with watch(pair, around('outer')):
        with watch(pair, around('inner')):
            pair.linear.forward(np.ones((1, 5)))
        pair.linear.forward(np.ones((1, 5)))
    assert seen == [('inner', 'linear'), ('outer', 'linear'), ('outer', 'linear')]


@pytest.mark.parametrize('variant', ['multi_scale', 'refine', 'two_stage'])
def test_parts_add_up_to_the_whole(variant, tiny):
    model = build_model(variant, **tiny)
    found = measure(model, np.zeros((1, 64, 80, 3), 'float32'))
    whole = found.modules['']
    for figure in ('macs', 'sampled', 'params', 'frozen'):
        assert sum(getattr(c, figure) for c in found.parts.values()) == getattr(
            whole, figure
        )
    assert whole.params == sum(p.data.size for p in model.params())
    assert max(c.peak for c in found.parts.values()) == whole.peak
    assert bool(found.parts['first stage'].macs) == (variant == 'two_stage')


def test_heads_belong_to_the_decoder_or_to_the_first_stage():
    assert part_of('class_embed.2', 3) == 'heads'
    assert part_of('transformer.decoder.bbox_embed.2.layers.0', 3) == 'heads'
    assert part_of('transformer.decoder.bbox_embed.3.layers.0', 3) == 'first stage'
    assert part_of('transformer.decoder.layers.0.linear1.weight', 3) == 'decoder'
    assert part_of('transformer.level_embed', 3) == 'encoder'
    assert part_of('', 3) is None


def test_bytes_and_peak_of_one_linear_map(tiny):
    model = build_model('multi_scale', **tiny)
    with backend.plain():  # the encoder's twin goes through its layers by itself
        found = measure(model, np.zeros((1, 64, 80, 3), 'float32'))
    Nq, C = tiny['Nq'], tiny['C']
    # (Nq, C) in, (Nq, 2) out, weights (2, C) and (2,), float32; one call
    cost = found.modules['transformer.reference_points']
    assert cost.bytes == 4 * (Nq * C + Nq * 2 + 2 * C + 2)
    assert cost.params == 2 * C + 2
    # each is at work within the next: what the pass holds can only be more
    encoder = found.modules['transformer.encoder'].peak
    layer = found.modules['transformer.encoder.layers.0'].peak
    assert 0 < layer <= encoder <= found.modules[''].peak
    # the value of one layer's attention, at least: S tokens of C channels
    assert layer > 4 * C * (8 * 10 + 4 * 5 + 2 * 3 + 1 * 2)


@pytest.mark.slow
def test_the_published_model_at_one_size():
    """Of it the backbone 70 G, 3 × 3 kernels 32, projections 4, encoder 81."""
    model = build_model('multi_scale')
    with counting(model) as count:
        model.forward(np.zeros((1, 800, 1066, 3), 'float32'), keep='none')
    giga = {
        name: count.macs(name) / 1e9
        for name in ('backbone.0.body', '(MultiScale)', 'transformer.encoder')
    }
    assert giga['transformer.encoder'] == pytest.approx(81, abs=0.5)
    assert giga['backbone.0.body'] == pytest.approx(70, abs=0.5)
    assert giga['(MultiScale)'] == pytest.approx(4, abs=0.5)
    assert count.macs('transformer.decoder') / 1e9 == pytest.approx(9, abs=0.5)
    assert count.macs() / 1e9 == pytest.approx(164, abs=1)
    three = {9 * channels for channels in (64, 128, 256, 512)}
    kernels = sum(
        math.prod(shape) * times
        for shape, times in count.shapes('backbone.0.body').items()
        if shape[1] in three
    )
    assert kernels / 1e9 == pytest.approx(32, abs=0.5)


def test_a_count_is_made_where_operations_are_plain(x):
    pair = Pair()
    with backend.plain(), counting(pair) as count:
        pair.forward(x)
    assert count.macs('linear') == 2 * 2 * 5 * 6 * 5 * 7


COUNTED = {operation.__name__ for operation in COSTS}
PRODUCTS = {'matmul', 'tensordot', 'einsum', 'dot'}


def multiplies(operation):
    """Whether the operation's own lines multiply matrices, unseen by a counter.

    They do so too where they call the plain one of what is counted.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(operation.plain)))
    for node in ast.walk(tree):
        if isinstance(node, ast.MatMult):
            return True
        if isinstance(node, ast.Attribute):
            whose = getattr(node.value, 'id', None)
            if node.attr in PRODUCTS or (node.attr == 'plain' and whose in COUNTED):
                return True
    return False


def test_no_operation_multiplies_uncounted():
    found = {
        operation
        for room in ops.__all__
        for operation in vars(getattr(ops, room)).values()
        if hasattr(operation, 'plain') and multiplies(operation)
    }
    # Σ a², by a product of a vector with itself
    found.discard(ops.update.sum_of_squares)
    # a tool: what it multiplies is counted where it is called
    found.discard(ops.product.matmul)
    samples = {o for o in COSTS if o.__name__.startswith('ms_deform_attn')}
    assert found == set(COSTS) - samples
