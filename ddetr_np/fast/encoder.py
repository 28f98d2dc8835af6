"""The encoder's inference, token tile by token tile.

Between the values, which every query may read, and a layer's end nothing passes from
one token to another. So a tile of tokens goes through a whole layer at once, and on to
its values in the next: its arrays stay in the processor's cache, and two threads each
run their own products. A tile is a patch of the picture on all levels, whose tokens
read nearly the same values; tokens keep this order from the first layer to the last.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..backend import twin
from ..module import EVAL
from ..ops.norm import EPS
from .corner_reads import Levels, Maps, Tile, as_items, query_order
from .rows import SHARES, alike, fits, whole
from .sparse import add_product

TOKENS = 3 << 9  # in a tile: 192 K sampling points of 8 heads, 1.5 M hidden channels
LEAST = 1 << 8  # tokens worth a tile: threads share small pictures, too


class _Weights(NamedTuple):
    """A layer's matrices, transposed views, with their biases.

    A norm's β is in the biases of what reads it, not in the tokens: z = ẑ + β gives
    z W + b = ẑ W + (b + β W).
    """

    value: Any
    points: Any  # of `_points_matrix`, and β
    scores: Any  # (M L K, C + 1): the product has a row for each head and key
    output: Any
    linear1: Any
    linear2: Any

    @classmethod
    def of(cls, layer, shapes, before):
        """Return those of a layer; `before` is the β that its tokens lack."""
        a = layer.self_attn
        linears = a.value_proj, a.output_proj, layer.linear1, layer.linear2
        (V, v), (O, o), (W1, b1), (W2, b2) = (
            (m.weight.data.T, m.bias.data) for m in linears
        )
        C = len(V)
        points = _points_matrix(a, shapes)
        points[C] += before @ points[:C]
        scores, s = a.attention_weights.weight.data, a.attention_weights.bias.data
        scores = np.column_stack([scores, s + scores @ before])
        inner = layer.norm1.bias.data
        # max(x W₁ + b₁, 0) = max(x W₁, −b₁) + b₁, whose part in the end is constant
        b1 = b1 + inner @ W1
        return cls(
            value=(V, v + before @ V),
            points=points,
            scores=scores,
            output=(O, o + before),
            linear1=(W1, -b1),
            linear2=(W2, b2 + inner + b1 @ W2),
        )


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


def _layer_norm(x, norm, out):
    """Write the normalised rows of x into out, without β; x is overwritten, too."""
    C = x.shape[1]
    # sums by the BLAS: NumPy's own take a row at a time
    mean = np.matmul(x, np.ones((C, 1), x.dtype))
    mean /= C
    np.subtract(x, mean, out=x)
    inv = 1 / np.sqrt(np.einsum('ij,ij->i', x, x) / C + EPS)
    np.multiply(x, inv[:, None], out=x)
    np.multiply(x, norm.weight.data, out=out)


@twin('encoder.infer')
def fast_infer(encoder, x, pos, p_hat, shapes, padding, run=EVAL):
    """See `nn.encoder.Encoder.infer`; a task is a tile of one picture's tokens.

    Parameters
    ----------
    encoder : Encoder
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
    memory : (N, S, C) array
    """
    layers = encoder.layers
    N, S, C = x.shape
    fit = not run.train and layers and alike(x, pos) and whole(padding, x)
    fit = fit and p_hat.shape == (N, S, len(shapes), 2)
    fit = fit and S == sum(H * W for H, W in shapes) and all(map(all, shapes))
    if not fit or not fits(x, p_hat, layers[0].linear1.weight.data):
        return type(encoder).infer.plain(encoder, x, pos, p_hat, shapes, padding, run)
    M, L, K = layers[0].self_attn.shape
    Cv, dtype = C // M, x.dtype
    lacking = [np.zeros(C, dtype), *(layer.norm2.bias.data for layer in layers)]
    weights = [_Weights.of(layer, shapes, b) for layer, b in zip(layers, lacking)]
    maps = Maps(shapes)
    order = query_order(tuple(map(tuple, shapes)), S)
    place = maps.pixels()[order]
    tokens, positions = (threads.scratch(a, x.shape, dtype) for a in ('x', 'pos'))
    # what the products of a query take besides its C channels
    besides = np.empty((N, S, 1 + 2 * L), dtype)
    # a layer's values, and the next's, which its first tiles make meanwhile
    values = [maps.memory(f'values {i}', (N, M), Cv, dtype) for i in (0, 1)]
    for v in values:
        maps.clear_borders(v)
    memory = np.empty(x.shape, dtype)
    shares = max(1, min(SHARES, S // LEAST))
    queries = min(TOKENS, -(-S // shares))
    levels = Levels.of(maps, queries, K, dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)

    def arrange(where):
        n, part = where
        rows = order[part]
        for a, out in (x, tokens), (pos, positions):
            np.take(a[n], rows, 0, out=out[n, part], mode='clip')
        besides[n, part, 0] = 1
        besides[n, part, 1:] = p_hat[n, rows].reshape(len(rows), -1)
        project(n, part, 0)

    def project(n, part, i):
        v = threads.scratch('v', (part.stop - part.start, C), dtype)
        W, b = weights[i].value
        np.matmul(tokens[n, part], W, out=v)
        np.add(v, b, out=v)
        if padding is not None:
            v[padding[n, order[part]]] = 0
        heads = as_items(v.reshape(-1, M, Cv)).swapaxes(0, 1)
        as_items(values[i % 2][n])[:, place[part]] = heads

    def attend(n, part, i, z):
        """Write Σ_lk A_mlqk W'_m x^l(φ_l(p̂_q) + Δp_mlqk) of a layer into z."""
        W, t = weights[i], len(z)
        query = threads.scratch('query', (t, C + 1 + 2 * L), dtype)
        np.add(tokens[n, part], positions[n, part], out=query[:, :C])
        query[:, C:] = besides[n, part]
        # all heads at once, one after another: fewer and longer steps
        tile = Tile(M * t, L * K, dtype, levels, heads=M)
        # what comes before the corners takes their memory, too
        points = tile.new('weights', t, 2 * M, L * K)
        np.matmul(query, W.points, out=points.reshape(t, -1))
        as_items(tile.xy.reshape(2 * M, t, -1))[...] = as_items(points).swapaxes(0, 1)
        scores = tile.new('pairs', M, L * K, t)
        np.matmul(W.scores, query[:, : C + 1].T, out=scores.reshape(-1, t))
        _softmax(scores, tile.A.reshape(M, t, -1).swapaxes(1, 2))
        tile.find_corners()
        read = threads.scratch('read', (M * t, Cv), dtype)
        read[...] = 0
        for some, columns, right, weight in tile.corners():
            v = values[i % 2][n, some.start // t, right:]
            add_product(ends, columns, weight, v, read[some])
        heads = as_items(read.reshape(M, t, Cv))
        as_items(z.reshape(t, M, Cv))[...] = heads.swapaxes(0, 1)

    def through(where):
        n, part, i = where
        W, layer, t = weights[i], layers[i], part.stop - part.start
        z, h = (threads.scratch(name, (t, C), dtype) for name in 'zh')
        attend(n, part, i, z)
        np.matmul(z, W.output[0], out=h)
        np.add(h, tokens[n, part], out=h)
        np.add(h, W.output[1], out=h)
        _layer_norm(h, layer.norm1, h)
        W1, least = W.linear1
        # in the memory of the corners' weights, which are done with
        hidden = threads.scratch('weights', (t, len(least)), dtype)
        np.matmul(h, W1, out=hidden)
        np.maximum(hidden, least, out=hidden)
        y = np.matmul(hidden, W.linear2[0], out=z)
        np.add(y, h, out=y)
        np.add(y, W.linear2[1], out=y)
        if i + 1 < len(layers):
            _layer_norm(y, layer.norm2, tokens[n, part])
            project(n, part, i + 1)
        else:
            _layer_norm(y, layer.norm2, y)
            memory[n, order[part]] = np.add(y, layer.norm2.bias.data, out=y)

    tiles = threads.tapering_tiles(S, queries, LEAST)
    tiles = [(n, part) for n in range(N) for part in tiles]
    threads.run(arrange, tiles)
    for i in range(len(layers)):
        threads.run(through, [(*tile, i) for tile in tiles])
    return memory


def _softmax(s, out):
    """Softmax over the second axis of s, which is overwritten, into out."""
    largest = s
    while (n := largest.shape[1]) > 1:  # halves against each other
        largest = np.maximum(largest[:, : (n + 1) // 2], largest[:, n // 2 :])
    np.subtract(s, largest, out=s)
    np.exp(s, out=s)
    np.multiply(s, 1 / s.sum(1, keepdims=True), out=out)
