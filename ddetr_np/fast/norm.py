"""Batch, layer and group normalisation in tiles of rows."""

import numpy as np

from .. import threads
from ..backend import twin
from ..ops.norm import (
    EPS,
    NormCache,
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
)
from .rows import alike, fits, matrix, row_tiles, tile_sums


def layer_norm_rows(x, weight, bias, eps, x_hat, y):
    """Normalise the rows of a tile; return 1/σ.

    Parameters
    ----------
    x : (rows, C) array
        Of single or double precision.
    weight, bias : (C,) arrays
        Of all rows.
    eps : float
        Added to the variance.
    x_hat : (rows, C) array
        Written: (x − mean) / σ. It may be x.
    y : (rows, C) array
        Written: x_hat · weight + bias. It may be x_hat.

    Returns
    -------
    inv : (rows, 1) array
        1/σ, with σ = √(var + eps).
    """
    C = x.shape[1]
    mean = x @ np.ones((C, 1), x.dtype)
    mean /= C  # not a sum of rounded shares: equal numbers are their mean
    np.subtract(x, mean, out=x_hat)
    var = np.einsum('ij,ij->i', x_hat, x_hat)[:, None]
    inv = 1 / np.sqrt(var / C + x.dtype.type(eps))
    np.multiply(x_hat, inv, out=x_hat)
    np.multiply(x_hat, weight, out=y)
    np.add(y, bias, out=y)
    return inv


@twin(layer_norm)
def fast_layer_norm(x, weight, bias, eps=EPS):
    """See `ops.norm`."""
    if not fits(x, weight, bias):
        return layer_norm.plain(x, weight, bias, eps)
    rows = matrix(x)
    x_hat, y = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)
    inv = np.empty((len(rows), 1), x.dtype)

    def task(part):
        inv[part] = layer_norm_rows(
            rows[part], weight, bias, eps, x_hat[part], y[part]
        )

    threads.run(task, row_tiles(*rows.shape))
    inv = inv.reshape(*x.shape[:-1], 1)
    return y.reshape(x.shape), NormCache(x_hat.reshape(x.shape), inv, weight)


def layer_norm_backward_rows(dy, x_hat, inv, weight, dx):
    """The rows of a tile; return their share of the gradients of weight and bias.

    Parameters
    ----------
    dy, x_hat : (rows, C) arrays
        ∂loss/∂y, and (x − mean) / σ.
    inv : (rows, 1) array
        1/σ.
    weight : (C,) array
        Of all rows.
    dx : (rows, C) array
        Written; it may be dy.

    Returns
    -------
    sums : (2, C) array
        Σ dy ⊙ x_hat and Σ dy.
    """
    n, C = dy.shape
    product = threads.scratch('product', dy.shape, dy.dtype)
    np.multiply(dy, x_hat, out=product)
    # products with ones and weights: the BLAS sums both ways, NumPy only along rows
    ones, over_C = np.ones((1, n), dy.dtype), weight[:, None] / C
    sums = np.concatenate([ones @ product, ones @ dy])
    mean, slope = dy @ over_C, product @ over_C
    np.multiply(dy, weight, out=dx)
    np.subtract(dx, mean, out=dx)
    np.subtract(dx, np.multiply(x_hat, slope, out=product), out=dx)
    np.multiply(dx, inv, out=dx)
    return sums


@twin(layer_norm_backward)
def fast_layer_norm_backward(dy, cache):
    """See `ops.norm`."""
    x_hat, inv, weight = cache
    if not (fits(dy, x_hat, inv, weight) and alike(dy, x_hat)):
        return layer_norm_backward.plain(dy, cache)
    drows, rows, inv = matrix(dy), matrix(x_hat), inv.reshape(-1, 1)
    dx = np.empty(rows.shape, dy.dtype)
    parts = row_tiles(*rows.shape)
    sums = np.empty((len(parts), 2, rows.shape[1]), dy.dtype)

    def task(i):
        part = parts[i]
        sums[i] = layer_norm_backward_rows(
            drows[part], rows[part], inv[part], weight, dx[part]
        )

    threads.run(task, range(len(parts)))
    return dx.reshape(dy.shape), *sums.sum(0)


def _group_means(sums, n, groups):
    """Return (C,): each group's mean of n pixels, for each of its channels."""
    per_group = sums.reshape(groups, -1)
    mean = per_group.mean(1) / n
    return np.repeat(mean, per_group.shape[1])


@twin(group_norm)
def fast_group_norm(x, weight, bias, groups, eps=EPS):
    """See `ops.norm`; a mean first and then a variance about it, as there."""
    if not fits(x, weight, bias):
        return group_norm.plain(x, weight, bias, groups, eps)
    N, H, W, C = x.shape
    rows = np.ascontiguousarray(x).reshape(N, H * W, C)
    x_hat, y = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)
    inv = np.empty((N, 1, 1, groups, 1), x.dtype)
    parts = row_tiles(H * W, C)
    for n in range(N):
        hat, out = x_hat[n], y[n]
        mean = _group_means(tile_sums(rows[n]), H * W, groups)

        def centre(part, n=n, hat=hat, mean=mean):
            np.subtract(rows[n, part], mean, out=hat[part])

        threads.run(centre, parts)
        var = _group_means(tile_sums(hat, hat), H * W, groups)
        scale = 1 / np.sqrt(var + x.dtype.type(eps))
        inv[n, 0, 0, :, 0] = scale[:: C // groups]

        def finish(part, hat=hat, out=out, scale=scale):
            np.multiply(hat[part], scale, out=hat[part])
            np.multiply(hat[part], weight, out=out[part])
            np.add(out[part], bias, out=out[part])

        threads.run(finish, parts)
    x_hat = x_hat.reshape(N, H, W, groups, C // groups)
    return y.reshape(x.shape), NormCache(x_hat, inv, weight)


@twin(group_norm_backward)
def fast_group_norm_backward(dy, cache):
    """See `ops.norm`."""
    x_hat, inv, weight = cache
    N, H, W, groups, width = x_hat.shape
    C = groups * width
    if not fits(dy, x_hat, inv, weight) or dy.shape != (N, H, W, C):
        return group_norm_backward.plain(dy, cache)
    drows, rows = (np.ascontiguousarray(a).reshape(N, H * W, C) for a in (dy, x_hat))
    dx = np.empty(rows.shape, dy.dtype)
    dweight, dbias = np.zeros(C, dy.dtype), np.zeros(C, dy.dtype)
    for n in range(N):
        # Σ dy x̂ and Σ dy give the means of dx̂ x̂ and dx̂, and the weights' gradients
        products, sums = tile_sums(drows[n], rows[n]), tile_sums(drows[n])
        dweight += products
        dbias += sums
        slope = _group_means(products * weight, H * W, groups)
        mean = _group_means(sums * weight, H * W, groups)
        scale = np.repeat(inv[n].ravel(), width)

        def task(part, n=n, slope=slope, mean=mean, scale=scale):
            out = dx[n, part]
            product = threads.scratch('product', out.shape, out.dtype)
            np.multiply(rows[n, part], slope, out=product)
            np.multiply(drows[n, part], weight, out=out)
            np.subtract(out, mean, out=out)
            np.subtract(out, product, out=out)
            np.multiply(out, scale, out=out)

        threads.run(task, row_tiles(H * W, C))
    return dx.reshape(dy.shape), dweight, dbias


@twin(batch_norm)
def fast_batch_norm(x, weight, bias, eps=EPS):
    """See `ops.norm`; a mean first and then a variance about it, as there."""
    if not fits(x, weight, bias):
        return batch_norm.plain(x, weight, bias, eps)
    rows = matrix(x)
    n, C = rows.shape
    x_hat, y = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)
    mean = tile_sums(rows) / n

    def centre(part):
        np.subtract(rows[part], mean, out=x_hat[part])

    threads.run(centre, row_tiles(n, C))
    var = tile_sums(x_hat, x_hat) / n
    inv = 1 / np.sqrt(var + x.dtype.type(eps))

    def finish(part):
        np.multiply(x_hat[part], inv, out=x_hat[part])
        np.multiply(x_hat[part], weight, out=y[part])
        np.add(y[part], bias, out=y[part])

    threads.run(finish, row_tiles(n, C))
    cache = NormCache(x_hat.reshape(x.shape), inv.reshape(1, 1, 1, C), weight)
    return y.reshape(x.shape), cache, mean, var


@twin(batch_norm_backward)
def fast_batch_norm_backward(dy, cache):
    """See `ops.norm`; the weights' gradients are also the sums that dx needs."""
    x_hat, inv, weight = cache
    if not (fits(dy, x_hat, inv, weight) and alike(dy, x_hat)):
        return batch_norm_backward.plain(dy, cache)
    rows, drows = matrix(x_hat), matrix(dy)
    n, C = rows.shape
    dx = np.empty(rows.shape, dy.dtype)
    dweight, dbias = tile_sums(drows, rows), tile_sums(drows)
    # dx = (dy − ⟨dy⟩ − x̂ ⟨dy x̂⟩) w / σ
    mean, slope, scale = dbias / n, dweight / n, weight * inv.ravel()

    def task(part):
        product = threads.scratch('product', dx[part].shape, dy.dtype)
        np.multiply(rows[part], slope, out=product)
        np.subtract(drows[part], mean, out=dx[part])
        np.subtract(dx[part], product, out=dx[part])
        np.multiply(dx[part], scale, out=dx[part])

    threads.run(task, row_tiles(n, C))
    return dx.reshape(dy.shape), dweight, dbias
