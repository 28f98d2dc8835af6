"""Deformable attention on the CPU, as a sparse matrix product.

For one picture and head, let row q of a sparse matrix hold the corner weights A g of
the query's 4 L K corner reads, each in the column of the pixel it reads. Then

    y = matrix · value,    dvalue = matrixᵀ · dy.

SciPy has both products; what is left is to make the rows, tile by tile. A head's values
are copied for that, and each map gets a border of two zero pixels: points outside read
zeros like any other; no corner needs a mask. The few queries of a decoder read the
values where they are instead: copying all of them would take longer than the rest.

In an encoder, where the queries are the maps' own pixels, those near each other in the
picture go into a tile together, whatever their levels: they read the same values.
"""

import functools
import itertools
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
POINTS_BACK = 1 << 17  # in the backward pass, which has more steps between its products
PRODUCT = 1 << 14  # points of a product: fewer, whose values stay in the cache
READ = 1 << 19  # elements of value gathered at a time in the backward pass
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
            From an array (total, Cv) to the rows' (rows, W, Cv) in it.
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

    def clear_borders(self, a):
        """Write zeros into the borders of maps (…, total, Cv)."""
        for (H, _), pitch, start, end in zip(
            self.sizes, self.pitch, self.starts, self.ends
        ):
            inside = a[..., start + BORDER * pitch : start + (BORDER + H) * pitch, :]
            inside.reshape(*a.shape[:-2], H, pitch, -1)[..., :BORDER, :] = 0
            a[..., start : start + BORDER * pitch, :] = 0
            a[..., start + (BORDER + H) * pitch : end, :] = 0

    def border(self, value, a):
        """Copy the values (S, Cv) of one head into a, (total, Cv), zeros around."""
        self.clear_borders(a)
        if value.strides[-1] != value.itemsize:
            value = np.ascontiguousarray(value)
        pixels = _whole(value)
        for tokens, level in self.inside(_whole(a)):
            level[...] = pixels[tokens].reshape(level.shape)


class _Places:
    """Where in the values a bordered map's pixels are, and that its border is nowhere.

    Heads stand side by side in a token: a head's row for it is its number times M.
    """

    def __init__(self, maps, value):
        N, _, M, Cv = value.shape
        self.rows = np.ascontiguousarray(value).reshape(N, -1, Cv)
        row = np.full((maps.total + 1, 1), -1, np.int32)
        for tokens, level in maps.inside(row):
            numbers = np.arange(tokens.start, tokens.stop)
            level[...] = M * numbers.reshape(level.shape)
        self.inside = (row.ravel() >= 0).astype(value.dtype)
        self.row = np.maximum(row.ravel(), 0)

    def __call__(self, columns, right, weights):
        """Return the rows that pixels are in, and their weights, 0 for the border's."""
        inside = self.inside[right:].take(columns)
        return self.row[right:].take(columns), weights * inside


def _few(queries, reads, S, M):
    """Whether copying the values would cost more than finding each read's place."""
    return queries * reads <= S and S * M < 2**31


class _Levels(NamedTuple):
    """Constants of the sampling points of a tile, in the order of loc and A.

    Arrays, though they repeat: NumPy runs through one long loop faster than through
    many short ones, and its maximum with a number is slow.
    """

    size: Any  # (2, points): W and H
    low: Any  # (2, points): −2, the least x and y
    pitch: Any  # (points,): pixels from one row to the next
    origin: Any  # (points,): of the map's pixel (0, 0)

    @classmethod
    def of(cls, maps, queries, K, dtype):
        origin = maps.starts + BORDER * (maps.pitch + 1)
        size = maps.sizes.T[::-1]

        def points(per_level, dtype):
            return np.tile(np.repeat(per_level, K, -1), queries).astype(dtype)

        return cls(
            *(points(a, dtype) for a in (size, np.full_like(size, -BORDER))),
            *(points(a, np.int32) for a in (maps.pitch, origin)),
        )


@functools.lru_cache(64)
def _order(shapes, Nq):
    """Return the queries in the order they are taken in, as (Nq,) rows.

    Where they are the maps' pixels, along a Z-shaped curve through the picture: a run
    of any length is a patch of all levels. Queries of another number keep their order.
    """
    if Nq != sum(H * W for H, W in shapes):
        return np.arange(Nq)
    key = []
    for H, W in shapes:
        y, x = (_spread((np.arange(n) + 0.5) / n) for n in (H, W))
        key.append((2 * y[:, None] + x).ravel())
    return np.argsort(np.concatenate(key), kind='stable')


def _spread(fraction):
    """Return the first 12 binary places of fractions, with room for others between."""
    places = (fraction * (1 << 12)).astype(int)
    return sum((places >> i & 1) << 2 * i for i in range(12))


class _Tile:
    """The corner reads of the sampling points of some queries.

    What is done alike for x and y, or for left and right, is one step on both: the
    steps are few and long, since threads take turns at beginning one.

    Attributes
    ----------
    reads : int
        Points of a query, L K.
    xy : (2, points) array
        In pixels of the level.
    A : (points,) array
    columns : (2, points) int32 array
        The left pixels of the two pairs, upper and lower, that a point lies between.
    w : (2, 2, points) array
        By axis, x and y, the weights of the first pixel or pair and of the second.
    """

    @classmethod
    def of(cls, loc, A, rows, levels):
        """Return the tile of some rows of loc (…, 2 L K), fractions, and A (…, L K)."""
        tile = cls(len(rows), A.shape[1], A.dtype, levels)
        _take(A, rows, tile.A)
        points = tile.new('points', tile.n, 2)
        _take(loc, rows, points)
        np.multiply(points.T, tile.levels.size, out=tile.xy)
        np.subtract(tile.xy, 0.5, out=tile.xy)
        tile.find_corners()
        return tile

    def __init__(self, queries, reads, dtype, levels):
        """Give arrays xy and A to fill in."""
        n = queries * reads
        self.n, self.reads, self.dtype = n, reads, dtype
        self.levels = _Levels(*(a[..., :n] for a in levels))
        self.xy, self.A = self.new('xy', 2, n), self.new('A', n)

    def find_corners(self):
        """Find the pixels that each point lies between, and their weights."""
        xy, (size, low, pitch, origin) = self.xy, self.levels
        floor = self.new('floor', 2, self.n)
        self.w = self.new('w', 2, 2, self.n)
        np.maximum(xy, low, out=xy)
        np.minimum(xy, size, out=xy)
        np.floor(xy, out=floor)
        np.subtract(xy, floor, out=self.w[:, 1])
        np.subtract(1, self.w[:, 1], out=self.w[:, 0])
        np.fmax(floor, low, out=floor)  # no pixel where x or y is not a number
        pixel = self.new('pixel', 2, self.n, dtype=np.int32)
        np.copyto(pixel, floor, casting='unsafe')
        x, y = pixel
        self.columns = self.new('columns', 2, self.n, dtype=np.int32)
        upper, lower = self.columns
        np.multiply(y, pitch, out=upper)
        np.add(upper, x, out=upper)
        np.add(upper, origin, out=upper)
        np.add(upper, pitch, out=lower)

    def new(self, name, *shape, dtype=None):
        """Return an array, the tile's own for the name, not yet filled."""
        return threads.scratch(name, shape, dtype or self.dtype)

    def corners(self, heads=1):
        """Yield (queries, columns, right, A g) of some queries' corners at a time.

        `queries` is a slice of the tile's; `right` is 1 for the pixel after `columns`.
        All four corners of some queries come before the next, that read other values.
        Where the tile has several heads, one after another, they are of one head.
        """
        pairs, weights = self.new('pairs', 2, self.n), self.new('weights', 2, 2, self.n)
        np.multiply(self.A, self.w[1], out=pairs)
        np.multiply(pairs[:, None], self.w[0], out=weights)
        rows = self.n // self.reads // heads
        parts = threads.tiles(rows, PRODUCT // self.reads)
        for head, part in itertools.product(range(heads), parts):
            queries = slice(head * rows + part.start, head * rows + part.stop)
            points = slice(queries.start * self.reads, queries.stop * self.reads)
            for columns, pair in zip(self.columns, weights):
                for right, weight in enumerate(pair):
                    yield queries, columns[points], right, weight[points]


def _whole(a):
    """Return a view (…, 1) of rows (…, C), each row one item of C numbers.

    NumPy moves a row as a whole quicker than number by number.
    """
    return a.view(np.dtype((np.void, a.shape[-1] * a.itemsize)))


def _take(a, rows, out):
    # all are in range; with mode='raise' NumPy would go through a buffer
    np.take(a, rows, 0, out=out.reshape(len(rows), -1), mode='clip')


def _by_query_and_head(a):
    """Return (N, Nq, M, …) as N arrays of rows, one a query and head."""
    N, Nq, M = a.shape[:3]
    return a.reshape(N, Nq * M, -1)


def _fits(*arrays):
    """Whether the twin takes these; the plain operation takes the others."""
    dtype = arrays[0].dtype
    return dtype in (np.float32, np.float64) and all(
        a.dtype == dtype and a.size for a in arrays
    )


@twin(ms_deform_attn)
def fast_ms_deform_attn(value, shapes, loc, A):
    """See `ops.ms_deform_attn`; a task is a tile of queries, one head, one picture."""
    check_shapes(value, shapes, loc, A)
    if not _fits(value, loc, A):
        return ms_deform_attn.plain(value, shapes, loc, A)
    N, _, M, Cv = value.shape
    Nq, L, K = loc.shape[1], loc.shape[3], loc.shape[4]
    y = np.empty((N, Nq, M, Cv), value.dtype)
    flat_y, flat_loc, flat_A = map(_by_query_and_head, (y, loc, A))
    maps, order = _Maps(shapes), _order(tuple(map(tuple, shapes)), Nq)
    queries = min(Nq, max(1, POINTS // (L * K)))
    levels = _Levels.of(maps, queries, K, value.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)
    heads = [(n, m) for n in range(N) for m in range(M)]
    places = _Places(maps, value) if _few(Nq, L * K, value.shape[1], M) else None
    if not places:
        # of all heads, so that a head is not one thread's: cores differ in speed
        values = threads.scratch('values', (N, M, maps.total, Cv), value.dtype)

        def border(where):
            n, m = where
            maps.border(value[n, :, m], values[n, m])

        threads.run(border, heads)

    def attend(where):
        n, m, part = where
        rows = order[part] * M + m
        tile = _Tile.of(flat_loc[n], flat_A[n], rows, levels)
        out = threads.scratch('out', (len(rows), Cv), value.dtype)
        out[...] = 0
        for some, columns, right, weight in tile.corners():
            if places:
                v = places.rows[n, m:]
                columns, weight = places(columns, right, weight)
            else:
                v = values[n, m, right:]
            add_product(ends, columns, weight, v, out[some])
        _whole(flat_y[n])[rows] = _whole(out)

    tiles = threads.tiles(Nq, queries)
    threads.run(attend, [(*head, part) for head in heads for part in tiles])
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
    flat_dy, flat_loc, flat_A, flat_dloc, flat_dA = map(
        _by_query_and_head, (dy, loc, A, dloc, dA)
    )
    maps, order = _Maps(shapes), _order(tuple(map(tuple, shapes)), Nq)
    queries = min(Nq, max(1, POINTS_BACK // (L * K)))
    levels = _Levels.of(maps, queries, K, value.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)

    places = _Places(maps, value) if _few(Nq, L * K, value.shape[1], M) else None
    if places:
        drows = dvalue.reshape(N, -1, Cv)

        def clear(where):
            dvalue[where] = 0

        parts = threads.tiles(value.shape[1], READ // (M * Cv))
        threads.run(clear, [(n, part) for n in range(N) for part in parts])

    def head(where):
        n, m = where
        if places:
            v, dv = places.rows[n, m:], drows[n, m:]
        else:
            v, dv = (
                threads.scratch(name, (maps.total, Cv), value.dtype)
                for name in ('value', 'dvalue')
            )
            maps.border(value[n, :, m], v)
            dv[...] = 0
        for part in threads.tiles(Nq, queries):
            rows = order[part] * M + m
            tile = _Tile.of(flat_loc[n], flat_A[n], rows, levels)
            d = threads.scratch('out', (len(rows), Cv), value.dtype)
            _take(flat_dy[n], rows, d)
            for some, columns, right, weight in tile.corners():
                if places:
                    columns, weight = places(columns, right, weight)
                    right = 0
                add_transposed_product(ends, columns, weight, d[some], dv[right:])
            gradients = _point_gradients(tile, _inner_products(tile, d, v, places))
            for flat, gradient in zip((flat_dloc, flat_dA), gradients):
                _whole(flat[n])[rows] = _whole(gradient.reshape(len(rows), -1))
        if places:
            return
        pixels = _whole(dvalue[n, :, m])
        for part, level in maps.inside(_whole(dv)):
            pixels[part] = level.reshape(-1, 1)

    threads.run(head, [(n, m) for n in range(N) for m in range(M)])
    return dvalue, dloc, dA


def _inner_products(tile, d, v, places=None):
    """u = ⟨dy_q, value⟩ at each point's corners: (2, 2, points), by row and column."""
    queries, Cv = d.shape
    reads = tile.reads
    index = tile.new('index', queries, 4, reads, dtype=np.intp)
    for i, columns in enumerate(tile.columns):
        index[:, 2 * i] = columns.reshape(queries, reads)
        np.add(index[:, 2 * i], 1, out=index[:, 2 * i + 1])
    if places:
        inside, index = places.inside.take(index), places.row.take(index)
    u = tile.new('u', queries, 4 * reads, 1)
    for part in threads.tiles(queries, READ // (4 * reads * Cv)):
        n = part.stop - part.start
        read = threads.scratch('read', (n, 4 * reads, Cv), d.dtype)
        _take(v, index[part].ravel(), read)
        np.matmul(read, d[part, :, None], out=u[part])
    if places:
        np.multiply(u, inside.reshape(u.shape), out=u)
    corners = tile.new('corners', 4, queries, reads)
    _whole(corners)[...] = _whole(u.reshape(queries, 4, reads)).transpose(1, 0, 2)
    return corners.reshape(2, 2, -1)


def _point_gradients(tile, u):
    """The slopes of the bilinear rule, and the rule itself, on the inner products u.

    Returns dloc (points, 2) and dA (points,) of the tile.
    """
    n, (W, H) = tile.n, tile.levels.size
    points = tile.new('points', n, 2)
    # what a point reads of the upper pair, and how much more of the lower
    t = np.multiply(u, tile.w[0], out=tile.new('t', 2, 2, n))
    upper, more = np.add(t[:, 0], t[:, 1], out=tile.new('pairs', 2, n))
    np.subtract(more, upper, out=more)
    slope = np.multiply(more, tile.A, out=t[0, 0])
    np.multiply(slope, H, out=points[:, 1])
    np.multiply(more, tile.w[1, 1], out=more)
    dA = np.add(upper, more, out=upper)
    # from the left to the right pixel, in both pairs
    steps = np.subtract(u[:, 1], u[:, 0], out=t[0])
    np.multiply(steps, tile.w[1], out=steps)
    slope = np.add(steps[0], steps[1], out=t[1, 0])
    np.multiply(slope, tile.A, out=slope)
    np.multiply(slope, W, out=points[:, 0])
    return points, dA
