"""Attention that sums before it projects, against the plain one."""

import contextlib

import numpy as np
import pytest

import ddetr_np
from ddetr_np import backend, threads
from ddetr_np.fast import few_queries
from ddetr_np.testing_model import randomise

SHAPES = [
    ((13, 17), (7, 9), (4, 5)),
    ((40, 50), (1, 1)),
    ((1, 3),),
]


@pytest.fixture
def always(monkeypatch):
    """The twin takes every number of queries."""
    monkeypatch.setattr(few_queries, 'COST', 0)


def arguments(shapes, dtype, Nq=7, N=2, padded=True, box=2, **fields):
    fields = {'C': 32, 'M': 4, 'K': 3, 'ffn': 24, 'width': 2, **fields}
    model = ddetr_np.build_model('multi_scale', L=len(shapes), dtype=dtype, **fields)
    layer = randomise(model).transformer.decoder.layers[0]
    rng = np.random.default_rng(0)
    S = sum(H * W for H, W in shapes)
    z, x = (rng.standard_normal((N, n, 32)).astype(dtype) for n in (Nq, S))
    p_hat = rng.random((N, Nq, len(shapes), box)).astype(dtype) * 1.4 - 0.2
    padding = rng.random((N, S)) < 0.3 if padded else None
    return layer, (z, p_hat, x, shapes, padding)


def passes(layer, inputs, plain=False, back_plain=False):
    """Return y and what goes back from it: dz, dp_hat, dx and W''s gradients."""
    attn = layer.cross_attn
    attn.zero_grad()
    with backend.plain() if plain else contextlib.nullcontext():
        y, cache = attn.forward(*inputs)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    with backend.plain() if back_plain else contextlib.nullcontext():
        back = attn.backward(dy, cache)
    return y, *back, *attn.grad_dict().values()


def assert_near(found, expected, rtol):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b)


@pytest.mark.usefixtures('always')
@pytest.mark.parametrize(('dtype', 'rtol'), [('float64', 1e-12), ('float32', 2e-6)])
@pytest.mark.parametrize('padded', [True, False])
@pytest.mark.parametrize('box', [2, 4])
@pytest.mark.parametrize('M', [4, 1])
@pytest.mark.parametrize('shapes', SHAPES, ids=str)
def test_agrees_with_the_plain_attention(shapes, M, box, padded, dtype, rtol):
    layer, inputs = arguments(shapes, dtype, padded=padded, box=box, M=M)
    for a in inputs[:3]:
        a.flags.writeable = False
    expected = passes(layer, inputs, plain=True, back_plain=True)
    assert_near(passes(layer, inputs), expected, rtol)
    # the caches crossed
    assert_near(passes(layer, inputs, back_plain=True), expected, rtol)
    assert_near(passes(layer, inputs, plain=True), expected, rtol)


@pytest.mark.usefixtures('always')
@pytest.mark.parametrize('size', [1, 3, 7, 10])
def test_tiles_of_any_size_and_strided_tokens(size, monkeypatch):
    monkeypatch.setattr(few_queries, 'ROWS', 4 * size)
    monkeypatch.setattr(few_queries, 'GATHERED', 32 * 36 * size)
    monkeypatch.setattr(few_queries, 'CHANNELS', 3 * size)
    layer, (z, p_hat, x, *rest) = arguments(SHAPES[0], 'float64')
    wide = np.repeat(x, 2, 1)[:, ::2]
    found = passes(layer, (z, p_hat, wide, *rest))
    expected = passes(layer, (z, p_hat, x, *rest), plain=True, back_plain=True)
    assert_near(found, expected, 1e-12)


@pytest.mark.usefixtures('always')
def test_gradients_add_to_those_before():
    layer, inputs = arguments(SHAPES[0], 'float64')
    found = passes(layer, inputs)
    attn = layer.cross_attn
    y, cache = attn.forward(*inputs)
    attn.read_backward(np.zeros(cache.core.A.shape[:3] + (8,)), cache.read)
    assert_near(attn.grad_dict().values(), found[4:], 1e-15)
    attn.backward(np.random.default_rng(1).standard_normal(y.shape), cache)
    twice = attn.grad_dict().values()
    assert_near(twice, [2 * g for g in found[4:]], 1e-12)


@pytest.mark.usefixtures('always')
def test_padded_tokens_may_hold_anything():
    layer, (z, p_hat, x, shapes, padding) = arguments(SHAPES[0], 'float64')
    padding[0, :5] = True
    expected = passes(layer, (z, p_hat, x, shapes, padding))
    x[padding] = np.nan
    found = passes(layer, (z, p_hat, x, shapes, padding))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


@pytest.mark.usefixtures('always')
def test_a_reference_that_is_no_number_spoils_its_own_query_alone():
    layer, (z, p_hat, *rest) = arguments(SHAPES[0], 'float64')
    expected, _ = layer.cross_attn.forward(z, p_hat, *rest)
    p_hat[1, 3] = np.nan
    found, _ = layer.cross_attn.forward(z, p_hat, *rest)
    assert np.isnan(found[1, 3]).all()
    found[1, 3] = expected[1, 3]
    np.testing.assert_array_equal(found, expected)


def test_it_is_for_few_queries():
    shapes = ((40, 50), (20, 25))
    for Nq, expected in (0, False), (2, True), (2000, False):
        layer, inputs = arguments(shapes, 'float32', Nq=Nq)
        y, cache = layer.cross_attn.forward(*inputs)
        assert (cache.core.value is None) == expected
        assert y.shape == inputs[0].shape
        dz, _, dx = layer.cross_attn.backward(y, cache)
        assert dz.shape == y.shape
        assert dx.shape == inputs[2].shape
    layer, (z, p_hat, x, *rest) = arguments(shapes, 'float32', Nq=2)
    half = (a.astype('float16') for a in (z, p_hat, x))
    _, cache = layer.cross_attn.forward(*half, *rest)
    assert cache.core.value is not None


@pytest.mark.usefixtures('always')
@pytest.mark.parametrize('n', [1, 3])
def test_the_same_bits_with_any_number_of_threads(n):
    layer, inputs = arguments(SHAPES[1], 'float32', Nq=40)
    with threads.limit(2):
        expected = passes(layer, inputs)
    with threads.limit(n):
        found = passes(layer, inputs)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
