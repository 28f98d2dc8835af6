"""An encoder layer's inference, token tile by token tile.

Between the values, which every query may read, and the layer's end nothing passes from
one token to another. So a tile of tokens goes through everything at once: its arrays
stay in the processor's cache, and two threads each run their own products. A tile is a
patch of the picture on all levels, whose tokens read nearly the same values.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..backend import twin
from ..module import EVAL
from ..ops.norm import EPS
from .ms_deform_attn import _Levels, _Maps, _order, _Tile
from .sparse import add_product

TOKENS = 1 << 11  # in a tile: 32 K sampling points of a head, 2 M hidden channels


class _Weights(NamedTuple):
    """A layer's matrices, transposed views, with their biases."""

    value: Any
    points: Any  # x offsets, y offsets and scores of all heads: (C, 3 M L K)
    output: Any
    linear1: Any
    linear2: Any

    @classmethod
    def of(cls, layer):
        a = layer.self_attn
        M, L, K = a.shape
        points = []
        for name in ('weight', 'bias'):
            offset = getattr(a.sampling_offsets, name).data.reshape(M, L * K, 2, -1)
            score = getattr(a.attention_weights, name).data.reshape(M, L * K, 1, -1)
            stacked = np.concatenate([offset, score], 2).transpose(0, 2, 1, 3)
            points.append(stacked.reshape(3 * M * L * K, -1))
        linears = (a.value_proj, a.output_proj, layer.linear1, layer.linear2)
        value, output, linear1, linear2 = (
            (m.weight.data.T, m.bias.data) for m in linears
        )
        return cls(value, (points[0].T, points[1][:, 0]), output, linear1, linear2)


def _linear(x, weights, out):
    W, b = weights
    np.matmul(x, W, out=out)
    np.add(out, b, out=out)
    return out


def _layer_norm(x, norm, out):
    """Normalise the rows of x, which is overwritten, into out."""
    C = x.shape[1]
    # sums by the BLAS: NumPy's own take a row at a time
    mean = np.matmul(x, np.full((C, 1), 1 / C, x.dtype))
    np.subtract(x, mean, out=x)
    inv = 1 / np.sqrt(np.einsum('ij,ij->i', x, x) / C + EPS)
    np.multiply(x, inv[:, None], out=x)
    np.multiply(x, norm.weight.data, out=x)
    np.add(x, norm.bias.data, out=out)


@twin('encoder.infer')
def fast_infer(layer, x, pos, p_hat, shapes, padding, run=EVAL):
    """See `nn.encoder.EncoderLayer.infer`; a task is a tile of one picture's tokens.

    Parameters
    ----------
    layer : EncoderLayer
        Whose method this stands in for.
    x, pos : (N, S, C) arrays
        Tokens, and positions with the level embedding. Other than of single or double
        precision, they are left to the plain method.
    p_hat : (N, S, L, 2) array
        Each token's own place on every level, (x, y) in [0, 1].
    shapes : sequence of (H, W)
        Of the levels; Σ H·W = S.
    padding : (N, S) bool array or None
        True where a token is padding: its values are 0. None: nowhere.
    run : Run
        A training run is left to the plain method.

    Returns
    -------
    y : (N, S, C) array
    """
    if run.train or x.dtype not in (np.float32, np.float64):
        return type(layer).infer.plain(layer, x, pos, p_hat, shapes, padding, run)
    N, S, C = x.shape
    M, L, K = layer.self_attn.shape
    Cv = C // M
    W = _Weights.of(layer)
    maps = _Maps(shapes)
    values = threads.scratch('values', (N, M, maps.total, Cv), x.dtype)
    values[...] = 0
    y = np.empty_like(x)
    queries = min(S, TOKENS)
    order = _order(tuple(map(tuple, shapes)), S)
    levels = _Levels.of(maps, queries, K, x.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)
    zero = np.zeros(len(W.linear1[1]), x.dtype)  # NumPy is slow with a number
    sizes = np.array([(w, h) for h, w in shapes], x.dtype)

    def project(where):
        n, tokens, interiors = where
        v = threads.scratch('v', (tokens.stop - tokens.start, C), x.dtype)
        _linear(x[n, tokens], W.value, v)
        if padding is not None:
            v[padding[n, tokens]] = 0
        for m in range(M):
            to = interiors(values[n, m])
            to[...] = v[:, m * Cv : (m + 1) * Cv].reshape(to.shape)

    def through(where):
        n, part = where
        tokens = order[part]
        t = len(tokens)
        x_tile, z = (threads.scratch(name, (t, C), x.dtype) for name in ('x', 'z'))
        np.take(x[n], tokens, 0, out=x_tile, mode='clip')
        np.take(pos[n], tokens, 0, out=z, mode='clip')
        np.add(x_tile, z, out=z)
        points = threads.scratch('all points', (t, M, 3, L * K), x.dtype)
        _linear(z, W.points, points.reshape(t, -1))
        # φ_l(p̂) in pixels, for each key
        centre = threads.scratch('centre', (2, t, L, K), x.dtype)
        pixels = p_hat[n, tokens] * sizes - 0.5
        centre[...] = pixels.transpose(2, 0, 1)[..., None]
        centre = centre.reshape(2, t, L * K)
        for m in range(M):
            tile = _Tile(t, L * K, x.dtype, levels)
            for axis, at in enumerate(tile.xy.reshape(2, t, -1)):
                np.add(points[:, m, axis], centre[axis], out=at)
            _softmax(points[:, m, 2], tile.A.reshape(t, -1))
            tile.find_corners()
            head = threads.scratch('head', (t, Cv), x.dtype)
            head[...] = 0
            for some, columns, right, weight in tile.corners():
                add_product(ends, columns, weight, values[n, m, right:], head[some])
            z[:, m * Cv : (m + 1) * Cv] = head
        h = threads.scratch('h', (t, C), x.dtype)
        _linear(z, W.output, h)
        np.add(h, x_tile, out=h)
        _layer_norm(h, layer.norm1, h)
        hidden = threads.scratch('hidden', (t, len(W.linear1[1])), x.dtype)
        _linear(h, W.linear1, hidden)
        np.maximum(hidden, zero, out=hidden)
        _linear(hidden, W.linear2, z)
        np.add(z, h, out=z)
        _layer_norm(z, layer.norm2, h)
        y[n, tokens] = h

    threads.run(project, [(n, *rows) for n in range(N) for rows in maps.rows(TOKENS)])
    tiles = threads.tiles(S, queries)
    threads.run(through, [(n, part) for n in range(N) for part in tiles])
    return y


def _softmax(s, out):
    """Softmax of the rows of s, which are short, into out."""
    largest = s
    while (n := largest.shape[1]) > 1:  # halves against each other: a few long loops
        largest = np.maximum(largest[:, : (n + 1) // 2], largest[:, n // 2 :])
    np.subtract(s, largest, out=out)
    np.exp(out, out=out)
    total = np.matmul(out, np.ones((out.shape[1], 1), out.dtype))
    np.multiply(out, np.divide(1, total, out=total), out=out)
