"""Attention that sums before it projects, against the plain one."""

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
    found = layer.cross_attn.infer(*inputs)
    with backend.plain():
        expected = layer.cross_attn.infer(*inputs)
        full, _ = layer.cross_attn.forward(*inputs)
    np.testing.assert_array_equal(expected, full)
    assert found.dtype == dtype
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected)


@pytest.mark.usefixtures('always')
@pytest.mark.parametrize('size', [1, 3, 7, 10])
def test_tiles_of_any_size_and_strided_tokens(size, monkeypatch):
    monkeypatch.setattr(few_queries, 'ROWS', 4 * size)
    layer, (z, p_hat, x, *rest) = arguments(SHAPES[0], 'float64')
    wide = np.repeat(x, 2, 1)[:, ::2]
    found = layer.cross_attn.infer(z, p_hat, wide, *rest)
    with backend.plain():
        expected = layer.cross_attn.infer(z, p_hat, x, *rest)
    np.testing.assert_allclose(found, expected, 1e-10, 1e-12)


@pytest.mark.usefixtures('always')
def test_padded_tokens_may_hold_anything():
    layer, (z, p_hat, x, shapes, padding) = arguments(SHAPES[0], 'float64')
    padding[0, :5] = True
    expected = layer.cross_attn.infer(z, p_hat, x, shapes, padding)
    x[padding] = np.nan
    found = layer.cross_attn.infer(z, p_hat, x, shapes, padding)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).all()


@pytest.mark.usefixtures('always')
def test_a_reference_that_is_no_number_spoils_its_own_query_alone():
    layer, (z, p_hat, *rest) = arguments(SHAPES[0], 'float64')
    expected = layer.cross_attn.infer(z, p_hat, *rest)
    p_hat[1, 3] = np.nan
    found = layer.cross_attn.infer(z, p_hat, *rest)
    assert np.isnan(found[1, 3]).all()
    found[1, 3] = expected[1, 3]
    np.testing.assert_array_equal(found, expected)


def test_it_is_for_few_queries(monkeypatch):
    calls = []
    spy = few_queries.add_product
    monkeypatch.setattr(
        few_queries, 'add_product', lambda *a: calls.append(1) or spy(*a)
    )
    shapes = ((40, 50), (20, 25))
    for Nq, expected in (0, False), (2, True), (2000, False):
        layer, inputs = arguments(shapes, 'float32', Nq=Nq)
        calls.clear()
        found = layer.cross_attn.infer(*inputs)
        assert bool(calls) == expected
        assert found.shape == inputs[0].shape
    layer, (z, p_hat, x, *rest) = arguments(shapes, 'float32', Nq=2)
    calls.clear()
    layer.cross_attn.infer(*(a.astype('float16') for a in (z, p_hat, x)), *rest)
    assert not calls


def test_a_decoder_layer_asks_by_it_when_nothing_will_go_back(monkeypatch):
    layer, (z, p_hat, x, shapes, padding) = arguments(SHAPES[1], 'float64', Nq=2)
    inputs = z, z[:, ::-1], p_hat, x, shapes, padding
    key = 'ms_deform_attn.infer', 'numpy'
    real, calls = backend.twins()[key], []
    monkeypatch.setitem(
        backend.twins(), key, lambda *a: calls.append(len(a)) or real(*a)
    )
    full, cache = layer.forward(*inputs)
    assert not calls
    assert cache.cross_attn.value is not None
    np.testing.assert_allclose(layer.infer(*inputs), full, 1e-10, 1e-12)
    assert calls == [6]


@pytest.mark.usefixtures('always')
@pytest.mark.parametrize('n', [1, 3])
def test_the_same_bits_with_any_number_of_threads(n):
    layer, inputs = arguments(SHAPES[1], 'float32', Nq=40)
    with threads.limit(2):
        expected = layer.cross_attn.infer(*inputs)
    with threads.limit(n):
        np.testing.assert_array_equal(layer.cross_attn.infer(*inputs), expected)
