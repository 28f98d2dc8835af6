"""Shapes that do not belong together, masks that are none: twins do as the plain do."""

import numpy as np
import pytest

from ddetr_np import Config, backend
from ddetr_np.nn.encoder import Encoder
from ddetr_np.nn.init import Init
from ddetr_np.nn.ms_deform_attn import MSDeformAttn
from ddetr_np.ops import (
    activation,
    add_norm,
    attention,
    conv,
    feed_forward,
    linear,
    norm,
    pool,
    update,
)
from ddetr_np.ops import ms_deform_attn as core


def some(*shape, dtype='float32'):
    rng = np.random.default_rng(len(shape))
    return rng.standard_normal(shape).astype(dtype)


def outcome(function, *args):
    """What a call gives: the kind of error, or a flat list of arrays."""
    try:
        found = function(*args)
    except Exception as error:
        return type(error)

    def arrays(thing):
        if isinstance(thing, np.ndarray):
            return [thing]
        if isinstance(thing, (tuple, list)):
            return [a for part in thing for a in arrays(part)]
        return []

    return arrays(found)


def agree(function, make):
    """The twin's outcome beside the plain operation's, each on arrays of its own."""
    got = outcome(function, *make())
    with backend.plain():
        expected = outcome(function, *make())
    if isinstance(expected, type):
        assert got is expected
        return
    assert not isinstance(got, type), got
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, 1e-5, 1e-5 * max(1, abs(b).max(initial=0)))


def cache_of(function, *args):
    return function(*args)[1]


W8, b8 = some(8, 8), some(8)
x48 = some(4, 8)
image, kernel = some(2, 6, 5, 8), some(3, 3, 8, 8)
point = some(1, 1, 8, 8)
LEVELS = ((4, 5), (2, 3))
QUERIES = 7


def sampled(N=2, Nq=QUERIES, Cv=8):
    return some(N, Nq, 2, Cv)


def core_cache():
    loc = np.random.default_rng(0).random((2, QUERIES, 2, 2, 3, 2), 'float32')
    return cache_of(
        core.ms_deform_attn, some(2, 26, 2, 8), LEVELS, loc, some(2, QUERIES, 2, 2, 3)
    )


def step(n):
    state = [some(4, 8), some(n, 8), np.zeros((4, 8), 'f4'), np.zeros((4, 8), 'f4')]
    return *state, 0.1, 0.9, 0.99, 1e-8, 0.1, 1


CASES = {
    'relu, less': (activation.relu_backward, lambda: (some(2, 2, 8), x48)),
    'relu, repeated': (activation.relu_backward, lambda: (x48, some(1, 8))),
    'softmax': (activation.softmax_backward, lambda: (some(2, 2, 8), x48)),
    'add_norm, forward': (
        add_norm.add_norm, lambda: (x48, some(2, 2, 8), b8, b8)
    ),
    'add_norm': (
        add_norm.add_norm_backward,
        lambda: (some(3, 8), cache_of(add_norm.add_norm, x48, x48, b8, b8)),
    ),
    'layer norm': (
        norm.layer_norm_backward,
        lambda: (some(2, 2, 8), cache_of(norm.layer_norm, x48, b8, b8)),
    ),
    'group norm': (
        norm.group_norm_backward,
        lambda: (some(2, 5, 6, 8), cache_of(norm.group_norm, image, b8, b8, 4)),
    ),
    'batch norm': (
        norm.batch_norm_backward,
        lambda: (some(2, 5, 6, 8), cache_of(norm.batch_norm, image, b8, b8)),
    ),
    'linear': (
        linear.linear_backward,
        lambda: (some(5, 8), cache_of(linear.linear, x48, W8, b8)),
    ),
    'feed_forward': (
        feed_forward.feed_forward_backward,
        lambda: (
            some(5, 8), cache_of(feed_forward.feed_forward, x48, W8, b8, W8, b8)
        ),
    ),
    'attention, pictures': (
        attention.attention, lambda: (sampled(), sampled(3), sampled(3))
    ),
    'attention, heads': (
        attention.attention, lambda: (sampled(), some(2, 7, 3, 8), some(2, 7, 3, 8))
    ),
    'attention, values': (
        attention.attention, lambda: (sampled(), sampled(), sampled(Nq=9))
    ),
    'conv, taller': (
        conv.conv2d_backward,
        lambda: (some(2, 7, 5, 8), cache_of(conv.conv2d, image, kernel, None, 1, 1)),
    ),
    'conv, no output': (conv.conv2d, lambda: (some(1, 2, 2, 8), kernel, None)),
    'conv, no output of a norm': (
        conv.conv_norm_relu, lambda: (some(1, 2, 2, 8), kernel, b8, b8)
    ),
    'pool, no output': (pool.max_pool, lambda: (some(1, 2, 2, 8), 3, 1, 0)),
    'residual, taller': (
        conv.conv_norm_relu,
        lambda: (image, kernel, b8, b8, some(2, 7, 5, 8), True, 1, 1),
    ),
    'residual, more': (
        conv.conv_norm_relu,
        lambda: (image, kernel, b8, b8, some(3, 6, 5, 8), True, 1, 1),
    ),
    'shift': (
        conv.conv_norm_relu, lambda: (image, kernel, b8, some(9), None, True, 1, 1)
    ),
    'joined, taller': (
        conv.joined_conv_norm_relu,
        lambda: (image, point, b8, b8, (some(2, 14, 10, 8), point, b8, b8, 2)),
    ),
    'joined, a larger kernel': (
        conv.joined_conv_norm_relu,
        lambda: (image, kernel, b8, b8, (image, point, b8, b8, 1)),
    ),
    'core, more queries': (
        core.ms_deform_attn_backward, lambda: (sampled(Nq=9), core_cache())
    ),
    'core, more pictures': (
        core.ms_deform_attn_backward, lambda: (sampled(3), core_cache())
    ),
    'core, one channel': (
        core.ms_deform_attn_backward, lambda: (sampled(Cv=1), core_cache())
    ),
    'core, an empty level': (
        core.ms_deform_attn,
        lambda: (
            some(1, 4, 2, 8), ((2, 2), (0, 3)),
            np.full((1, 3, 2, 2, 1, 2), 0.4, 'f4'), some(1, 3, 2, 2, 1),
        ),
    ),
    'AdamW': (update.adamw_update, lambda: step(5)),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_twins_do_as_the_plain_operations(name):
    agree(*CASES[name])


def attn():
    return MSDeformAttn(Config(C=32, M=4, L=1, K=2), Init(0))


@pytest.mark.parametrize('shapes', [[(3000, 3000)], [(4, 4)], [(2, 4)]])
def test_few_queries_of_other_maps(shapes):
    """Tokens that are not there would be read, and written to on the way back."""
    inputs = some(1, 1, 32), np.full((1, 1, 1, 2), 0.7, 'f4'), some(1, 10, 32)
    agree(attn().forward, lambda: (*inputs, shapes))
    with pytest.raises(ValueError, match='value has 10 tokens'):
        attn().forward(*inputs, shapes)


MASKS = {
    'numbers': np.arange(20, dtype='uint8')[None].repeat(2, 0) % 2,
    'longer': np.zeros((2, 30), bool),
    'more pictures': np.zeros((3, 20), bool),
    'for both': np.arange(20)[None] % 2 == 0,
    'all of one': np.array([[True] * 20, [False] * 20]),
}


@pytest.mark.parametrize('mask', MASKS)
def test_masks(mask):
    padding, tokens = MASKS[mask], some(2, 20, 32)
    if mask == 'all of one':
        tokens[0] = np.nan
    places = np.full((2, 1, 1, 2), 0.6, 'f4')
    agree(attn().forward, lambda: (some(2, 1, 32), places, tokens, [(4, 5)], padding))
    encoder = Encoder(Config(C=32, M=4, L=1, K=2, ffn=16, encoder_layers=1), Init(0))
    tokens = some(2, 20, 32)
    p_hat = np.random.default_rng(0).random((2, 20, 1, 2), 'float32')
    agree(encoder.infer, lambda: (tokens, tokens, p_hat, [(4, 5)], padding))


@pytest.mark.parametrize(
    ('tokens', 'positions', 'places', 'dtype'),
    [(10, 10, 10, 'f4'), (20, 16, 20, 'f4'), (20, 20, 16, 'f4'), (20, 20, 20, 'f8')],
)
def test_what_an_encoder_is_given(tokens, positions, places, dtype):
    """Memory that nobody wrote to must not come out."""
    config = Config(C=32, M=4, L=1, K=2, ffn=16, encoder_layers=1)
    encoder = Encoder(config, Init(0, dtype))
    p_hat = np.full((1, places, 1, 2), 0.7, 'f4')
    inputs = some(1, tokens, 32), some(1, positions, 32), p_hat, [(4, 5)], None
    agree(encoder.infer, lambda: inputs)


def test_equal_numbers_are_their_mean():
    x = np.full((3, 300), 1e4, 'float32')
    ones = np.ones(300, 'float32')
    np.testing.assert_array_equal(norm.layer_norm(x, ones, 0 * ones)[0], 0)
