"""3×3 convolutions with 4/9 of the multiplications (Winograd's F(2×2, 3×3)).

Four neighbouring outputs y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A come from a 4×4 patch d of the
input and the kernel g: 16 products for 36. Summed over channels, ⊙ is 16 matrix
products, one for each element of the patch. The transforms only add and halve, so the
error stays near the direct sum's in single precision.
"""

import numpy as np

from .. import threads

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
LEAST = 128  # channels; with fewer the transforms cost more than they save,
LEAST_FAR = 48  # … unless the input is beyond the caches: windows are nine reads of it
FAR = 1 << 21  # elements
PIXELS = 1 << 12  # output pixels of a tile: 16 products with a quarter as many rows


def transformed(W):
    """Return G g Gᵀ of a kernel.

    Parameters
    ----------
    W : (3, 3, I, O) array
        g for each pair of channels.

    Returns
    -------
    (16, I, O) array
        Of the kernel's type.
    """
    I, O = W.shape[2:]
    GG = np.kron(G, G).astype(W.dtype)
    return (GG @ np.ascontiguousarray(W).reshape(9, -1)).reshape(16, I, O)


def patches(columns):
    """Return Bᵀ d B of the input's 4×4 patches, in scratch memory.

    Parameters
    ----------
    columns : (2, n, 2 h + 2, w + 1, I) array
        The bordered input's even columns and its odd ones: so every sum below runs
        along memory. 2 h and 2 w are the output's rows and columns, rounded up to even
        numbers.

    Returns
    -------
    (16, n·h·w, I) array
        Good until this thread's next call.
    """
    _, n, height, width, I = columns.shape
    h, w = height // 2 - 1, width - 1
    dtype = columns.dtype
    rows = threads.scratch('winograd_rows', (4, 2, n, h, w + 1, I), dtype)
    _input_transform([columns[:, :, i : i + 2 * h : 2] for i in range(4)], rows)
    out = threads.scratch('winograd_patches', (4, 4, n, h, w, I), dtype)
    even, odd = rows[:, 0], rows[:, 1]
    ends = slice(w), slice(1, None)
    d = [part[..., end, :] for end in ends for part in (even, odd)]
    _input_transform(d, out.swapaxes(0, 1))
    return out.reshape(16, -1, I)


def convolve(patches, U, out):
    """Write the convolution of an input into out.

    Parameters
    ----------
    patches : (16, n·h·w, I) array
        Of `patches`.
    U : (16, I, O) array
        Of `transformed`.
    out : (n, rows, columns, O) array
        Written; rows and columns may be odd.
    """
    n, height, width, O = out.shape
    h, w = (height + 1) // 2, (width + 1) // 2
    m = threads.scratch('winograd_m', (4, 4, n, h, w, O), out.dtype)
    np.matmul(patches, U, out=m.reshape(16, -1, O))
    rows = threads.scratch('winograd_out', (2, 4, n, h, w, O), out.dtype)
    _output_transform(m, rows)
    whole = out
    if (height, width) != (2 * h, 2 * w):  # the last row or column has no partner
        whole = threads.scratch('winograd_whole', (n, 2 * h, 2 * w, O), out.dtype)
    for i in range(2):
        _output_transform(rows[i], [whole[:, i::2, 0::2], whole[:, i::2, 1::2]])
    if whole is not out:
        out[...] = whole[:, :height, :width]


def kernel_products(patches, dy, out):
    """Write what `kernel_gradient` takes for a tile into out, and return it.

    ∂y/∂g turned round: dg = Gᵀ [Σ (Bᵀ d B) ⊙ (A dy Aᵀ)] G, summed over patches by 16
    matrix products. A dy is dy₀, dy₀ + dy₁, dy₀ − dy₁ and −dy₁; the last one's sign
    is left to `kernel_gradient`.

    Parameters
    ----------
    patches : (16, n·h·w, I) array
        Of `patches`.
    dy : (n, rows, columns, O) array
        ∂loss/∂y of the tile; rows and columns may be odd.
    out : (16, I, O) array
        Written.

    Returns
    -------
    out : (16, I, O) array
        Tiles' are to be added up.
    """
    n, height, width, O = dy.shape
    h, w = (height + 1) // 2, (width + 1) // 2
    columns = threads.scratch('winograd_dy', (2, n, 2 * h, w, O), dy.dtype)
    for i, part in enumerate(columns):
        some = width // 2 if i else w
        part[:, :height, :some] = dy[:, :, i::2]
        part[:, height:] = 0
        part[:, :, some:] = 0
    rows = threads.scratch('winograd_drows', (4, 2, n, h, w, O), dy.dtype)
    _gradient_transform(columns[:, :, 0::2], columns[:, :, 1::2], rows)
    D = threads.scratch('winograd_D', (4, 4, n, h, w, O), dy.dtype)
    _gradient_transform(rows[:, 0], rows[:, 1], D.swapaxes(0, 1))
    return np.matmul(patches.swapaxes(1, 2), D.reshape(16, -1, O), out=out)


def kernel_gradient(sums):
    """Return dg from the sums of `kernel_products`.

    Parameters
    ----------
    sums : (16, I, O) array
        Over all tiles.

    Returns
    -------
    dg : (3, 3, I, O) array
        ∂loss/∂g.
    """
    signed = G * np.array([[1], [1], [1], [-1]])
    GG = np.kron(signed, signed).astype(sums.dtype)
    return (GG.T @ sums.reshape(16, -1)).reshape(3, 3, *sums.shape[1:])


def _input_transform(d, out):
    """Out = Bᵀ d, over four slices."""
    np.subtract(d[0], d[2], out=out[0])
    np.add(d[1], d[2], out=out[1])
    np.subtract(d[2], d[1], out=out[2])
    np.subtract(d[1], d[3], out=out[3])


def _output_transform(m, out):
    """Out = Aᵀ m: m0 + m1 + m2 and m1 − m2 − m3; m is overwritten."""
    np.add(m[0], m[1], out=m[0])
    np.add(m[0], m[2], out=out[0])
    np.subtract(m[1], m[2], out=m[1])
    np.subtract(m[1], m[3], out=out[1])


def _gradient_transform(first, second, out):
    """Out = A (first, second), but for the last one's sign."""
    out[0] = first
    np.add(first, second, out=out[1])
    np.subtract(first, second, out=out[2])
    out[3] = second
