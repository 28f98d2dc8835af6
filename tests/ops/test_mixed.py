"""Mixed precision: what is half, what is single, and how far it is from exact.

By NumPy, whose half-precision products sum in single precision as tensor cores do; on
a GPU by the tests of `tests/device`.
"""

import contextlib

import numpy as np
import pytest

from ddetr_np import Criterion, draw_scene, load_model, normalise, ops, pad_batch
from ddetr_np.backend import get_xp, is_mixed, mixed, plain
from ddetr_np.data.loader import Batch
from ddetr_np.train.team import add_gradient

RNG = np.random.default_rng(4)
SHAPES = ((5, 6), (3, 2))


def draw(*shape):
    return RNG.standard_normal(shape).astype('float32')


def core_inputs():
    value, loc = draw(2, 36, 2, 8), RNG.random((2, 5, 2, 2, 3, 2), 'float32')
    return value, SHAPES, loc, RNG.random((2, 5, 2, 2, 3), 'float32') / 6


MAPS = draw(2, 7, 8, 6)
HALF = {  # all of their arrays become half
    'linear': (ops.linear, (draw(3, 5, 12), draw(16, 12), draw(16))),
    'conv2d': (ops.conv, (MAPS, draw(3, 3, 6, 9), draw(9), 2, 1)),
    'conv_norm_relu': (
        ops.conv,
        (MAPS, draw(3, 3, 6, 8), draw(8), draw(8), draw(2, 7, 8, 8), True, 1, 1),
    ),
    'attention': (
        ops.attention, (draw(2, 7, 2, 8), draw(2, 9, 2, 8), draw(2, 9, 2, 8))
    ),
    'feed_forward': (
        ops.feed_forward, (draw(2, 5, 8), draw(24, 8), draw(24), draw(8, 24), draw(8))
    ),
    'ms_deform_attn': (ops.ms_deform_attn, core_inputs()),
}


def convert(args, dtype, places=None):
    """The arrays in another precision; of the core's, loc and A in that of places."""
    return [
        a.astype(places if places and i > 1 else dtype)
        if isinstance(a, np.ndarray)
        else a
        for i, a in enumerate(args)
    ]


def arrays(thing):
    if isinstance(thing, tuple):
        return [a for part in thing for a in arrays(part)]
    return [thing] if isinstance(thing, np.ndarray) else []


def distance(a, b):
    return np.linalg.norm(a.astype(float) - b) / np.linalg.norm(b)


@pytest.mark.parametrize('name', HALF)
def test_half_values_and_products(name):
    module, args = HALF[name]
    forward = getattr(module, name)
    backward = getattr(module, f'{name}_backward')
    places = 'float32' if name == 'ms_deform_attn' else None
    before = [a.copy() for a in arrays(tuple(args))]
    with mixed():
        y, cache = forward(*args)
        dy = RNG.standard_normal(y.shape).astype('float32')
        gradients = backward(dy, cache)
    assert y.dtype == 'float16'
    for a, b in zip(arrays(tuple(args)), before):
        np.testing.assert_array_equal(a, b)
    # what it is to be: in double precision, from the factors as they were rounded
    exact = convert(convert(args, 'float16', places), 'float64')
    expected, cache = forward.plain(*exact)
    wanted = backward.plain(dy.astype('float16').astype('float64'), cache)
    assert distance(y, expected) < 1e-3
    for got, want in zip(gradients, wanted, strict=True):
        if want is not None:
            assert distance(got, want) < 3e-3
            assert got.dtype in ('float16', 'float32')


def test_maps_to_few_channels_are_single():
    """Reference points and boxes are made by them."""
    x, W, b = draw(3, 12).astype('float16'), draw(4, 12), draw(4)
    with mixed():
        y, cache = ops.linear.linear(x, W, b)
        dx, dW, db = ops.linear.linear_backward(y, cache)
    expected, cache = ops.linear.linear.plain(x.astype('float32'), W, b)
    np.testing.assert_array_equal(y, expected)
    for got, want in zip((dx, dW, db), ops.linear.linear_backward.plain(y, cache)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('name', ['layer_norm', 'group_norm', 'batch_norm'])
def test_norms_are_single_inside(name):
    """Means of 1,000, spreads of 4: squares and sums are beyond half precision."""
    forward, backward = (getattr(ops.norm, n) for n in (name, f'{name}_backward'))
    x = (1000 + 4 * draw(2, 9, 10, 8)).astype('float16')
    weight, bias, groups = draw(8), draw(8), (2,) if name == 'group_norm' else ()
    dy = draw(*x.shape).astype('float16')
    with mixed():
        y, cache, *statistics = forward(x, weight, bias, *groups)
        dx, dweight, dbias = backward(dy, cache)
    wide = x.astype('float32')
    expected, wanted, *stats = forward.plain(wide, weight, bias, *groups)
    np.testing.assert_array_equal(y, expected.astype('float16'))
    for a, b in zip((*arrays(cache), *statistics), (*arrays(wanted), *stats)):
        assert a.dtype == 'float32'
        np.testing.assert_array_equal(a, b)
    gradients = backward.plain(dy.astype('float32'), wanted)
    np.testing.assert_array_equal(dx, gradients[0].astype('float16'))
    for a, b in zip((dweight, dbias), gradients[1:]):
        np.testing.assert_array_equal(a, b)


def test_softmax_and_places_are_single():
    s, offset = draw(4, 9).astype('float16'), draw(1, 5, 2, 2, 3, 2).astype('float16')
    p_hat = RNG.random((1, 5, 2, 2), 'float32')
    with mixed():
        A, _ = ops.activation.softmax(s)
        loc, _ = ops.ms_deform_attn.sampling_locations(p_hat, offset, SHAPES)
    expected, _ = ops.activation.softmax.plain(s.astype('float32'))
    np.testing.assert_array_equal(A, expected)
    expected, _ = ops.ms_deform_attn.sampling_locations.plain(
        p_hat, offset.astype('float32'), SHAPES
    )
    np.testing.assert_array_equal(loc, expected)


def test_the_block():
    """It can be lifted inside, and ends with an error too."""
    args = HALF['linear'][1]
    assert not is_mixed()
    with contextlib.suppress(KeyError), mixed():
        with mixed(False):
            assert ops.linear.linear(*args)[0].dtype == 'float32'
        assert ops.linear.linear(*args)[0].dtype == 'float16'
        with plain():
            assert ops.linear.linear(*args)[0].dtype == 'float16'
        raise KeyError
    assert ops.linear.linear(*args)[0].dtype == 'float32'


def test_a_detector():
    """Trained weights: the loss, the boxes and all gradients together."""
    scene = draw_scene(3, 64, 64)
    images, mask = pad_batch([normalise(scene.picture)])
    x0, y0, x1, y1 = scene.boxes.T / 64
    boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)
    target = {'labels': scene.labels, 'boxes': boxes}
    batch = Batch(images, mask, [target], [3])

    def run(scale):
        model = load_model('scenes')
        total, _ = add_gradient(
            model, Criterion(model.config), batch, len(boxes), 0, scale
        )
        out, _ = model.forward(images, mask, keep='none')
        assert out.logits.dtype == out.boxes.dtype == 'float32'
        gradient = np.concatenate([p.grad.ravel() for p in model.params()])
        assert gradient.dtype == 'float32'
        return total, out, gradient / scale

    expected = run(1.0)
    with mixed():
        got = run(2.0**12)
    assert get_xp(got[2]) is np
    assert got[0] == pytest.approx(expected[0], rel=2e-3)
    # proposals of nearly equal scores may change places
    apart = abs(got[1].boxes[-1, 0, :, None] - expected[1].boxes[-1, 0]).max(-1)
    assert np.quantile(apart.min(0), 0.9) < 2e-3
    assert distance(got[2], expected[2]) < 0.05
