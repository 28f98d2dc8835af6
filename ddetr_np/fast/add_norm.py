"""Residual, dropout and norm in one go over tiles of rows."""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.add_norm import AddNormCache, add_norm, add_norm_backward
from ..ops.dropout import DRAWN
from ..ops.norm import EPS, NormCache
from .dropout import drop_rows
from .norm import layer_norm_backward_rows, layer_norm_rows
from .rows import alike, fits, matrix, row_tiles


@twin(add_norm)
def fast_add_norm(x, y, weight, bias, p=0.0, key=None, eps=EPS):
    """See `ops.add_norm`."""
    if not (fits(x, y, weight, bias) and alike(x, y)):
        return add_norm.plain(x, y, weight, bias, p, key, eps)
    rows, others = matrix(x), matrix(y)
    n, C = rows.shape
    x_hat, z = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)
    inv = np.empty((n, 1), x.dtype)
    dropped = (p, key) if key is not None and p > 0 else None

    def task(part):
        total = x_hat[part]
        if dropped:
            drop_rows(others[part], dropped, part.start, total)
            np.add(rows[part], total, out=total)
        else:
            np.add(rows[part], others[part], out=total)
        inv[part] = layer_norm_rows(total, weight, bias, eps, total, z[part])

    threads.run(task, row_tiles(n, C, DRAWN))
    norm = NormCache(x_hat.reshape(x.shape), inv.reshape(*x.shape[:-1], 1), weight)
    return z.reshape(x.shape), AddNormCache(norm, dropped)


@twin(add_norm_backward)
def fast_add_norm_backward(dz, cache):
    """See `ops.add_norm`."""
    (x_hat, inv, weight), dropped = cache
    if not (fits(dz, x_hat, inv, weight) and alike(dz, x_hat)):
        return add_norm_backward.plain(dz, cache)
    drows, hat, inv = matrix(dz), matrix(x_hat), inv.reshape(-1, 1)
    n, C = drows.shape
    dx = np.empty(drows.shape, dz.dtype)
    dy = np.empty(drows.shape, dz.dtype) if dropped else dx
    parts = row_tiles(n, C, DRAWN)
    sums = np.empty((len(parts), 2, C), dz.dtype)

    def task(i):
        part = parts[i]
        sums[i] = layer_norm_backward_rows(
            drows[part], hat[part], inv[part], weight, dx[part]
        )
        if dropped:
            drop_rows(dx[part], dropped, part.start, dy[part])

    threads.run(task, range(len(parts)))
    return dx.reshape(dz.shape), dy.reshape(dz.shape), *sums.sum(0)
