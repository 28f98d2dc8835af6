"""What sampling points read: the corners they lie between, and how much of each.

A head's map gets a border of two zero pixels: points outside read zeros like any other;
no corner needs a mask. Queries are taken in an order in which those near each other in
the picture follow each other, whatever their levels: they read the same values.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import threads

PRODUCT = 1 << 14  # points of a product: few enough for their values to stay in cache
BORDER = 2  # a point held at −2 or W has both of its pixels in the border
SHIFT = 16  # bytes: products run faster on rows that do not begin with a cache line


class Maps:
    """The levels of one head, bordered, as (pixels, Cv) in one array.

    Rows of a map share their borders: what is right of one is left of the next.

    Parameters
    ----------
    shapes : sequence of (H, W)
        Of the levels; Σ H·W = S.
    """

    def __init__(self, shapes):
        self.sizes = np.array(shapes).reshape(-1, 2)
        H, W = self.sizes.T
        self.pitch = W + BORDER
        pixels = (H + 2 * BORDER) * self.pitch + BORDER
        self.ends = np.cumsum(pixels)
        self.starts = self.ends - pixels
        self.total = int(pixels.sum())

    def memory(self, name, heads, Cv, dtype, shift=SHIFT):
        """Return scratch memory for the maps of heads; see `threads.scratch`.

        Parameters
        ----------
        name : str
            Of the array.
        heads : tuple of int
            The axes before the maps', such as (N, M).
        Cv : int
            Numbers in a pixel.
        dtype : dtype
            Of the array.
        shift : int
            How far behind the start of a cache line it begins, in bytes.

        Returns
        -------
        (*heads, total, Cv) array
            Contiguous.
        """
        shape = *heads, self.total, Cv
        before = shift // np.dtype(dtype).itemsize
        a = threads.scratch(name, (before + math.prod(shape),), dtype)
        return a[before:].reshape(shape)

    def inside(self, a):
        """Yield what of an array is a level's, without borders.

        Parameters
        ----------
        a : (total, Cv) array
            Bordered maps.

        Yields
        ------
        tokens : slice
            Of S.
        level : (H, W, Cv) array
            A view.
        """
        token = 0
        for (H, W), pitch, start in zip(self.sizes, self.pitch, self.starts):
            level = a[start : start + (H + 2 * BORDER) * pitch]
            level = level.reshape(H + 2 * BORDER, pitch, -1)
            yield slice(token, token + H * W), level[BORDER:-BORDER, BORDER:]
            token += H * W

    def pixels(self):
        """Return where each token's pixel is.

        Returns
        -------
        (S,) int array
            Indices into bordered maps.
        """
        numbers = np.arange(self.total)[:, None]
        return np.concatenate([level.ravel() for _, level in self.inside(numbers)])

    def clear_borders(self, a):
        """Write zeros into the borders.

        Parameters
        ----------
        a : (..., total, Cv) array
            Bordered maps.
        """
        for (H, _), pitch, start, end in zip(
            self.sizes, self.pitch, self.starts, self.ends
        ):
            inside = a[..., start + BORDER * pitch : start + (BORDER + H) * pitch, :]
            inside.reshape(*a.shape[:-2], H, pitch, -1)[..., :BORDER, :] = 0
            a[..., start : start + BORDER * pitch, :] = 0
            a[..., start + (BORDER + H) * pitch : end, :] = 0


class Places:
    """Where in the tokens a bordered map's pixels are, and that its border is nowhere.

    Parameters
    ----------
    maps : Maps
        Of the tokens.
    dtype : dtype
        Of the weights.
    M : int
        Heads that stand side by side in a token: a head's row is its number times M.
    padding : (S,) bool array or None
        True where a token is nowhere, too.
    """

    def __init__(self, maps, dtype, M=1, padding=None):
        row = np.full((maps.total + 1, 1), -1, np.int32)
        for tokens, level in maps.inside(row):
            numbers = M * np.arange(tokens.start, tokens.stop, dtype=np.int32)
            if padding is not None:
                numbers[padding[tokens]] = -1
            level[...] = numbers.reshape(level.shape)
        inside = row.ravel() >= 0
        self._inside = inside.astype(dtype)
        # what is nowhere is read, though it does not count: from no padding if possible
        other = row[inside.argmax()] if inside.any() else 0
        self._row = np.where(inside, row.ravel(), other).astype(np.int32)

    def __call__(self, columns):
        """Return the rows that pixels are in, and 1 for each, 0 for what is nowhere."""
        return self._row.take(columns), self._inside.take(columns)


def few_reads(queries, reads, S, M):
    """Return whether copying the values would cost more than finding reads' places.

    Parameters
    ----------
    queries, reads, S, M : int
        Points are queries · reads a head, tokens S; rows are numbered by int32.

    Returns
    -------
    bool
    """
    return queries * reads <= S and S * M < 2**31


class Levels(NamedTuple):
    """Constants of the sampling points of a tile, in the order of loc and A.

    Arrays, though they repeat: NumPy runs through one long loop faster than through
    many short ones, and its maximum with a number is slow.

    Parameters
    ----------
    size : (2, points) array
        W and H.
    low : (2, points) array
        −2, the least x and y.
    pitch : (points,) int32 array
        Pixels from one row of the map to the next.
    origin : (points,) int32 array
        Of the map's pixel (0, 0).
    """

    size: Any
    low: Any
    pitch: Any
    origin: Any

    @classmethod
    def of(cls, maps, queries, K, dtype):
        """Return those of some queries, or of as many queries and heads; read-only."""
        sizes = tuple(map(tuple, maps.sizes.tolist()))
        return cls(*_levels(sizes, queries, K, np.dtype(dtype)))


@functools.lru_cache(64)
def _levels(sizes, queries, K, dtype):
    """What `Levels` hold: a pass's layers ask for the same ones."""
    maps = Maps(sizes)
    origin = maps.starts + BORDER * (maps.pitch + 1)
    size = maps.sizes.T[::-1]

    def points(per_level, dtype):
        a = np.tile(np.repeat(per_level, K, -1), queries).astype(dtype)
        a.flags.writeable = False
        return a

    return (
        *(points(a, dtype) for a in (size, np.full_like(size, -BORDER))),
        *(points(a, np.int32) for a in (maps.pitch, origin)),
    )


@functools.lru_cache(64)
def query_order(shapes, Nq):
    """Return the order that queries are taken in.

    Where they are the maps' pixels, along a Z-shaped curve through the picture: a run
    of any length is a patch of all levels. Queries of another number keep their order.

    Parameters
    ----------
    shapes : tuple of (H, W)
        Of the levels.
    Nq : int
        How many queries there are.

    Returns
    -------
    (Nq,) int array
        Their numbers.
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


class Tile:
    """The corner reads of the sampling points of some queries.

    What is done alike for x and y, or for left and right, is one step on both: the
    steps are few and long, since threads take turns at beginning one. An array takes
    the memory of one that is not needed any more, that all threads' tiles together fit
    the cache that they share.

    Parameters
    ----------
    queries : int
        Times heads: those of a head follow each other.
    reads : int
        Points of each, L K.
    dtype : dtype
        Of loc and A.
    levels : Levels
        Of as many queries at least, once for all heads.
    A : (points,) array or None
        None: one that is to be filled in, as `xy` is.
    heads : int
        One after another.

    Attributes
    ----------
    xy : (2, points) array
        In pixels of the level, until the corners are found.
    A : (points,) array
        Attention weights.
    columns : (2, points) int32 array
        The left pixels of the two pairs, upper and lower, that a point lies between.
    w : (2, 2, points) array
        By axis, x and y, the weights of the first pixel or pair and of the second.
    inside : (2, 2, points) array
        By row and column, 1 where a corner is in a map, else 0; once `rows` was called.
    """

    @classmethod
    def of(cls, loc, A, levels):
        """Return the tile of some queries.

        Parameters
        ----------
        loc : (queries, 2 L K) array
            x and y as fractions of the level's width and height.
        A : (queries, L K) array
            Read, not copied.
        levels : Levels
            Of as many queries at least.

        Returns
        -------
        Tile
        """
        tile = cls(*A.shape, A.dtype, levels, A.reshape(-1))
        np.multiply(loc.reshape(-1, 2).T, tile.levels.size, out=tile.xy)
        np.subtract(tile.xy, 0.5, out=tile.xy)
        tile.find_corners()
        return tile

    def __init__(self, queries, reads, dtype, levels, A=None, heads=1):
        n = queries * reads
        self.n, self.reads, self.dtype, self.heads = n, reads, dtype, heads
        self.levels = Levels(*(a[..., : n // heads] for a in levels))
        first, second = w = self.new('w', 2, 2, n)
        self.w = w.swapaxes(0, 1)
        self.xy = second  # whose fractions are the second's weights
        self.A = self.new('A', n) if A is None else A

    def find_corners(self):
        """Find the pixels that each point lies between, and their weights."""
        one_head = self.heads, self.n // self.heads
        xy, floor = self.xy.reshape(2, *one_head), self.new('pairs', 2, *one_head)
        size, low = (a[:, None] for a in (self.levels.size, self.levels.low))
        np.maximum(xy, low, out=xy)
        np.minimum(xy, size, out=xy)
        np.floor(xy, out=floor)
        np.subtract(xy, floor, out=xy)
        np.subtract(1, self.w[:, 1], out=self.w[:, 0])
        np.fmax(floor, low, out=floor)  # no pixel where x or y is not a number
        pixel = self.new('columns', 2, *one_head, dtype=np.int32)
        np.copyto(pixel, floor, casting='unsafe')
        x, upper = pixel
        np.multiply(upper, self.levels.pitch, out=upper)
        np.add(upper, x, out=upper)
        np.add(upper, self.levels.origin, out=upper)
        np.add(upper, self.levels.pitch, out=x)  # the lower pair's
        self.columns = pixel.reshape(2, self.n)[::-1]

    def new(self, name, *shape, dtype=None):
        """Return scratch memory, the tile's for a name; see `threads.scratch`.

        Parameters
        ----------
        name : str
            Of the array.
        *shape : int
            Its lengths.
        dtype : dtype or None
            None: the tile's.

        Returns
        -------
        numpy.ndarray
        """
        return threads.scratch(name, shape, dtype or self.dtype)

    def rows(self, places):
        """Return what all corners read, those of a point side by side.

        Parameters
        ----------
        places : Places
            Where pixels are.

        Returns
        -------
        rows : (points, 4) int32 array
            That the corners are in.
        weights : (points, 4) array
            A g.
        """
        columns = self.new('quads', 2, 2, self.n, dtype=np.int32)
        columns[:, 0] = self.columns
        np.add(self.columns, 1, out=columns[:, 1])
        rows, self.inside = places(columns)
        weights = np.multiply(self.inside, (self.A * self.w[1])[:, None])
        np.multiply(weights, self.w[0], out=weights)
        return tuple(a.reshape(4, self.n).T.copy() for a in (rows, weights))

    def corners(self):
        """Yield one corner of some queries' points at a time.

        All four corners of some queries come before the next, that read other values.

        Yields
        ------
        queries : slice
            Of the tile's, of one head.
        columns : int32 array
            Pixels of their points.
        right : int
            1 for the pixel after `columns`.
        weights : array
            A g.
        """
        pairs, weights = self.new('pairs', 2, self.n), self.new('weights', 2, 2, self.n)
        np.multiply(self.A, self.w[1], out=pairs)
        np.multiply(pairs[:, None], self.w[0], out=weights)
        rows = self.n // self.reads // self.heads
        parts = threads.tiles(rows, PRODUCT // self.reads)
        for head, part in itertools.product(range(self.heads), parts):
            queries = slice(head * rows + part.start, head * rows + part.stop)
            points = slice(queries.start * self.reads, queries.stop * self.reads)
            for columns, pair in zip(self.columns, weights):
                for right, weight in enumerate(pair):
                    yield queries, columns[points], right, weight[points]


def point_gradients(tile, u):
    """Return the slopes of the bilinear rule, and the rule itself, on inner products.

    Parameters
    ----------
    tile : Tile
        Of the points.
    u : (2, 2, points) array
        ⟨dy_q, value⟩ at the corners, by row and column; it may be overwritten.

    Returns
    -------
    dloc : (points, 2) array
    dA : (points,) array
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


def as_items(a):
    """Return a view (…, 1) of rows (…, C), each row one item of C numbers.

    NumPy moves a row as a whole quicker than number by number.

    Parameters
    ----------
    a : array
        Its last axis is contiguous.

    Returns
    -------
    array
    """
    return a.view(np.dtype((np.void, a.shape[-1] * a.itemsize)))
