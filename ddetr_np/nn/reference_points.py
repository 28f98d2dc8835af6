"""Where each query looks from: p̂ of Eq. 3, and what padding makes of it.

Computed in single precision, as published, then widened to the model's type.
"""

from ..backend import get_xp


def valid_ratios(masks):
    """Return (N, L, 2) float32: the unpadded share of each level's width and height.

    Parameters
    ----------
    masks : list of (N, H_l, W_l) bool arrays
        True = padding.
    """
    xp = get_xp(masks[0])
    ratios = []
    for mask in masks:
        H, W = mask.shape[1:]
        width = (~mask[:, 0]).sum(1).astype('float32') / W
        height = (~mask[:, :, 0]).sum(1).astype('float32') / H
        ratios.append(xp.stack([width, height], -1).astype('float32'))
    return xp.stack(ratios, 1)


def pixel_centres(H, W, xp):
    """Return (H·W, 2) float32: x + ½, y + ½ of a map's pixels, row by row."""
    y, x = xp.meshgrid(
        xp.arange(H, dtype='float32') + xp.float32(0.5),
        xp.arange(W, dtype='float32') + xp.float32(0.5),
        indexing='ij',
    )
    return xp.stack([x.ravel(), y.ravel()], -1)


def encoder_reference_points(shapes, ratios):
    """Return p̂ (N, S, L, 2) float32: each token's own place, on every level.

    A pixel centre is a fraction of its level's unpadded size, and that fraction of each
    level's unpadded size is where the query looks.

    Parameters
    ----------
    shapes : sequence of (H, W)
    ratios : (N, L, 2) float32 array
        Of `valid_ratios`.
    """
    xp = get_xp(ratios)
    points = []
    for l, (H, W) in enumerate(shapes):
        size = ratios[:, l] * xp.array([W, H], 'float32')
        points.append(pixel_centres(H, W, xp) / size[:, None])
    return xp.concatenate(points, 1)[:, :, None] * ratios[:, None]
