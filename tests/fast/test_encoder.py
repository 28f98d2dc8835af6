"""The encoder's quick inference against its plain one."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np import backend, threads
from ddetr_np.nn.multi_scale import level_masks
from ddetr_np.nn.reference_points import encoder_reference_points, valid_ratios
from ddetr_np.testing_model import randomise

SHAPES = [
    ((13, 17), (7, 9), (4, 5)),
    ((40, 50), (1, 1)),
    ((1, 3),),
    ((61, 47),),  # more tokens than a tile has
]


def arguments(shapes, dtype, N=2, padded=True, **fields):
    fields = {'C': 32, 'M': 4, 'K': 3, 'ffn': 24, 'width': 2, **fields}
    model = ddetr_np.build_model('multi_scale', L=len(shapes), dtype=dtype, **fields)
    encoder = randomise(model).transformer.encoder
    rng = np.random.default_rng(0)
    H, W = shapes[0]
    mask = np.zeros((N, H, W), bool)
    if padded:
        mask[-1, (H + 1) // 2 :] = mask[-1, :, (W + 1) // 2 :] = True
    masks = level_masks(mask, shapes)
    p_hat = encoder_reference_points(shapes, valid_ratios(masks, dtype))
    S = sum(h * w for h, w in shapes)
    x, pos = (rng.standard_normal((N, S, 32)).astype(dtype) for _ in 'xp')
    padding = np.concatenate([m.reshape(N, -1) for m in masks], 1)
    return encoder, (x, pos, p_hat, shapes, padding if padded else None)


@pytest.mark.parametrize(('dtype', 'rtol'), [('float64', 1e-12), ('float32', 1e-5)])
@pytest.mark.parametrize('padded', [True, False])
@pytest.mark.parametrize('shapes', SHAPES, ids=str)
def test_agrees_with_the_plain_encoder(shapes, padded, dtype, rtol):
    encoder, inputs = arguments(shapes, dtype, padded=padded)
    for a in inputs[:3]:
        a.flags.writeable = False
    found = encoder.infer(*inputs)
    with backend.plain():
        expected = encoder.infer(*inputs)
        full, _ = encoder.forward(*inputs)
    np.testing.assert_array_equal(expected, full)
    assert found.dtype == dtype
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected)


def test_the_twin_is_what_runs(monkeypatch):
    encoder, inputs = arguments(SHAPES[0], 'float32')
    monkeypatch.setitem(backend.twins(), ('encoder.infer', 'numpy'), lambda *a, **k: 1)
    assert encoder.infer(*inputs) == 1
    with backend.plain():
        assert encoder.infer(*inputs).shape == inputs[0].shape


def test_padded_tokens_may_hold_anything():
    encoder, (x, *rest) = arguments(SHAPES[0], 'float64')
    expected = encoder.infer(x, *rest)
    padding = rest[-1]
    x = x.copy()
    x[padding] = np.nan
    found = encoder.infer(x, *rest)
    np.testing.assert_array_equal(found[~padding], expected[~padding])


@pytest.mark.parametrize('n', [1, 3])
def test_the_same_bits_with_any_number_of_threads(n):
    encoder, inputs = arguments(((61, 47), (9, 7)), 'float32')
    with threads.limit(2):
        expected = encoder.infer(*inputs)
    with threads.limit(n):
        np.testing.assert_array_equal(encoder.infer(*inputs), expected)
