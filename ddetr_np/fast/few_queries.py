"""Deformable attention of few queries over many tokens.

W'_m may be applied before the sum over what a head reads, or after it:

    Σ_lk A_mlqk W'_m x(p) = W'_m Σ_lk A_mlqk x(p).

Before, it is the work of all tokens, H W C²; after, of the queries alone, N_q C² (A.1
projects each sample, N_q K C²: the sum comes first here). A decoder's 300 queries read
a fraction of an encoder's tokens. Its price is that a corner is C numbers wide rather
than C / M.

With r_mq = Σ_lk A_mlqk x(p), the way back has dW'_m = Σ_q dy_mq r_mqᵀ; and with
e_mq = W'_mᵀ dy_mq it is the core's, x for its values and e for its dy.
"""

import itertools
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.ms_deform_attn import CoreCache, ReadCache, check_shapes
from .corner_reads import Levels, Maps, Places, Tile, point_gradients
from .rows import fits, whole
from .sparse import add_product, add_transposed_product

COST = 10  # of a multiply-accumulate of what is read, in those of a matrix product
ROWS = 5 << 7  # of queries and heads in a tile: four tiles of 300 queries
GATHERED = 1 << 18  # numbers of what they read, gathered at a time on the way back
CHANNELS = 1 << 6  # of the tokens' gradient in a task, at most
CLEARED = 1 << 19  # numbers of it cleared in a task


class _Sums(NamedTuple):
    """What the way back needs of the sums, of queries and heads one after another."""

    read: Any  # (N, Nq M, C): r
    inside: Any  # (N, Nq M): Σ A g of the corners that are in the maps, for the bias


class _Reads:
    """What the queries read of the tokens, each head of a query in a row of its own.

    Heads of a query follow each other: they read near each other.

    Parameters
    ----------
    x : (N, S, C) array
        Tokens.
    core : CoreCache
        Its shapes, loc and A.
    padding : (N, S) bool array or None
        True where a token reads as nothing.
    """

    def __init__(self, x, core, padding):
        N, Nq, M, L, K = core.A.shape
        self.M, self.points = M, L * K
        self.loc = core.loc.reshape(N, Nq * M, -1)
        self.A = core.A.reshape(N, Nq * M, -1)
        maps = Maps(core.shapes)
        masks = [None] if padding is None else padding
        self.places = [Places(maps, x.dtype, padding=mask) for mask in masks]
        queries = max(1, min(Nq, ROWS // M))
        self.levels = Levels.of(maps, queries * M, K, x.dtype)
        parts = threads.even_tiles(Nq, queries)
        rows = [slice(part.start * M, part.stop * M) for part in parts]
        self.tiles = [(n, part) for n in range(N) for part in rows]

    def place(self, n):
        """Return the `Places` of a picture."""
        return self.places[n % len(self.places)]

    def tile(self, n, part):
        """Return the `Tile` of some rows."""
        return Tile.of(self.loc[n, part], self.A[n, part], self.levels)

    def ends(self, rows):
        """Return where each row's corners begin, as for `add_product`."""
        corners = 4 * self.points
        return np.arange(0, rows * corners + 1, corners, dtype=np.int32)


@twin('ms_deform_attn.read')
def fast_read(attn, x, shapes, loc, A, padding=None):
    """See `nn.ms_deform_attn.MSDeformAttn.read`; a task is a tile of queries.

    Parameters
    ----------
    attn : MSDeformAttn
        Whose method this stands in for.
    x, shapes, loc, A, padding
        As its. Where they ask for more products than all tokens' values, or are not of
        single or double precision, they are left to the plain method.

    Returns
    -------
    y : (N, Nq, M, C / M) array
    cache : ReadCache
        Its core without values.
    """
    N, S, C = x.shape
    W, b = attn.value_proj.weight.data, attn.value_proj.bias.data
    M = attn.shape[0]
    Cv = C // M
    fit = fits(x, loc, A, W, b) and whole(padding, x)
    fit = fit and not any(0 in size for size in shapes)
    if not fit or COST * 4 * (A.size // N) * (C - Cv) > S * C * C:
        return type(attn).read.plain(attn, x, shapes, loc, A, padding)
    check_shapes(x.reshape(N, S, M, Cv), shapes, loc, A)
    core = CoreCache(None, tuple(map(tuple, shapes)), loc, A)
    reads, x = _Reads(x, core, padding), np.ascontiguousarray(x)
    by_head, b = W.reshape(M, Cv, C).swapaxes(1, 2), b.reshape(M, Cv)
    rows = A.shape[1] * M
    sums = _Sums(np.empty((N, rows, C), x.dtype), np.empty((N, rows), x.dtype))
    y = np.empty((N, rows, Cv), x.dtype)

    def attend(where):
        n, part = where
        read, inside = sums.read[n, part], sums.inside[n, part]
        columns, weights = reads.tile(n, part).rows(reads.place(n))
        read[...] = 0
        ends = reads.ends(len(read))
        add_product(ends, columns.ravel(), weights.ravel(), x[n], read)
        # outside the maps there is no bias, either
        np.sum(weights.reshape(len(read), -1), 1, out=inside)
        for m in range(M):
            value = np.matmul(read[m::M], by_head[m])
            np.add(value, inside[m::M, None] * b[m], out=y[n, part][m::M])

    threads.run(attend, reads.tiles)
    return y.reshape(*A.shape[:3], Cv), ReadCache((x, W), padding, core, sums)


@twin('ms_deform_attn.read_backward')
def fast_read_backward(attn, dy, cache):
    """See `nn.ms_deform_attn.MSDeformAttn.read_backward`.

    A task is a tile of queries, or for the tokens' gradient some channels of a picture:
    no two add to one place, and the order of each sum is always the same.

    Parameters
    ----------
    attn : MSDeformAttn
        Whose method this stands in for.
    dy, cache
        As its. The cache of the plain method is left to that.

    Returns
    -------
    dx, dloc, dA : arrays
    """
    (x, W), padding, core, sums = cache
    shape = *core.loc.shape[:3], x.shape[2] // core.loc.shape[2]
    if sums is None or not fits(dy, x) or dy.shape != shape:
        return type(attn).read_backward.plain(attn, dy, cache)
    N, S, C = x.shape
    M, Cv = dy.shape[2:]
    reads = _Reads(x, core, padding)
    rows, corners = len(reads.loc[0]), 4 * reads.points
    d = np.ascontiguousarray(dy).reshape(N, rows, Cv)
    by_head = W.reshape(M, Cv, C)
    b = attn.value_proj.bias.data.reshape(M, Cv)
    e = np.empty((N, rows, C), x.dtype)
    columns = np.empty((N, rows * reads.points, 4), np.int32)
    weights = np.empty(columns.shape, x.dtype)
    dloc, dA = np.empty(reads.loc.shape, x.dtype), np.empty(reads.A.shape, x.dtype)

    def points(where):
        n, part = where
        tile = reads.tile(n, part)
        found = slice(part.start * reads.points, part.stop * reads.points)
        columns[n, found], weights[n, found] = tile.rows(reads.place(n))
        d_tile, e_tile = d[n, part], e[n, part]
        for m in range(M):
            np.matmul(d_tile[m::M], by_head[m], out=e_tile[m::M])
        # ⟨dy, W'_m x + b_m⟩ at each corner
        index = columns[n, found].reshape(len(e_tile), corners)
        u = tile.new('u', len(e_tile), corners, 1)
        for some in threads.tiles(len(e_tile), max(1, GATHERED // (corners * C))):
            place = index[some].ravel()
            read = threads.scratch('read', (len(place), C), x.dtype)
            np.take(x[n], place, 0, out=read, mode='clip')
            np.matmul(read.reshape(-1, corners, C), e_tile[some, :, None], out=u[some])
        u = u[..., 0].reshape(-1, M, corners)
        np.add(u, (d_tile.reshape(-1, M, Cv) * b).sum(2)[..., None], out=u)
        u = u.reshape(-1, 4).T.copy().reshape(2, 2, -1)
        np.multiply(u, tile.inside, out=u)
        for a, gradient in zip((dloc, dA), point_gradients(tile, u)):
            a[n, part] = gradient.reshape(len(e_tile), -1)

    threads.run(points, reads.tiles)
    dx = np.empty(x.shape, x.dtype)
    # a token is as many rows as there are blocks of its channels
    blocks = C // gcd(C, CHANNELS)
    np.multiply(columns, blocks, out=columns)
    ends = reads.ends(rows)

    def clear(where):
        dx[where] = 0

    def tokens(where):
        n, block = where
        width = C // blocks
        e_block = np.ascontiguousarray(e[n, :, block * width : (block + 1) * width])
        entries = columns[n].ravel(), weights[n].ravel()
        add_transposed_product(
            ends, *entries, e_block, dx[n].reshape(-1, width)[block:]
        )

    pictures, parts = range(N), threads.tiles(S, max(1, CLEARED // C))
    threads.run(clear, list(itertools.product(pictures, parts)))
    threads.run(tokens, list(itertools.product(pictures, range(blocks))))
    weight, bias = attn.value_proj.weight, attn.value_proj.bias
    for m in range(M):
        channels = slice(m * Cv, (m + 1) * Cv)
        of_head = d[:, m::M].reshape(-1, Cv)
        weight.grad[channels] += of_head.T @ sums.read[:, m::M].reshape(-1, C)
        bias.grad[channels] += sums.inside[:, m::M].ravel() @ of_head
    return dx, dloc.reshape(core.loc.shape), dA.reshape(core.A.shape)
