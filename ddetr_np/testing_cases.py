"""Where each operation is checked: inputs away from kinks, one builder an operation.

To add an operation, write a builder that yields `Case`s and decorate it with its name;
a test asks for one for every `*_backward` in `ops`.
"""

import zlib

import numpy as np

from .config import Config
from .ops.conv import conv2d
from .ops.ms_deform_attn import sampling_locations
from .testing import Case

SMALL = Config(  # odd sizes, all different, so that no two axes can be mistaken
    C=24, M=3, L=2, K=5, Nq=7, ffn=10, num_classes=4, encoder_layers=1, decoder_layers=1
)
CASES = {}  # 'module.function' → builder(rng, config)


def cases_of(name):
    """Register the decorated builder for an operation, 'module.function' in `ops`."""

    def register(builder):
        CASES[name] = builder
        return builder

    return register


def cases(name, config=None, seed=0):
    """Return the list of an operation's Cases.

    Parameters
    ----------
    name : str
        A key of CASES.
    config : Config, optional
        Whose sizes to take; `SMALL` if not given.
    seed : int
    """
    # a stream of its own: adding a case to one operation moves no other's inputs
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return list(CASES[name](rng, config or SMALL))


def off_zero(rng, *shape):
    """Return normal numbers pushed 0.1 away from zero."""
    x = rng.standard_normal(shape)
    return x + np.copysign(0.1, x)


def distinct(rng, *shape):
    """Return numbers in random order of which no two are closer than 0.1."""
    return (rng.permutation(int(np.prod(shape))) * 0.1 - 1).reshape(shape)


def level_shapes(L):
    """Return L small, non-square map sizes (H, W), each half the one before."""
    return [(max(1, 6 >> l), max(2, 10 >> l)) for l in range(L)]


def off_pixels(rng, shape, H, W):
    """Return points (*shape, 2), x and y, at least 0.1 pixels from any pixel's centre.

    Some read one or two pixels over the border, some lie outside.
    """
    last = np.array([W, H])
    pixel = rng.integers(-2, last + 1, (*shape, 2)) + rng.uniform(0.1, 0.9, (*shape, 2))
    return (pixel + 0.5) / last


def _normal(rng, **shapes):
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@cases_of('linear.linear')
def _linear(rng, c):
    shapes = {'W': (c.ffn, c.C), 'b': (c.ffn,)}
    yield Case('one row', _normal(rng, x=(1, c.C), **shapes))
    yield Case('tokens', _normal(rng, x=(2, c.Nq, c.C), **shapes))
    yield Case(
        'x is given',
        _normal(rng, x=(2, 3, c.C), **shapes),
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


@cases_of('attention.attention')
def _attention(rng, c):
    size = (c.M, c.Cv)
    same = dict.fromkeys('qkv', (2, c.Nq, *size))
    other = {'q': (2, c.Nq, *size), 'k': (2, 3, *size), 'v': (2, 3, *size)}
    off = {'p': 0.0, 'key': None}
    yield Case('self', _normal(rng, **same), off)
    yield Case('other keys', _normal(rng, **other), off)
    yield Case('dropout', _normal(rng, **same), {'p': 0.4, 'key': (5, 2, 1)})


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
        return _normal(rng, **sizes)

    for label, (kernel, settings) in CONVOLUTIONS.items():
        yield Case(label, inputs(kernel), settings)
    kernel, settings = CONVOLUTIONS['3 × 3, stride 2']
    yield Case('no bias', _without(inputs(kernel), 'b'), settings, ('x', 'W', 'b'))
    for keywords, (dx, dW) in ONLY:
        returns = ('x' if dx else None, 'W' if dW else None, 'b')
        yield Case(f'{keywords}', inputs(kernel), settings, returns, keywords)


def _without(inputs, name):
    return {k: v for k, v in inputs.items() if k != name}


@cases_of('conv.conv_norm_relu')
def _conv_norm_relu(rng, c):
    def case(label, kernel, settings, residual, relu=True, returns=None, **backward):
        inputs = _normal(rng, x=(2, 5, 8, c.C), W=(*kernel, c.C, c.ffn))
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


@cases_of('position.box_position')
def _box_position(rng, c):
    yield Case('boxes', {'box': rng.uniform(0, 1, (2, c.Nq, 4))}, {'C': c.C})


@cases_of('bilinear.sample')
def _sample(rng, c):
    for label, shape, H, W in (
        ('many points', (4, 25), 3, 5),
        ('one pixel', (30,), 1, 1),
        ('one row', (30,), 1, 7),
    ):
        inputs = {
            'v': rng.standard_normal((H * W, c.Cv)),
            'loc': off_pixels(rng, shape, H, W),
        }
        yield Case(label, inputs, {'H': H, 'W': W})


def attention_weights(rng, N, c):
    """Return A (N, Nq, M, L, K) that sums to 1 over levels and keys."""
    A = rng.uniform(0.1, 1, (N, c.Nq, c.M, c.L, c.K))
    return A / A.sum((3, 4), keepdims=True)


def _references(rng, N, c, box):
    """Return p_hat (N, Nq, L, 2 or 4) and offset (N, Nq, M, L, K, 2)."""
    p_hat = rng.uniform(0.1, 0.9, (N, c.Nq, c.L, 4 if box else 2))
    return {
        'p_hat': p_hat,
        'offset': 2 * rng.standard_normal((N, c.Nq, c.M, c.L, c.K, 2)),
    }


@cases_of('ms_deform_attn.sampling_locations')
def _sampling_locations(rng, c):
    shapes = level_shapes(c.L)
    yield Case('points', _references(rng, 2, c, False), {'shapes': shapes})
    yield Case('boxes', _references(rng, 2, c, True), {'shapes': shapes})
    yield Case(
        'p_hat is given',
        _references(rng, 2, c, True),
        {'shapes': shapes},
        returns=(None, 'offset'),
        backward={'need_dp_hat': False},
    )


def _nudge(loc, shapes):
    """Move points that lie within 0.1 pixels of a pixel's centre away from it."""
    sizes = np.array([(W, H) for H, W in shapes])[:, None]
    pixel = loc * sizes - 0.5
    off = pixel - np.round(pixel)
    pixel += np.where(np.abs(off) < 0.1, np.copysign(0.1, off) - off, 0)
    return (pixel + 0.5) / sizes


@cases_of('ms_deform_attn.ms_deform_attn')
def _ms_deform_attn(rng, c):
    def case(label, N, c, loc=None):
        shapes = level_shapes(c.L)
        if loc is None:
            size = (N, c.Nq, c.M, c.K)
            loc = np.stack([off_pixels(rng, size, H, W) for H, W in shapes], 3)
        S = sum(H * W for H, W in shapes)
        inputs = {
            'value': rng.standard_normal((N, S, c.M, c.Cv)),
            'loc': loc,
            'A': attention_weights(rng, N, c),
        }
        return Case(label, inputs, {'shapes': shapes})

    yield case('batch', 2, c)
    yield case('one level, one key (Eq. 2)', 1, c.replace(L=1, K=1))
    yield case('four levels', 1, c.replace(L=4))
    for label, box in (('points', False), ('boxes', True)):
        shapes = level_shapes(c.L)
        loc, _ = sampling_locations(**_references(rng, 2, c, box), shapes=shapes)
        yield case(f'at {label} and offsets', 2, c, _nudge(loc, shapes))


@cases_of('boxes.box_from_reference')
def _box_from_reference(rng, c):
    for label, n in (('point', 2), ('box', 4)):
        inputs = {
            'delta': rng.standard_normal((2, c.Nq, 4)),
            'p_hat': rng.uniform(0.05, 0.95, (2, c.Nq, n)),
        }
        yield Case(label, inputs)


@cases_of('boxes.cxcywh_to_xyxy')
def _cxcywh_to_xyxy(rng, c):
    yield Case('boxes', {'box': rng.uniform(0, 1, (2, c.Nq, 4))})


@cases_of('losses.sigmoid_focal_loss')
def _sigmoid_focal_loss(rng, c):
    x = 3 * rng.standard_normal((2, c.Nq, c.num_classes))
    for gamma in (2.0, 0.0, 1.5):
        settings = {'target': rng.random(x.shape) < 0.3, 'gamma': gamma}
        yield Case(f'γ = {gamma}', {'x': x}, settings)
    yield Case('large logits', {'x': 10 * x}, settings)


@cases_of('losses.l1')
def _l1(rng, c):
    b = rng.standard_normal((c.Nq, 4))
    yield Case('boxes', {'a': b + off_zero(rng, c.Nq, 4), 'b': b})


@cases_of('losses.giou')
def _giou(rng, c):
    # four distinct edges along each axis, in order; which are a's makes the case
    edges = np.sort(distinct(rng, c.Nq, 2, 4), -1)
    for label, x, y in (
        ('overlap', (0, 2), (0, 2)),
        ('inside', (1, 2), (1, 2)),
        ('apart along x', (0, 1), (0, 2)),
        ('apart along both', (2, 3), (0, 1)),
    ):
        a = _corners(edges, x, y)
        b = _corners(edges, *(sorted({0, 1, 2, 3} - set(axis)) for axis in (x, y)))
        yield Case(label, {'a': a, 'b': b})


def _corners(edges, x, y):
    """Return boxes x0, y0, x1, y1 of the edges (n, 2, 4) with these indices."""
    (x0, x1), (y0, y1) = x, y
    picked = [edges[:, 0, x0], edges[:, 1, y0], edges[:, 0, x1], edges[:, 1, y1]]
    return np.stack(picked, -1)
