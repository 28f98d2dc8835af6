"""Cases of attention, positions and sampling."""

import numpy as np

from ..ops.ms_deform_attn import sampling_locations
from .table import Case, cases_of, level_shapes, normal, off_pixels


@cases_of('attention.attention')
def _attention(rng, c):
    size = (c.M, c.Cv)
    same = dict.fromkeys('qkv', (2, c.Nq, *size))
    other = {'q': (2, c.Nq, *size), 'k': (2, 3, *size), 'v': (2, 3, *size)}
    off = {'p': 0.0, 'key': None}
    yield Case('self', normal(rng, **same), off)
    yield Case('other keys', normal(rng, **other), off)
    yield Case('dropout', normal(rng, **same), {'p': 0.4, 'key': (5, 2, 1)})


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
    """Return A that sums to 1 over levels and keys.

    Parameters
    ----------
    rng : numpy.random.Generator
        Drawn from.
    N : int
        Pictures.
    c : Config
        Its Nq, M, L and K are used.

    Returns
    -------
    A : (N, Nq, M, L, K) array
        All above 0.
    """
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
