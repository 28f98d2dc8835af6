"""Bilinear sampling: x(·) of Eqs. 2 and 3 at fractional positions."""

from ..backend import get_xp, scatter_add


def corners(loc, H, W):
    """Yield the bilinear neighbours of sampling points (x(·) of the paper's Eq. 2).

    Parameters
    ----------
    loc : (..., 2) array
        (x, y) in [0, 1]; (0, 0) is the map's top-left edge, not its first pixel centre.
        A point outside is met by zeros.
    H, W : int
        The map's size, pixels.

    Yields
    ------
    row : (...) int array
        Pixel y·W + x, once for each of the four corners.
    g, g_x, g_y : (...) arrays
        Weight, ∂g/∂x and ∂g/∂y per pixel; 0 outside the map.
    """
    xp = get_xp(loc)
    H, W = int(H), int(W)  # a NumPy integer would turn single precision into double
    # φ_l: (0, 0) is the centre of the first pixel. A point far outside has no
    # neighbours wherever it is: hold it where the conversion to int is defined
    x = xp.clip(loc[..., 0] * W - 0.5, -2, W)
    y = xp.clip(loc[..., 1] * H - 0.5, -2, H)
    x0, y0 = xp.floor(x), xp.floor(y)
    x -= x0  # fractions, in [0, 1); not a number stays so, and shows in the result
    y -= y0
    x0, y0 = (xp.nan_to_num(a, nan=-2).astype(xp.intp) for a in (x0, y0))
    for j in (0, 1):
        for i in (0, 1):
            column, row = x0 + i, y0 + j
            inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
            a = (x if i else 1 - x) * inside
            b = (y if j else 1 - y) * inside
            pixel = xp.clip(row, 0, H - 1) * W + xp.clip(column, 0, W - 1)
            yield pixel, a * b, b if i else -b, a if j else -a


def sample(v, loc, H, W):
    """y = Σ_corner g v[row]: the map read at points between its pixels.

    Parameters
    ----------
    v : (H·W, C) array
        A map's pixels, row by row.
    loc : (..., 2) array
        (x, y) in [0, 1].
    H, W : int
        The map's size, pixels.

    Returns
    -------
    y : (..., C) array
    cache
    """
    y = 0
    for row, g, _, _ in corners(loc, H, W):
        y = y + g[..., None] * v[row]
    return y, (v, loc, H, W)


def sample_backward(dy, cache):
    """dv[row] += g dy; dloc = Σ_corner (W ∂g/∂x, H ∂g/∂y) ⟨dy, v[row]⟩.

    Parameters
    ----------
    dy : (..., C) array
        ∂loss/∂y.
    cache
        From the forward.

    Returns
    -------
    dv : (H·W, C) array
    dloc : (..., 2) array
    """
    v, loc, H, W = cache
    xp = get_xp(dy)
    dv, dloc = xp.zeros_like(v), xp.zeros_like(loc)
    for row, g, g_x, g_y in corners(loc, H, W):
        scatter_add(dv, row.ravel(), (g[..., None] * dy).reshape(-1, v.shape[1]))
        inner = (dy * v[row]).sum(-1)
        dloc[..., 0] += W * g_x * inner
        dloc[..., 1] += H * g_y * inner
    return dv, dloc
