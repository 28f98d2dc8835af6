"""Deformable attention on the CPU, as a sparse matrix product.

For one picture and head, let row q of a sparse matrix hold the corner weights A g of
the query's 4 L K corner reads, each in the column of the pixel it reads. Then

    y = matrix · value,    dvalue = matrixᵀ · dy.

SciPy has both products; what is left is to make the rows, in tiles that stay in the
processor's cache. A head's values are copied for that, and each map gets a border of
two zero pixels: points outside read zeros like any other; no corner needs a mask.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.ms_deform_attn import (
    CoreCache,
    check_shapes,
    ms_deform_attn,
    ms_deform_attn_backward,
)
from .sparse import add_product, add_transposed_product

POINTS = 1 << 16  # sampling points in a tile: fewer, longer steps for threads to part
READ = 1 << 18  # elements of value gathered at a time in the backward pass
BORDER = 2  # a point held at −2 or W has both of its pixels in the border


class _Maps:
    """The levels of one head, bordered, as (pixels, Cv) in one array.

    Rows of a map share their borders: what is right of one is left of the next.
    """

    def __init__(self, shapes):
        self.sizes = np.array(shapes).reshape(-1, 2)
        H, W = self.sizes.T
        self.pitch = W + BORDER
        pixels = (H + 2 * BORDER) * self.pitch + BORDER
        self.ends = np.cumsum(pixels)
        self.starts = self.ends - pixels
        self.total = int(pixels.sum())

    def zeros(self, name, Cv, dtype):
        a = threads.scratch(name, (self.total, Cv), dtype)
        a[...] = 0
        return a

    def inside(self, a):
        """Yield (tokens, map): each level's slice of S, its (H, W, Cv) in a."""
        token = 0
        for (H, W), pitch, start in zip(self.sizes, self.pitch, self.starts):
            level = a[start : start + (H + 2 * BORDER) * pitch]
            level = level.reshape(H + 2 * BORDER, pitch, -1)
            yield slice(token, token + H * W), level[BORDER:-BORDER, BORDER:]
            token += H * W

    def rows(self, tokens):
        """Cut the levels into whole rows of about as many tokens.

        Yields
        ------
        slice
            Of S.
        callable
            From an array like `zeros`' to the rows' (rows, W, Cv) in it.
        """
        token = 0
        for level, (H, W) in enumerate(self.sizes):
            for part in threads.tiles(H, tokens // W):
                start = token + part.start * W

                def interior(a, level=level, part=part):
                    (_, whole) = list(self.inside(a))[level]
                    return whole[part]

                yield slice(start, token + part.stop * W), interior
            token += H * W

    def bordered(self, name, value):
        """Return the values (S, Cv) of one head, copied and bordered."""
        a = self.zeros(name, value.shape[-1], value.dtype)
        for tokens, level in self.inside(a):
            level[...] = value[tokens].reshape(level.shape)
        return a


class _Levels(NamedTuple):
    """Constants of the sampling points of a tile, in the order of loc and A.

    Arrays, though they repeat: NumPy runs through one long loop faster than through
    many short ones, and its maximum with a number is slow.
    """

    W: Any
    H: Any
    low: Any  # −2: the least x and y
    pitch: Any  # pixels from one row to the next
    origin: Any  # of the map's pixel (0, 0)

    @classmethod
    def of(cls, maps, queries, K, dtype):
        H, W = maps.sizes.T
        origin = maps.starts + BORDER * (maps.pitch + 1)
        low = np.full(len(H), -BORDER)

        def points(per_level, dtype):
            return np.tile(np.repeat(per_level, K), queries).astype(dtype)

        return cls(
            *(points(a, dtype) for a in (W, H, low)),
            *(points(a, np.int32) for a in (maps.pitch, origin)),
        )


class _Tile:
    """The corner reads of the sampling points of some queries.

    Attributes
    ----------
    upper, lower : (points,) int32 arrays
        The left pixels of the two pairs that a point lies between.
    wx, wy : (points,) arrays
        Weights of the right pixels and of the lower ones; 1 − these of the others.
    wx1, wy1 : (points,) arrays
        1 − wx, 1 − wy.
    A : (points,) array
    """

    @classmethod
    def of(cls, loc, A, levels):
        """Return the tile of sampling points (queries, L, K, 2) as fractions."""
        tile = cls(A.size, A.dtype, levels)
        tile.A.reshape(A.shape)[...] = A
        points = tile.new('points', size=2 * tile.n)
        points.reshape(loc.shape)[...] = loc
        points = points.reshape(-1, 2)
        for i, (at, size) in enumerate(((tile.x, levels.W), (tile.y, levels.H))):
            np.multiply(points[:, i], size[: tile.n], out=at)
            np.subtract(at, 0.5, out=at)
        tile.find_corners()
        return tile

    def __init__(self, n, dtype, levels):
        """Give arrays x, y and A to fill in; x and y in pixels of the level."""
        self.n, self.dtype = n, dtype
        self.levels = _Levels(*(a[:n] for a in levels))
        self.x, self.y, self.A = (self.new(name) for name in 'xyA')

    def find_corners(self):
        """Find the pixels that each point lies between, and their weights."""
        levels = self.levels
        x, self.wx, self.wx1 = self._axis('x', self.x, levels.W)
        y, self.wy, self.wy1 = self._axis('y', self.y, levels.H)
        self.upper, self.lower = (self.new(a, np.int32) for a in ('upper', 'lower'))
        np.copyto(self.lower, x, casting='unsafe')
        np.copyto(self.upper, y, casting='unsafe')
        np.multiply(self.upper, levels.pitch, out=self.upper)
        np.add(self.upper, self.lower, out=self.upper)
        np.add(self.upper, levels.origin, out=self.upper)
        np.add(self.upper, levels.pitch, out=self.lower)

    def new(self, name, dtype=None, size=None):
        """Return an array of the tile's points, not yet filled."""
        return threads.scratch(name, (size or self.n,), dtype or self.dtype)

    def _axis(self, axis, x, size):
        """Return ⌊x⌋, the fraction of x beyond it (where x was), one minus that."""
        floor, rest = (self.new(axis + name) for name in ('floor', 'rest'))
        low = self.levels.low
        np.maximum(x, low, out=x)
        np.minimum(x, size, out=x)
        np.floor(x, out=floor)
        np.subtract(x, floor, out=x)
        np.fmax(floor, low, out=floor)  # no pixel where x is not a number
        np.subtract(1, x, out=rest)
        return floor, x, rest

    def corners(self):
        """Yield (columns, right, A g) of the corners; right: 1 is the next pixel."""
        row, weight = self.new('row'), self.new('weight')
        for columns, w in ((self.upper, self.wy1), (self.lower, self.wy)):
            np.multiply(self.A, w, out=row)
            yield columns, 0, np.multiply(row, self.wx1, out=weight)
            yield columns, 1, np.multiply(row, self.wx, out=weight)


def _fits(*arrays):
    """Whether the twin takes these; the plain operation takes the others."""
    dtype = arrays[0].dtype
    return dtype in (np.float32, np.float64) and all(
        a.dtype == dtype and a.size for a in arrays
    )


@twin(ms_deform_attn)
def fast_ms_deform_attn(value, shapes, loc, A):
    """See `ops.ms_deform_attn`; a task is one head of one picture."""
    check_shapes(value, shapes, loc, A)
    if not _fits(value, loc, A):
        return ms_deform_attn.plain(value, shapes, loc, A)
    N, _, M, Cv = value.shape
    Nq, L, K = loc.shape[1], loc.shape[3], loc.shape[4]
    y = np.empty((N, Nq, M, Cv), value.dtype)
    maps = _Maps(shapes)
    queries = min(Nq, max(1, POINTS // (L * K)))
    levels = _Levels.of(maps, queries, K, value.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)

    def head(where):
        n, m = where
        v = maps.bordered('value', value[n, :, m])
        for part in threads.tiles(Nq, queries):
            tile = _Tile.of(loc[n, part, m], A[n, part, m], levels)
            out = threads.scratch('out', (part.stop - part.start, Cv), value.dtype)
            out[...] = 0
            for columns, right, weight in tile.corners():
                add_product(ends, columns, weight, v[right:], out)
            y[n, part, m] = out

    threads.run(head, [(n, m) for n in range(N) for m in range(M)])
    return y, CoreCache(value, tuple(map(tuple, shapes)), loc, A)


@twin(ms_deform_attn_backward)
def fast_ms_deform_attn_backward(dy, cache):
    """See `ops.ms_deform_attn`; a task is one head of one picture.

    So no two tasks add to one place, and the order of each sum is always the same.
    """
    value, shapes, loc, A = cache
    if not _fits(value, loc, A, dy):
        return ms_deform_attn_backward.plain(dy, cache)
    N, _, M, Cv = value.shape
    Nq, L, K = loc.shape[1], loc.shape[3], loc.shape[4]
    dvalue, dloc, dA = (np.empty(a.shape, a.dtype) for a in (value, loc, A))
    maps = _Maps(shapes)
    queries = min(Nq, max(1, POINTS // (L * K)))
    levels = _Levels.of(maps, queries, K, value.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)

    def head(where):
        n, m = where
        v = maps.bordered('value', value[n, :, m])
        dv = maps.zeros('dvalue', Cv, value.dtype)
        for part in threads.tiles(Nq, queries):
            tile = _Tile.of(loc[n, part, m], A[n, part, m], levels)
            d = threads.scratch('out', (part.stop - part.start, Cv), value.dtype)
            d[...] = dy[n, part, m]
            for columns, right, weight in tile.corners():
                add_transposed_product(ends, columns, weight, d, dv[right:])
            u = _inner_products(tile, d, v)
            _point_gradients(tile, u, dloc[n, part, m], dA[n, part, m])
        for tokens, level in maps.inside(dv):
            dvalue[n, tokens, m] = level.reshape(-1, Cv)

    threads.run(head, [(n, m) for n in range(N) for m in range(M)])
    return dvalue, dloc, dA


def _inner_products(tile, d, v):
    """u = ⟨dy_q, value⟩ at the four corners of each point: (4, points)."""
    queries, Cv = d.shape
    reads = tile.n // queries
    index = tile.new('index', np.intp, 4 * tile.n).reshape(queries, 4, reads)
    for i, columns in enumerate((tile.upper, tile.lower)):
        index[:, 2 * i] = columns.reshape(queries, reads)
        np.add(index[:, 2 * i], 1, out=index[:, 2 * i + 1])
    u = tile.new('u', size=4 * tile.n).reshape(queries, 4 * reads, 1)
    for part in threads.tiles(queries, READ // (4 * reads * Cv)):
        n = part.stop - part.start
        read = threads.scratch('read', (n, 4 * reads, Cv), d.dtype)
        # all are in range; with mode='raise' NumPy would go through a buffer
        np.take(v, index[part].reshape(n, -1), 0, out=read, mode='clip')
        np.matmul(read, d[part, :, None], out=u[part])
    corners = tile.new('corners', size=4 * tile.n).reshape(4, queries, reads)
    corners[...] = u.reshape(queries, 4, reads).transpose(1, 0, 2)
    return corners.reshape(4, -1)


def _point_gradients(tile, u, dloc, dA):
    """The bilinear rule, and its slopes, on the inner products u."""
    upper, right, lower, diagonal = u
    a, b, c = (tile.new(name) for name in ('a', 'b', 'c'))
    points = tile.new('points', size=2 * tile.n)
    # what a point reads of the upper pair, and how much more of the lower
    for pair, out in (((upper, right), a), ((lower, diagonal), b)):
        np.multiply(pair[0], tile.wx1, out=out)
        np.multiply(pair[1], tile.wx, out=c)
        np.add(out, c, out=out)
    np.subtract(b, a, out=c)
    np.multiply(c, tile.A, out=b)
    np.multiply(b, tile.levels.H, out=points[1::2])
    np.multiply(c, tile.wy, out=c)
    np.add(a, c, out=a)
    dA[...] = a.reshape(dA.shape)
    # from the left to the right pixel, in both pairs
    np.subtract(right, upper, out=a)
    np.subtract(diagonal, lower, out=b)
    np.multiply(a, tile.wy1, out=a)
    np.multiply(b, tile.wy, out=b)
    np.add(a, b, out=a)
    np.multiply(a, tile.A, out=a)
    np.multiply(a, tile.levels.W, out=points[0::2])
    dloc[...] = points.reshape(dloc.shape)
