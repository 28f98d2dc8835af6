"""Deformable attention on the CPU, as a sparse matrix product.

For one picture and head, let row q of a sparse matrix hold the corner weights A g of
the query's 4 L K corner reads, each in the column of the pixel it reads. Then

    y = matrix · value,    dvalue = matrixᵀ · dy.

SciPy has both products; what is left is to make the rows, tile by tile. The values are
laid out head by head for that, their maps bordered by zeros. Few queries read them
where they are instead: copying all of them would take longer than the rest.
"""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.ms_deform_attn import (
    CoreCache,
    check_shapes,
    ms_deform_attn,
    ms_deform_attn_backward,
)
from .corner_reads import (
    SHIFT,
    Levels,
    Maps,
    Places,
    Tile,
    as_items,
    few_reads,
    point_gradients,
    query_order,
)
from .rows import SHARES, fits
from .sparse import add_product, add_transposed_product

POINTS = 1 << 17  # sampling points in a tile: fewer, longer steps for threads to part
READ = 1 << 18  # elements of value gathered at a time in the backward pass: 1 MB
MOVED = 1 << 10  # queries or tokens in a task that lays out heads


def _items(a):
    """Return (N, rows, heads, …) with one item for each of these."""
    return as_items(a.reshape(*a.shape[:3], -1))[..., 0]


class _Values:
    """The values as the heads read them, each head's side by side in memory.

    Parameters
    ----------
    cache : CoreCache
    shift : int
        Where the copy begins in a cache line, in bytes.
    """

    def __init__(self, cache, shift=SHIFT):
        value, shapes, loc, _ = cache
        self.N, self.S, self.M, self.Cv = value.shape
        self.Nq, self.K = loc.shape[1], loc.shape[4]
        self.reads = loc.shape[3] * self.K
        self.dtype = value.dtype
        self.maps, self.order = Maps(shapes), query_order(shapes, self.Nq)
        # of few queries the values are read where they are
        self.places = None
        if few_reads(self.Nq, self.reads, self.S, self.M):
            self.places = Places(self.maps, self.dtype, self.M)
            self.in_place = np.ascontiguousarray(value).reshape(self.N, -1, self.Cv)
        else:
            self.pixels = self.maps.pixels()
            self.values = self.bordered('values', shift)
            self.maps.clear_borders(self.values)
            self.move_tokens((value, self.values))

    def levels(self, queries):
        """Return the `Levels` of so many queries of a head, and their rows' ends."""
        ends = np.arange(0, queries * self.reads + 1, self.reads, dtype=np.int32)
        return Levels.of(self.maps, queries, self.K, self.dtype), ends

    def bordered(self, name, shift=SHIFT):
        """Return memory for bordered maps, (N, M, total, Cv)."""
        heads = self.N, self.M
        return self.maps.memory(name, heads, self.Cv, self.dtype, shift)

    def value(self, n, m):
        """Return what a head reads, (rows, Cv)."""
        return self.in_place[n, m:] if self.places else self.values[n, m]

    def corners(self, tile):
        """Yield (queries, columns, right, A g), the columns' rows in `value`."""
        for some, columns, right, weight in tile.corners():
            if self.places:
                columns, inside = self.places(columns + right)
                yield some, columns, 0, weight * inside
            else:
                yield some, columns, right, weight

    def move_tokens(self, *pairs, back=False):
        """Copy arrays (N, S, M, Cv) to those of `bordered`, or back; in pairs."""
        parts = threads.tiles(self.S, MOVED)
        self._move(pairs, back, [(part, self.pixels[part]) for part in parts])

    def _move(self, pairs, back, where):
        pairs = [(_items(np.ascontiguousarray(a)), _items(b)) for a, b in pairs]

        def task(which):
            n, (rows, places) = which
            for by_row, by_head in pairs:
                if back:
                    by_row[n, rows] = by_head[n][:, places].swapaxes(0, 1)
                else:
                    by_head[n][:, places] = by_row[n, rows].swapaxes(0, 1)

        threads.run(task, [(n, w) for n in range(self.N) for w in where])


class _ByHead(_Values):
    """All arrays of the core, each head's side by side in memory.

    One head's numbers of a query are 128 bytes in every kilobyte as they come: tasks
    that read those alone wait for memory eight times as often as one that moves all.

    Parameters
    ----------
    cache : CoreCache
    """

    def __init__(self, cache):
        super().__init__(cache, shift=0)  # gathers run faster on whole cache lines
        self.pictures_and_heads = [(n, m) for n in range(self.N) for m in range(self.M)]
        queries = min(self.Nq, max(1, POINTS // self.reads))
        self.tiles = threads.tiles(self.Nq, queries)
        self.of_tile, self.ends = self.levels(queries)
        self.loc = self.queries('loc by head', 2 * self.reads)
        self.A = self.queries('A by head', self.reads)
        self.move_queries((cache.loc, self.loc), (cache.A, self.A))

    def queries(self, name, width):
        """Return an array for the queries in their order, (N, M, Nq, width)."""
        return threads.scratch(name, (self.N, self.M, self.Nq, width), self.dtype)

    def tile(self, n, m, part):
        """Return the `Tile` of some queries."""
        return Tile.of(self.loc[n, m, part], self.A[n, m, part], self.of_tile)

    def move_queries(self, *pairs, back=False):
        """Copy arrays (N, Nq, M, …) to those of `queries`, or back; in pairs."""
        parts = threads.tiles(self.Nq, MOVED)
        self._move(pairs, back, [(self.order[part], part) for part in parts])


@twin(ms_deform_attn)
def fast_ms_deform_attn(value, shapes, loc, A):
    """See `ops.ms_deform_attn`; a task is a tile of queries of one picture."""
    check_shapes(value, shapes, loc, A)
    if not fits(value, loc, A) or any(0 in size for size in shapes):
        return ms_deform_attn.plain(value, shapes, loc, A)
    cache = CoreCache(value, tuple(map(tuple, shapes)), loc, A)
    heads = _Values(cache)
    N, Nq, M, Cv, reads = heads.N, heads.Nq, heads.M, heads.Cv, heads.reads
    queries = max(1, min(POINTS // (M * reads), -(-Nq // SHARES)))
    levels, ends = heads.levels(queries)
    # what a head reads of a query is moved as one item
    A_items, loc_items = (
        as_items(np.ascontiguousarray(a).reshape(N, Nq * M, width))[..., 0]
        for a, width in ((A, reads), (loc, 2 * reads))
    )
    first, head = M * heads.order, np.arange(M)[:, None]
    y = np.empty(loc.shape[:3] + value.shape[3:], value.dtype)

    def attend(where):
        n, part = where
        rows, t = heads.order[part], part.stop - part.start
        # all heads at once, one after another: fewer and longer steps
        tile = Tile(M * t, reads, value.dtype, levels, heads=M)
        # in the memory of the corners' weights, which come later
        places = tile.new('weights', M, t, 2 * reads)
        for own, items in (tile.A.reshape(M, t, reads), A_items), (places, loc_items):
            out = as_items(own)[..., 0]
            np.take(items[n], first[part] + head, out=out, mode='clip')
        by_axis = places.reshape(M, t * reads, 2).transpose(2, 0, 1)
        size = tile.levels.size.reshape(2, 1, t * reads)
        np.multiply(by_axis, size, out=tile.xy.reshape(2, M, t * reads))
        np.subtract(tile.xy, 0.5, out=tile.xy)
        tile.find_corners()
        read = threads.scratch('read', (M * t, Cv), value.dtype)
        read[...] = 0
        for some, columns, right, weight in heads.corners(tile):
            v = heads.value(n, some.start // t)[right:]
            add_product(ends, columns, weight, v, read[some])
        by_query = as_items(read.reshape(M, t, Cv)).swapaxes(0, 1)
        as_items(y)[n, rows] = by_query

    tiles = threads.tapering_tiles(Nq, queries, queries // 4)
    threads.run(attend, [(n, part) for n in range(N) for part in tiles])
    return y, cache


@twin(ms_deform_attn_backward)
def fast_ms_deform_attn_backward(dy, cache):
    """See `ops.ms_deform_attn`; a task is one head of one picture.

    So no two tasks add to one place, and the order of each sum is always the same.
    """
    value, shapes, loc, A = cache
    fit = fits(value, loc, A, dy) and dy.shape == (*loc.shape[:3], value.shape[3])
    if not fit or any(0 in size for size in shapes):
        return ms_deform_attn_backward.plain(dy, cache)
    heads = _ByHead(cache)
    dvalue, dloc, dA = (np.empty(a.shape, a.dtype) for a in (value, loc, A))
    d = heads.queries('y by head', heads.Cv)
    heads.move_queries((dy, d))
    if heads.places:
        dvalues = dvalue.reshape(heads.N, -1, heads.Cv)

        def clear(where):
            dvalues[where] = 0

        parts = threads.tiles(dvalues.shape[1], READ // heads.Cv)
        threads.run(clear, [(n, part) for n in range(heads.N) for part in parts])
    else:
        dvalues = heads.bordered('dvalues')

    def head(where):
        n, m = where
        v = heads.value(n, m)
        if heads.places:
            dv = dvalues[n, m:]
        else:
            dv = dvalues[n, m]
            dv[...] = 0
        for part in heads.tiles:
            tile, d_tile = heads.tile(n, m, part), d[n, m, part]
            for some, columns, right, weight in heads.corners(tile):
                add_transposed_product(
                    heads.ends, columns, weight, d_tile[some], dv[right:]
                )
            u = _inner_products(tile, d_tile, v, heads.places)
            # in place of what they are the gradients of, which was read
            gradients = point_gradients(tile, u)
            for a, gradient in zip((heads.loc, heads.A), gradients):
                a[n, m, part] = gradient.reshape(len(d_tile), -1)

    threads.run(head, heads.pictures_and_heads)
    heads.move_queries((dloc, heads.loc), (dA, heads.A), back=True)
    if not heads.places:
        heads.move_tokens((dvalue, dvalues), back=True)
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
        index, inside = places(index)
    u = tile.new('u', queries, 4 * reads, 1)
    for part in threads.tiles(queries, READ // (4 * reads * Cv)):
        n = part.stop - part.start
        read = threads.scratch('read', (n, 4 * reads, Cv), d.dtype)
        # all are in range; with mode='raise' NumPy would go through a buffer
        np.take(v, index[part].ravel(), 0, out=read.reshape(-1, Cv), mode='clip')
        np.matmul(read, d[part, :, None], out=u[part])
    if places:
        np.multiply(u, inside.reshape(u.shape), out=u)
    corners = tile.new('corners', 4, queries, reads)
    as_items(corners)[...] = as_items(u.reshape(queries, 4, reads)).transpose(1, 0, 2)
    return corners.reshape(2, 2, -1)
