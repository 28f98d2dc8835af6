"""Deformable attention on the CPU, as a sparse matrix product.

For one picture and head, let row q of a sparse matrix hold the corner weights A g of
the query's 4 L K corner reads, each in the column of the pixel it reads. Then

    y = matrix · value,    dvalue = matrixᵀ · dy.

SciPy has both products; what is left is to make the rows, tile by tile. A head's values
are copied for that, side by side and bordered by zeros. The few queries of a decoder
read the values where they are instead: copying all of them would take longer than the
rest.
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
    Levels,
    Maps,
    Places,
    Tile,
    as_items,
    by_query_and_head,
    few_reads,
    fits,
    query_order,
    take_rows,
)
from .sparse import add_product, add_transposed_product

POINTS = 1 << 16  # sampling points in a tile: fewer, longer steps for threads to part
POINTS_BACK = 1 << 17  # in the backward pass, which has more steps between its products
READ = 1 << 19  # elements of value gathered at a time in the backward pass


def _places(maps, value, Nq, reads):
    """Return the Places to read the values of few queries in, None for many."""
    _, S, M, _ = value.shape
    return Places(maps, value.dtype, M) if few_reads(Nq, reads, S, M) else None


@twin(ms_deform_attn)
def fast_ms_deform_attn(value, shapes, loc, A):
    """See `ops.ms_deform_attn`; a task is a tile of queries, one head, one picture."""
    check_shapes(value, shapes, loc, A)
    if not fits(value, loc, A):
        return ms_deform_attn.plain(value, shapes, loc, A)
    N, _, M, Cv = value.shape
    Nq, L, K = loc.shape[1], loc.shape[3], loc.shape[4]
    y = np.empty((N, Nq, M, Cv), value.dtype)
    flat_y, flat_loc, flat_A = map(by_query_and_head, (y, loc, A))
    maps, order = Maps(shapes), query_order(tuple(map(tuple, shapes)), Nq)
    queries = min(Nq, max(1, POINTS // (L * K)))
    levels = Levels.of(maps, queries, K, value.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)
    heads = [(n, m) for n in range(N) for m in range(M)]
    places = _places(maps, value, Nq, L * K)
    if places:
        in_place = np.ascontiguousarray(value).reshape(N, -1, Cv)
    else:
        # of all heads, so that a head is not one thread's: cores differ in speed
        values = threads.scratch('values', (N, M, maps.total, Cv), value.dtype)

        def border(where):
            n, m = where
            maps.border(value[n, :, m], values[n, m])

        threads.run(border, heads)

    def attend(where):
        n, m, part = where
        rows = order[part] * M + m
        tile = Tile.of(flat_loc[n], flat_A[n], rows, levels)
        out = threads.scratch('out', (len(rows), Cv), value.dtype)
        out[...] = 0
        for some, columns, right, weight in tile.corners():
            if places:
                v = in_place[n, m:]
                columns, inside = places(columns + right)
                weight = weight * inside
            else:
                v = values[n, m, right:]
            add_product(ends, columns, weight, v, out[some])
        as_items(flat_y[n])[rows] = as_items(out)

    tiles = threads.tiles(Nq, queries)
    threads.run(attend, [(*head, part) for head in heads for part in tiles])
    return y, CoreCache(value, tuple(map(tuple, shapes)), loc, A)


@twin(ms_deform_attn_backward)
def fast_ms_deform_attn_backward(dy, cache):
    """See `ops.ms_deform_attn`; a task is one head of one picture.

    So no two tasks add to one place, and the order of each sum is always the same.
    """
    value, shapes, loc, A = cache
    if not fits(value, loc, A, dy):
        return ms_deform_attn_backward.plain(dy, cache)
    N, _, M, Cv = value.shape
    Nq, L, K = loc.shape[1], loc.shape[3], loc.shape[4]
    dvalue, dloc, dA = (np.empty(a.shape, a.dtype) for a in (value, loc, A))
    flat_dy, flat_loc, flat_A, flat_dloc, flat_dA = map(
        by_query_and_head, (dy, loc, A, dloc, dA)
    )
    maps, order = Maps(shapes), query_order(tuple(map(tuple, shapes)), Nq)
    queries = min(Nq, max(1, POINTS_BACK // (L * K)))
    levels = Levels.of(maps, queries, K, value.dtype)
    ends = np.arange(0, queries * L * K + 1, L * K, dtype=np.int32)

    places = _places(maps, value, Nq, L * K)
    if places:
        in_place = np.ascontiguousarray(value).reshape(N, -1, Cv)
        drows = dvalue.reshape(N, -1, Cv)

        def clear(where):
            dvalue[where] = 0

        parts = threads.tiles(value.shape[1], READ // (M * Cv))
        threads.run(clear, [(n, part) for n in range(N) for part in parts])

    def head(where):
        n, m = where
        if places:
            v, dv = in_place[n, m:], drows[n, m:]
        else:
            v, dv = (
                threads.scratch(name, (maps.total, Cv), value.dtype)
                for name in ('value', 'dvalue')
            )
            maps.border(value[n, :, m], v)
            dv[...] = 0
        for part in threads.tiles(Nq, queries):
            rows = order[part] * M + m
            tile = Tile.of(flat_loc[n], flat_A[n], rows, levels)
            d = threads.scratch('out', (len(rows), Cv), value.dtype)
            take_rows(flat_dy[n], rows, d)
            for some, columns, right, weight in tile.corners():
                if places:
                    columns, inside = places(columns + right)
                    weight = weight * inside
                    right = 0
                add_transposed_product(ends, columns, weight, d[some], dv[right:])
            gradients = _point_gradients(tile, _inner_products(tile, d, v, places))
            for flat, gradient in zip((flat_dloc, flat_dA), gradients):
                as_items(flat[n])[rows] = as_items(gradient.reshape(len(rows), -1))
        if places:
            return
        pixels = as_items(dvalue[n, :, m])
        for part, level in maps.inside(as_items(dv)):
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
        index, inside = places(index)
    u = tile.new('u', queries, 4 * reads, 1)
    for part in threads.tiles(queries, READ // (4 * reads * Cv)):
        n = part.stop - part.start
        read = threads.scratch('read', (n, 4 * reads, Cv), d.dtype)
        take_rows(v, index[part].ravel(), read)
        np.matmul(read, d[part, :, None], out=u[part])
    if places:
        np.multiply(u, inside.reshape(u.shape), out=u)
    corners = tile.new('corners', 4, queries, reads)
    as_items(corners)[...] = as_items(u.reshape(queries, 4, reads)).transpose(1, 0, 2)
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
