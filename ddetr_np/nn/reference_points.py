"""Where each query looks from: p̂ of Eq. 3, and what padding makes of it."""

from ..backend import constant, get_xp


def valid_ratios(masks, dtype='float32'):
    """Return the unpadded share of each level's width and height.

    Parameters
    ----------
    masks : list of (N, H_l, W_l) bool arrays
        True = padding.
    dtype : {'float32', 'float64'}
        Of the result.

    Returns
    -------
    ratios : (N, L, 2) array
        Of width and height, in [0, 1].
    """
    xp = get_xp(masks[0])
    ratios = []
    for mask in masks:
        H, W = mask.shape[1:]
        width = (~mask[:, 0]).sum(1, dtype=dtype) / W
        height = (~mask[:, :, 0]).sum(1, dtype=dtype) / H
        ratios.append(xp.stack([width, height], -1))
    return xp.stack(ratios, 1)


def pixel_centres(H, W, dtype, xp):
    """x + ½, y + ½ of a map's pixels, row by row.

    Parameters
    ----------
    H, W : int
        The map's size.
    dtype : {'float32', 'float64'}
        Of the result.
    xp : module
        NumPy or CuPy.

    Returns
    -------
    centres : (H·W, 2) array
        x, y in pixels from the map's top-left edge.
    """
    y, x = xp.meshgrid(
        xp.arange(H, dtype=dtype) + 0.5,
        xp.arange(W, dtype=dtype) + 0.5,
        indexing='ij',
    )
    return xp.stack([x.ravel(), y.ravel()], -1)


def encoder_reference_points(shapes, ratios):
    """Return p̂: each token's own place, on every level.

    A pixel centre is a fraction of its level's unpadded size, and that fraction of each
    level's unpadded size is where the query looks.

    Parameters
    ----------
    shapes : sequence of (H, W)
        Of the levels; Σ H·W = S.
    ratios : (N, L, 2) array
        Of `valid_ratios`.

    Returns
    -------
    p_hat : (N, S, L, 2) array
        x, y as fractions of the padded map.
    """
    xp = get_xp(ratios)
    points = []
    for l, (H, W) in enumerate(shapes):
        size = ratios[:, l] * constant((W, H), ratios.dtype, ratios)
        points.append(pixel_centres(H, W, ratios.dtype, xp) / size[:, None])
    return xp.concatenate(points, 1)[:, :, None] * ratios[:, None]
