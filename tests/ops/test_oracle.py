"""Each operation and its gradients against PyTorch's, in double precision."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddetr_np.ops import (
    activation,
    attention,
    bilinear,
    boxes,
    conv,
    linear,
    losses,
    ms_deform_attn,
    norm,
    pool,
    position,
)

pytestmark = pytest.mark.oracle


@pytest.fixture(scope='module')
def torch():
    return pytest.importorskip('torch')


@pytest.fixture
def compare(torch, rng):
    """Run both, send one random dy back through both, compare everything."""

    def run(ours, backward, theirs, inputs):
        y, cache = ours(**inputs)[:2]
        dy = rng.standard_normal(y.shape)
        gradients = backward(dy, cache)
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        tensors = {k: torch.tensor(a, requires_grad=True) for k, a in inputs.items()}
        expected = theirs(**tensors)
        expected.backward(torch.tensor(dy))
        assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-12)
        assert len(gradients) == len(inputs)
        for (name, tensor), gradient in zip(tensors.items(), gradients):
            g = tensor.grad.numpy()
            scale = np.abs(g).max()
            assert_allclose(gradient, g, 1e-9, 1e-12 * scale, err_msg=name)

    return run


def normal(rng, **shapes):
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def first(x):
    """Channels last → channels first."""
    return x.permute(0, 3, 1, 2)


def last(x):
    return x.permute(0, 2, 3, 1)


def test_linear(torch, compare, rng):
    F = torch.nn.functional
    inputs = normal(rng, x=(2, 3, 5), W=(4, 5), b=(4,))
    compare(
        linear.linear, linear.linear_backward, lambda x, W, b: F.linear(x, W, b), inputs
    )


@pytest.mark.parametrize('name', ['relu', 'sigmoid'])
def test_elementwise(name, torch, compare, rng):
    x = 3 * rng.standard_normal((4, 5))
    x[0, 0] = 0  # the kink, too
    backward = getattr(activation, f'{name}_backward')
    compare(getattr(activation, name), backward, getattr(torch, name), {'x': x})


def test_softmax(torch, compare, rng):
    compare(
        activation.softmax,
        activation.softmax_backward,
        lambda s: s.softmax(-1),
        normal(rng, s=(2, 3, 7)),
    )


def published_inverse_sigmoid(p, eps=1e-5):
    """Three clamps: of p, of p again, and of 1 − p."""
    p = p.clamp(0, 1)
    return (p.clamp(min=eps) / (1 - p).clamp(min=eps)).log()


def test_inverse_sigmoid(compare, rng):
    held = [-0.5, 0, 3e-6, 1e-5, 0.5, 1 - 3e-6, 1, 1.5]
    p = np.concatenate([held, rng.uniform(-0.1, 1.1, 20)])
    compare(
        activation.inverse_sigmoid,
        activation.inverse_sigmoid_backward,
        published_inverse_sigmoid,
        {'p': p},
    )


@pytest.mark.parametrize('n', [2, 4])
def test_box_from_reference(n, torch, compare, rng):
    def theirs(delta, p_hat):
        inverse = published_inverse_sigmoid(p_hat)
        s = torch.cat([delta[..., :n] + inverse, delta[..., n:]], -1)
        return s.sigmoid()

    inputs = {
        'delta': rng.standard_normal((2, 5, 4)),
        'p_hat': rng.uniform(0, 1, (2, 5, n)),
    }
    compare(
        boxes.box_from_reference, boxes.box_from_reference_backward, theirs, inputs
    )


@pytest.mark.parametrize(
    ('kernel', 'geometry'),
    [
        ((1, 1), {}),
        ((1, 1), {'stride': 2}),
        ((3, 3), {'padding': 1}),
        ((3, 3), {'stride': 2, 'padding': 1}),
        ((3, 3), {'padding': 2, 'dilation': 2}),
        ((7, 7), {'stride': 2, 'padding': 3}),
        ((2, 4), {'stride': 3, 'padding': 2, 'dilation': 2}),
    ],
)
@pytest.mark.parametrize('size', [(9, 12), (10, 11)])
def test_conv2d(kernel, geometry, size, torch, compare, rng):
    F = torch.nn.functional
    compare(
        lambda **inputs: conv.conv2d(**inputs, **geometry),
        conv.conv2d_backward,
        lambda x, W, b: last(F.conv2d(first(x), W.permute(3, 2, 0, 1), b, **geometry)),
        normal(rng, x=(2, *size, 3), W=(*kernel, 3, 4), b=(4,)),
    )


def test_conv_norm_relu(torch, compare, rng):
    F = torch.nn.functional
    weight, bias, mean = rng.standard_normal((3, 4))
    var = rng.uniform(0.5, 2, 4)
    scale, shift = norm.frozen_batch_norm(weight, bias, mean, var)

    def theirs(x, W, residual):
        y = F.conv2d(first(x), W.permute(3, 2, 0, 1), stride=2, padding=1)
        statistics = [torch.tensor(a) for a in (mean, var, weight, bias)]
        return (last(F.batch_norm(y, *statistics)) + residual).relu()

    compare(
        lambda x, W, residual: conv.conv_norm_relu(
            x, W, scale, shift, residual, True, 2, 1
        ),
        conv.conv_norm_relu_backward,
        theirs,
        normal(rng, x=(2, 7, 10, 3), W=(3, 3, 3, 4), residual=(2, 4, 5, 4)),
    )


def test_layer_norm(torch, compare, rng):
    F = torch.nn.functional
    compare(
        norm.layer_norm,
        norm.layer_norm_backward,
        lambda x, weight, bias: F.layer_norm(x, (8,), weight, bias),
        normal(rng, x=(2, 3, 8), weight=(8,), bias=(8,)),
    )


@pytest.mark.parametrize('groups', [1, 2, 4, 8])
def test_group_norm(groups, torch, compare, rng):
    F = torch.nn.functional
    compare(
        lambda **inputs: norm.group_norm(**inputs, groups=groups),
        norm.group_norm_backward,
        lambda x, weight, bias: last(F.group_norm(first(x), groups, weight, bias)),
        normal(rng, x=(2, 3, 5, 8), weight=(8,), bias=(8,)),
    )


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm(train, torch, compare, rng):
    F = torch.nn.functional
    mean, var = rng.standard_normal(6), rng.uniform(0.5, 2, 6)

    def theirs(x, weight, bias):
        statistics = torch.tensor(mean), torch.tensor(var)
        return last(F.batch_norm(first(x), *statistics, weight, bias, train))

    if train:
        ours, backward = norm.batch_norm, norm.batch_norm_backward
    else:
        backward = norm.running_batch_norm_backward

        def ours(**inputs):
            return norm.running_batch_norm(**inputs, mean=mean, var=var)

    compare(ours, backward, theirs, normal(rng, x=(2, 3, 5, 6), weight=(6,), bias=(6,)))


def test_max_pool(torch, compare, rng):
    F = torch.nn.functional
    x = np.maximum(rng.standard_normal((2, 7, 10, 3)), 0)  # many ties, as after ReLU
    compare(
        pool.max_pool,
        pool.max_pool_backward,
        lambda x: last(F.max_pool2d(first(x), 3, 2, 1)),
        {'x': x},
    )


@pytest.mark.parametrize('Nk', [4, 6])
def test_attention(Nk, torch, compare, rng):
    F = torch.nn.functional

    def theirs(q, k, v):
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    compare(
        attention.attention,
        attention.attention_backward,
        theirs,
        normal(rng, q=(2, 4, 3, 5), k=(2, Nk, 3, 5), v=(2, Nk, 3, 5)),
    )


def grid_sample(torch, v, loc, H, W):
    """v (B, H·W, C), loc (B, n, 2) → (B, n, C)."""
    image = v.reshape(len(v), H, W, -1)
    out = torch.nn.functional.grid_sample(
        first(image), 2 * loc[:, None] - 1, 'bilinear', 'zeros', align_corners=False
    )
    return out[:, :, 0].transpose(1, 2)


@pytest.mark.parametrize(('H', 'W'), [(3, 5), (1, 1), (6, 1)])
def test_sample(H, W, torch, compare, rng):
    compare(
        lambda v, loc: bilinear.sample(v, loc, H, W),
        bilinear.sample_backward,
        lambda v, loc: grid_sample(torch, v[None], loc[None], H, W)[0],
        {
            'v': rng.standard_normal((H * W, 4)),
            'loc': rng.uniform(-0.5, 1.5, (50, 2)),
        },
    )


def test_ms_deform_attn(torch, compare, rng):
    shapes = ((3, 5), (2, 4), (1, 1))
    N, Nq, M, L, K, Cv = 2, 7, 3, 3, 4, 5

    def theirs(value, loc, A):
        y = 0
        maps = value.split([H * W for H, W in shapes], 1)
        for l, (H, W) in enumerate(shapes):
            # one picture for each of (N, M)
            v = maps[l].transpose(1, 2).reshape(N * M, H * W, Cv)
            points = loc[:, :, :, l].transpose(1, 2).reshape(N * M, Nq * K, 2)
            read = grid_sample(torch, v, points, H, W).reshape(N, M, Nq, K, Cv)
            y = y + (A[:, :, :, l].transpose(1, 2)[..., None] * read).sum(3)
        return y.transpose(1, 2)

    compare(
        lambda value, loc, A: ms_deform_attn.ms_deform_attn(value, shapes, loc, A),
        ms_deform_attn.ms_deform_attn_backward,
        theirs,
        {
            'value': rng.standard_normal((N, sum(H * W for H, W in shapes), M, Cv)),
            'loc': rng.uniform(-0.3, 1.3, (N, Nq, M, L, K, 2)),
            'A': rng.random((N, Nq, M, L, K)),
        },
    )


@pytest.mark.parametrize('n', [2, 4])
def test_sampling_locations(n, torch, compare, rng):
    shapes = ((3, 5), (2, 4))

    def theirs(p_hat, offset):
        p = p_hat[:, :, None, :, None]
        if n == 2:
            size = torch.tensor(shapes).flip(1)[:, None]
            return p + offset / size
        return p[..., :2] + offset / offset.shape[4] * p[..., 2:] * 0.5

    compare(
        lambda p_hat, offset: ms_deform_attn.sampling_locations(p_hat, offset, shapes),
        ms_deform_attn.sampling_locations_backward,
        theirs,
        {
            'p_hat': rng.random((2, 4, 2, n)),
            'offset': rng.standard_normal((2, 4, 3, 2, 5, 2)),
        },
    )


def test_box_position(torch, compare, rng):
    C = 8

    def theirs(box):
        i = torch.arange(C // 2, dtype=torch.float32)
        wavelengths = 10000 ** (2 * torch.div(i, 2, rounding_mode='floor') / (C // 2))
        angle = (box * 2 * np.pi)[..., None] / wavelengths
        waves = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1)
        return waves.flatten(1)

    compare(
        lambda box: position.box_position(box, C),
        position.box_position_backward,
        theirs,
        {'box': rng.random((3, 4))},
    )


def test_losses_at_the_kinks(torch, compare, rng):
    # PyTorch's own conventions: |0| has slope 0, equal edges share alike
    a = rng.integers(0, 3, (40, 4)).astype(float)
    b = rng.integers(0, 3, (40, 4)).astype(float)
    compare(losses.l1, losses.l1_backward, lambda a, b: (a - b).abs(), {'a': a, 'b': b})
