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
from .rows import SHARES
from .sparse import add_product

TOKENS = 1 << 11  # in a tile: 32 K sampling points of a head, 2 M hidden channels
LEAST = 1 << 8  # tokens worth a tile: threads share small pictures, too


class _Weights(NamedTuple):
    """A layer's matrices, transposed views, with their biases."""

    value: Any
    offsets: Any  # Δp of all heads, first x, then y of its keys
    scores: Any  # not transposed: the product has a row for each head and key
    output: Any
    linear1: Any
    linear2: Any

    @classmethod
    def of(cls, layer):
        a = layer.self_attn
        M, L, K = a.shape
        linears = (
            a.value_proj, a.sampling_offsets, a.output_proj,
            layer.linear1, layer.linear2,
        )  # fmt: skip
        value, offsets, output, (W1, b1), (W2, b2) = (
            (m.weight.data.T, m.bias.data) for m in linears
        )
        offsets = tuple(
            b.reshape(-1, M, L * K, 2).swapaxes(2, 3).reshape(b.shape) for b in offsets
        )
        scores = a.attention_weights.weight.data, a.attention_weights.bias.data
        # max(x W₁ + b₁, 0) = max(x W₁, −b₁) + b₁, whose part in the end is constant
        return cls(value, offsets, scores, output, (W1, -b1), (W2, b2 + b1 @ W2))


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
    shares = max(1, min(SHARES, S // LEAST))
    queries = min(TOKENS, -(-S // shares))
    order = _order(tuple(map(tuple, shapes)), S)
    levels = _Levels.of(maps, queries, K, x.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)
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
        offsets = threads.scratch('offsets', (t, M, 2, L * K), x.dtype)
        _linear(z, W.offsets, offsets.reshape(t, -1))
        scores = threads.scratch('scores', (M, L * K, t), x.dtype)
        np.matmul(W.scores[0], z.T, out=scores.reshape(-1, t))
        scores += W.scores[1].reshape(M, L * K, 1)
        # φ_l(p̂) in pixels, for each key
        centre = threads.scratch('centre', (2, t, L, K), x.dtype)
        pixels = p_hat[n, tokens] * sizes - 0.5
        centre[...] = pixels.transpose(2, 0, 1)[..., None]
        centre = centre.reshape(2, t, L * K)
        for m in range(M):
            tile = _Tile(t, L * K, x.dtype, levels)
            for axis, at in enumerate(tile.xy.reshape(2, t, -1)):
                np.add(offsets[:, m, axis], centre[axis], out=at)
            _softmax(scores[m], tile.A.reshape(t, -1).T)
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
        W1, least = W.linear1
        hidden = threads.scratch('hidden', (t, len(least)), x.dtype)
        np.matmul(h, W1, out=hidden)
        np.maximum(hidden, least, out=hidden)
        _linear(hidden, W.linear2, z)
        np.add(z, h, out=z)
        _layer_norm(z, layer.norm2, h)
        y[n, tokens] = h

    threads.run(project, [(n, *rows) for n in range(N) for rows in maps.rows(TOKENS)])
    tiles = threads.tiles(S, queries)
    threads.run(through, [(n, part) for n in range(N) for part in tiles])
    return y


def _softmax(s, out):
    """Softmax over the first axis of s, which is overwritten, into out."""
    largest = s
    while (n := len(largest)) > 1:  # halves against each other
        largest = np.maximum(largest[: (n + 1) // 2], largest[n // 2 :])
    np.subtract(s, largest, out=s)
    np.exp(s, out=s)
    np.multiply(s, 1 / s.sum(0), out=out)
