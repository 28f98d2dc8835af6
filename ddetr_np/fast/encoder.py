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
from .corner_reads import Levels, Maps, Tile, as_items, query_order
from .rows import SHARES
from .sparse import add_product

TOKENS = 1 << 10  # in a tile: 128 K sampling points of 8 heads, 1 M hidden channels
LEAST = 1 << 8  # tokens worth a tile: threads share small pictures, too


class _Weights(NamedTuple):
    """A layer's matrices, transposed views, with their biases."""

    value: Any
    points: Any  # of `_points_matrix`
    scores: Any  # (M L K, C + 1): the product has a row for each head and key
    output: Any
    linear1: Any
    linear2: Any

    @classmethod
    def of(cls, layer, shapes):
        a = layer.self_attn
        linears = a.value_proj, a.output_proj, layer.linear1, layer.linear2
        value, output, (W1, b1), (W2, b2) = (
            (m.weight.data.T, m.bias.data) for m in linears
        )
        scores = a.attention_weights
        scores = np.column_stack([scores.weight.data, scores.bias.data])
        # max(x W₁ + b₁, 0) = max(x W₁, −b₁) + b₁, whose part in the end is constant
        points = _points_matrix(a, shapes)
        return cls(value, points, scores, output, (W1, -b1), (W2, b2 + b1 @ W2))


def _points_matrix(attn, shapes):
    """Return the matrix from (z, 1, p̂) to φ_l(p̂) + Δp, in pixels of each level.

    Its columns are the points of all heads, first their x, then their y.
    """
    M, L, K = attn.shape
    W = attn.sampling_offsets.weight.data
    C = W.shape[1]
    out = np.zeros((C + 1 + 2 * L, 2, M, L, K), W.dtype)
    out[:C] = W.reshape(M, L, K, 2, C).transpose(4, 3, 0, 1, 2)
    bias = attn.sampling_offsets.bias.data.reshape(M, L, K, 2)
    out[C] = bias.transpose(3, 0, 1, 2) - 0.5
    for level, (H, W) in enumerate(shapes):
        for axis, size in enumerate((W, H)):
            out[C + 1 + 2 * level + axis, axis, :, level] = size
    return out.reshape(C + 1 + 2 * L, -1)


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
    W = _Weights.of(layer, shapes)
    maps = Maps(shapes)
    values = threads.scratch('values', (N, M, maps.total, Cv), x.dtype)
    maps.clear_borders(values)
    y = np.empty_like(x)
    shares = max(1, min(SHARES, S // LEAST))
    queries = min(TOKENS, -(-S // shares))
    order = query_order(tuple(map(tuple, shapes)), S)
    levels = Levels.of(maps, queries * M, K, x.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)

    def project(where):
        n, tokens, interiors = where
        v = threads.scratch('v', (tokens.stop - tokens.start, C), x.dtype)
        _linear(x[n, tokens], W.value, v)
        if padding is not None:
            v[padding[n, tokens]] = 0
        heads = as_items(v.reshape(-1, M, Cv))
        for m in range(M):
            to = as_items(interiors(values[n, m]))
            to[...] = heads[:, m].reshape(to.shape)

    def through(where):
        n, part = where
        tokens = order[part]
        t = len(tokens)
        x_tile, z = (threads.scratch(name, (t, C), x.dtype) for name in ('x', 'z'))
        np.take(x[n], tokens, 0, out=x_tile, mode='clip')
        np.take(pos[n], tokens, 0, out=z, mode='clip')
        query = threads.scratch('query', (t, C + 1 + 2 * L), x.dtype)
        np.add(x_tile, z, out=query[:, :C])
        query[:, C] = 1
        query[:, C + 1 :] = p_hat[n, tokens].reshape(t, -1)
        # all heads at once, one after another: fewer and longer steps
        tile = Tile(M * t, L * K, x.dtype, levels)
        points = threads.scratch('points', (t, 2 * M, L * K), x.dtype)
        np.matmul(query, W.points, out=points.reshape(t, -1))
        as_items(tile.xy.reshape(2 * M, t, -1))[...] = as_items(points).swapaxes(0, 1)
        scores = threads.scratch('scores', (M, L * K, t), x.dtype)
        np.matmul(W.scores, query[:, : C + 1].T, out=scores.reshape(-1, t))
        _softmax(scores, tile.A.reshape(M, t, -1).swapaxes(1, 2))
        tile.find_corners()
        read = threads.scratch('read', (M * t, Cv), x.dtype)
        read[...] = 0
        for some, columns, right, weight in tile.corners(M):
            v = values[n, some.start // t, right:]
            add_product(ends, columns, weight, v, read[some])
        heads = as_items(read.reshape(M, t, Cv))
        as_items(z.reshape(t, M, Cv))[...] = heads.swapaxes(0, 1)
        h = threads.scratch('h', (t, C), x.dtype)
        _linear(z, W.output, h)
        np.add(h, x_tile, out=h)
        _layer_norm(h, layer.norm1, h)
        W1, least = W.linear1
        hidden = threads.scratch('hidden', (t, len(least)), x.dtype)
        np.matmul(h, W1, out=hidden)
        np.maximum(hidden, least, out=hidden)
        _linear(hidden, W.linear2, z)
        np.add(z, h, out=z)
        _layer_norm(z, layer.norm2, h)
        y[n, tokens] = h

    threads.run(project, [(n, *rows) for n in range(N) for rows in maps.rows(TOKENS)])
    tiles = threads.tapering_tiles(S, queries, LEAST)
    threads.run(through, [(n, part) for n in range(N) for part in tiles])
    return y


def _softmax(s, out):
    """Softmax over the second axis of s, which is overwritten, into out."""
    largest = s
    while (n := largest.shape[1]) > 1:  # halves against each other
        largest = np.maximum(largest[:, : (n + 1) // 2], largest[:, n // 2 :])
    np.subtract(s, largest, out=s)
    np.exp(s, out=s)
    np.multiply(s, 1 / s.sum(1, keepdims=True), out=out)
