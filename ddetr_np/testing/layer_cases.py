"""Cases of the layers: linear maps, activations, convolutions, norms, pooling."""

import numpy as np

from ..ops.conv import conv2d
from .table import Case, cases_of, distinct, normal, off_zero


@cases_of('linear.linear')
def _linear(rng, c):
    shapes = {'W': (c.ffn, c.C), 'b': (c.ffn,)}
    yield Case('one row', normal(rng, x=(1, c.C), **shapes))
    yield Case('tokens', normal(rng, x=(2, c.Nq, c.C), **shapes))
    yield Case(
        'x is given',
        normal(rng, x=(2, 3, c.C), **shapes),
        returns=(None, 'W', 'b'),
        backward={'need_dx': False},
    )


@cases_of('activation.relu')
def _relu(rng, c):
    yield Case('tokens', {'x': off_zero(rng, 2, c.Nq, c.ffn)})


@cases_of('activation.softmax')
def _softmax(rng, c):
    yield Case('keys', {'s': rng.standard_normal((2, c.Nq, c.M, c.L * c.K))})
    yield Case('large scores', {'s': 700 + 3 * rng.standard_normal((3, 5))})


@cases_of('activation.sigmoid')
def _sigmoid(rng, c):
    yield Case('logits', {'x': 3 * rng.standard_normal((2, c.Nq, c.num_classes))})


@cases_of('activation.inverse_sigmoid')
def _inverse_sigmoid(rng, c):
    yield Case('inside', {'p': rng.uniform(0.05, 0.95, (2, c.Nq, 4))})
    # p or 1 − p held at eps, then both
    held = np.array([0.03, 0.07, 0.15, 0.5, 0.85, 0.92, 0.96, -0.2, -3, 1.1, 7])
    yield Case('held', {'p': held}, {'eps': 0.1})


@cases_of('dropout.dropout')
def _dropout(rng, c):
    x = rng.standard_normal((2, c.Nq, c.C))
    yield Case('on', {'x': x}, {'p': 0.3, 'key': (5, 2, 1)})
    yield Case('off', {'x': x}, {'p': 0.3, 'key': None})


@cases_of('feed_forward.feed_forward')
def _feed_forward(rng, c):
    for tokens, settings in ((1, {}), (2 * c.Nq, {'p': 0.4, 'key': (3, 1, 4)})):
        inputs = normal(
            rng,
            x=(2, tokens, c.C),
            W1=(c.ffn, c.C),
            b1=(c.ffn,),
            W2=(c.C, c.ffn),
            b2=(c.C,),
        )
        yield Case('with dropout' if settings else 'tokens', inputs, settings)


@cases_of('add_norm.add_norm')
def _add_norm(rng, c):
    for label, settings in (
        ('tokens', {}),
        ('with dropout', {'p': 0.4, 'key': (3, 1, 4)}),
    ):
        inputs = normal(rng, x=(2, c.Nq, c.C), y=(2, c.Nq, c.C))
        inputs |= normal(rng, weight=(c.C,), bias=(c.C,))
        yield Case(label, inputs, settings)


CONVOLUTIONS = {  # label: kernel and settings
    '1 × 1': ((1, 1), {}),
    '1 × 1, stride 2': ((1, 1), {'stride': 2}),
    '3 × 3': ((3, 3), {'padding': 1}),
    '3 × 3, stride 2': ((3, 3), {'stride': 2, 'padding': 1}),
    '3 × 3, dilation 2': ((3, 3), {'padding': 2, 'dilation': 2}),
    '7 × 7, stride 2': ((7, 7), {'stride': 2, 'padding': 3}),
    '2 × 3, no padding, stride 3': ((2, 3), {'stride': 3}),
}
ONLY = (  # keywords of the backward, and what it returns
    ({'need_dx': False}, (False, True)),
    ({'need_dW': False}, (True, False)),
)


@cases_of('conv.conv2d')
def _conv2d(rng, c):
    def inputs(kernel):
        sizes = {'x': (2, 6, 9, c.C), 'W': (*kernel, c.C, c.ffn), 'b': (c.ffn,)}
        return normal(rng, **sizes)

    for label, (kernel, settings) in CONVOLUTIONS.items():
        yield Case(label, inputs(kernel), settings)
    kernel, settings = CONVOLUTIONS['3 × 3, stride 2']
    yield Case('no bias', _without(inputs(kernel), 'b'), settings, ('x', 'W', 'b'))
    for keywords, (dx, dW) in ONLY:
        returns = ('x' if dx else None, 'W' if dW else None, 'b')
        yield Case(f'{keywords}', inputs(kernel), settings, returns, keywords)
    no_db = {'need_db': False}
    yield Case(f'{no_db}', inputs(kernel), settings, ('x', 'W', None), no_db)


def _without(inputs, name):
    return {k: v for k, v in inputs.items() if k != name}


@cases_of('conv.conv_norm_relu')
def _conv_norm_relu(rng, c):
    def case(label, kernel, settings, residual, relu=True, returns=None, **backward):
        inputs = normal(rng, x=(2, 5, 8, c.C), W=(*kernel, c.C, c.ffn))
        inputs['W'] /= np.sqrt(inputs['W'][..., 0].size)  # outputs of size 1
        y, _ = conv2d(**inputs, **settings)
        scale = rng.uniform(0.5, 2, c.ffn) * rng.choice([-1, 1], c.ffn)
        y = y * scale
        if residual:
            inputs['residual'] = rng.standard_normal(y.shape)
            y += inputs['residual']
        constants = {'scale': scale, 'shift': -_widest_gap(y), 'relu': relu}
        parts = ', residual' * residual + ', ReLU' * relu
        returns = returns or ('x', 'W', 'residual' if residual else None)
        return Case(label + parts, inputs, {**settings, **constants}, returns, backward)

    for label, (kernel, settings) in CONVOLUTIONS.items():
        yield case(label, kernel, settings, False)
        yield case(label, kernel, settings, True)
    for residual in (False, True):
        yield case('linear', (3, 3), {'padding': 1}, residual, relu=False)
    for keywords, (dx, dW) in ONLY:
        returns = ('x' if dx else None, 'W' if dW else None, 'residual')
        yield case(f'{keywords}', (1, 1), {}, True, returns=returns, **keywords)


def _widest_gap(y):
    """Return (O,): for each channel the middle of the widest gap between its values.

    Zero is moved there: as far from the kink of ReLU as it gets.
    """
    y = np.sort(y.reshape(-1, y.shape[-1]), axis=0)
    n = len(y)
    y = y[n // 4 : n - n // 4]  # some values on either side
    widest = np.diff(y, axis=0).argmax(0)[None]
    ends = [np.take_along_axis(y, widest + i, 0)[0] for i in (0, 1)]
    return (ends[0] + ends[1]) / 2


def _affine(rng, C):
    return {'weight': off_zero(rng, C), 'bias': rng.standard_normal(C)}


@cases_of('norm.layer_norm')
def _layer_norm(rng, c):
    x = 2 + 3 * rng.standard_normal((2, c.Nq, c.C))
    yield Case('tokens', {'x': x, **_affine(rng, c.C)})
    yield Case('one row', {'x': x[0, 0], **_affine(rng, c.C)})


@cases_of('norm.group_norm')
def _group_norm(rng, c):
    for groups in sorted({1, c.M, c.groups}):
        x = 2 + 3 * rng.standard_normal((2, 3, 5, c.C))
        yield Case(
            f'{groups} groups', {'x': x, **_affine(rng, c.C)}, {'groups': groups}
        )


@cases_of('norm.batch_norm')
def _batch_norm(rng, c):
    for N in (1, 3):
        x = 2 + 3 * rng.standard_normal((N, 3, 5, c.C))
        yield Case(f'N = {N}', {'x': x, **_affine(rng, c.C)})


@cases_of('norm.running_batch_norm')
def _running_batch_norm(rng, c):
    statistics = {'mean': rng.standard_normal(c.C), 'var': rng.uniform(0.1, 4, c.C)}
    x = 2 + 3 * rng.standard_normal((2, 3, 5, c.C))
    yield Case('map', {'x': x, **_affine(rng, c.C)}, statistics)


@cases_of('pool.max_pool')
def _max_pool(rng, c):
    published = {'kernel': 3, 'stride': 2, 'padding': 1}
    yield Case('even', {'x': distinct(rng, 2, 6, 8, 3)}, published)
    yield Case('odd', {'x': distinct(rng, 2, 5, 7, 3)}, published)
    plain = {'kernel': 2, 'stride': 2, 'padding': 0}
    yield Case('2 × 2', {'x': distinct(rng, 1, 5, 8, 3)}, plain)
