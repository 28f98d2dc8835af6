"""Deformable attention of few queries over many tokens, without a cache.

W'_m may be applied before the sum over what a head reads, or after it:

    Σ_lk A_mlqk W'_m x(p) = W'_m Σ_lk A_mlqk x(p).

Before, it is the work of all tokens, H W C²; after, of the queries alone, N_q C² (A.1
projects each sample, N_q K C²: the sum comes first here). A decoder's 300 queries read
a fraction of an encoder's tokens. Its price is that a corner is C numbers wide rather
than C / M.
"""

import numpy as np

from .. import threads
from ..backend import twin
from .corner_reads import Levels, Maps, Places, Tile
from .rows import fits
from .sparse import add_product

COST = 10  # of a multiply-accumulate of what is read, in those of a matrix product
ROWS = 1 << 10  # of queries and heads in a tile: 1 MB of what they read


@twin('ms_deform_attn.infer')
def fast_infer(attn, z, p_hat, x, shapes, padding=None):
    """See `nn.ms_deform_attn.MSDeformAttn.infer`; a task is a tile of queries.

    Parameters
    ----------
    attn : MSDeformAttn
        Whose method this stands in for.
    z, p_hat, x, shapes, padding
        As its. Where they ask for more products than all tokens' values, or are not of
        single or double precision, they are left to the plain method.

    Returns
    -------
    y : (N, Nq, C) array
    """
    M, L, K = attn.shape
    N, Nq, C = z.shape
    S, Cv = x.shape[1], C // M
    corners = 4 * Nq * M * L * K
    if not fits(x, z) or COST * corners * (C - Cv) > S * C * C:
        return type(attn).infer.plain(attn, z, p_hat, x, shapes, padding)
    loc, A, _ = attn.points(z, p_hat, shapes)
    # heads of a query follow each other: they read near each other
    loc, A = (a.reshape(N, Nq * M, -1) for a in (loc, A))
    x = np.ascontiguousarray(x)
    maps = Maps(shapes)
    if padding is None:
        places = [Places(maps, x.dtype)] * N
    else:
        places = [Places(maps, x.dtype, padding=mask) for mask in padding]
    W = attn.value_proj.weight.data.reshape(M, Cv, C).swapaxes(1, 2)
    b = attn.value_proj.bias.data.reshape(M, Cv)
    queries = max(1, min(Nq, ROWS // M))
    levels = Levels.of(maps, queries * M, K, x.dtype)
    ends = np.arange(0, 4 * queries * M * L * K + 1, 4 * L * K, dtype=np.int32)
    y = np.empty((N, Nq, M, Cv), x.dtype)

    def attend(where):
        n, part = where
        of_all = slice(part.start * M, part.stop * M)
        tile = Tile.of(loc[n, of_all], A[n, of_all], levels)
        rows, weights = tile.rows(places[n])
        read = threads.scratch('read', (len(rows) // (L * K), C), x.dtype)
        read[...] = 0
        add_product(ends, rows.ravel(), weights.ravel(), x[n], read)
        # outside the maps there is no bias, either
        inside = weights.reshape(-1, M, 4 * L * K).sum(2)
        for m in range(M):
            value = read[m::M] @ W[m]
            np.add(value, inside[:, m, None] * b[m], out=y[n, part, m])

    parts = threads.even_tiles(Nq, queries)
    threads.run(attend, [(n, part) for n in range(N) for part in parts])
    return attn.output_proj.forward(y.reshape(N, Nq, C))[0]
