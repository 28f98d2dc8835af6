"""Two 1×1 convolutions whose outputs are added, as one product and as two."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np import backend, ops, threads
from ddetr_np.testing_model import randomise


def arguments(rng, dtype, N, H, W, I, I2, O, stride):
    def new(*shape):
        return rng.standard_normal(shape).astype(dtype)

    # the last row and column of the shortcut's map may be missing
    other = new(N, H * stride - (stride - 1), W * stride, I2)
    shortcut = other, new(1, 1, I2, O), new(O), new(O), stride
    return new(N, H, W, I), new(1, 1, I, O), new(O), new(O), shortcut


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize(
    ('N', 'H', 'W', 'I', 'I2', 'O', 'stride'),
    [(2, 7, 9, 8, 6, 12, 2), (1, 1, 1, 3, 2, 5, 1), (3, 40, 53, 16, 16, 64, 1),
     (1, 25, 34, 32, 64, 512, 2), (1, 5, 4, 1, 1, 1, 3)],
)  # fmt: skip
def test_agrees_with_the_plain_operation(N, H, W, I, I2, O, stride, dtype, rng):
    inputs = arguments(rng, dtype, N, H, W, I, I2, O, stride)
    found = ops.conv.joined_conv_norm_relu(*inputs)
    with backend.plain():
        expected = ops.conv.joined_conv_norm_relu(*inputs)
    assert found.dtype == dtype
    rtol = 1e-5 if dtype == 'float32' else 1e-13
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected)
    assert (found >= 0).all()


def test_strided_and_other_arrays(rng):
    x, W, scale, shift, (x2, W2, *rest) = arguments(
        rng, 'float64', 2, 6, 5, 4, 3, 8, 2
    )
    expected = ops.conv.joined_conv_norm_relu(x, W, scale, shift, (x2, W2, *rest))
    x, x2 = (np.repeat(a, 2, 3)[..., ::2] for a in (x, x2))
    W = np.asfortranarray(W)
    found = ops.conv.joined_conv_norm_relu(x, W, scale, shift, (x2, W2, *rest))
    np.testing.assert_allclose(found, expected, 1e-12, 1e-13)
    empty = ops.conv.joined_conv_norm_relu(
        x[:0], W, scale, shift, (x2[:0], W2, *rest)
    )
    assert empty.shape == (0, *expected.shape[1:])


@pytest.mark.parametrize('n', [1, 3])
def test_the_same_bits_with_any_number_of_threads(n, rng):
    inputs = arguments(rng, 'float32', 1, 25, 34, 32, 64, 512, 2)
    with threads.limit(2):
        expected = ops.conv.joined_conv_norm_relu(*inputs)
    with threads.limit(n):
        found = ops.conv.joined_conv_norm_relu(*inputs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ('backbone', 'fields'),
    [
        ('resnet50', {}),
        ('resnet50', {'frozen_norm': False}),
        ('resnet50', {'dilation': True}),
        ('resnet18', {}),
    ],
)
def test_a_backbone_joins_what_ends_its_stages(backbone, fields, tiny, monkeypatch):
    fields = {**tiny, 'dtype': 'float64', 'backbone': backbone, **fields}
    model = randomise(ddetr_np.build_model('multi_scale', **fields))
    body = model.backbone[0].body
    key = 'conv.joined_conv_norm_relu', 'numpy'
    real, calls = backend.twins()[key], []
    monkeypatch.setitem(backend.twins(), key, lambda *a: calls.append(1) or real(*a))
    x = np.random.default_rng(0).standard_normal((1, 64, 96, 3))
    found, _ = body.forward(x, 'none')
    assert len(calls) == (4 if backbone == 'resnet50' else 0)
    with backend.plain():
        expected, _ = body.forward(x, 'none')
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-8, 1e-9 * abs(b).max())
