"""3×3 convolutions with 4/9 of the multiplications (Winograd's F(2×2, 3×3)).

Four neighbouring outputs y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A come from a 4×4 patch d of the
input and the kernel g: 16 products for 36. Summed over channels, ⊙ is 16 matrix
products, one for each element of the patch. The transforms only add and halve, so the
error stays near the direct sum's in single precision.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .. import threads

# the last row's sign is turned round, and with it what is summed in the end: y = m₀ + …
# and y = m₃ + … are one step
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]])
LEAST = 128  # channels; with fewer the transforms cost more than they save,
LEAST_FAR = 48  # … unless the input is beyond the caches: windows are nine reads of it
FAR = 1 << 21  # elements
SHARE = 1 << 15  # kernels worth a task
PIXELS = 1 << 10  # output pixels of a tile: 16 products with a quarter as many rows


def _input_channels(I, O):
    """Cut the kernels (I, O) into tasks."""
    return threads.tiles(I, SHARE // O)


def transformed(W, scale=None, turned=False):
    """Return G g Gᵀ of a kernel.

    Parameters
    ----------
    W : (3, 3, I, O) array
        g for each pair of channels.
    scale : (O,) array or None
        Multiplies g.
    turned : bool
        For the input's gradient: g turned by 180°, from outputs to inputs.

    Returns
    -------
    (16, I, O) array, or (16, O, I) if `turned`
        Of the kernel's type.
    """
    I, O = W.shape[2:]
    GG = np.kron(G, G).astype(W.dtype)
    if turned:
        GG = GG[:, ::-1].copy()
    W = np.ascontiguousarray(W).reshape(9, I, O)
    out = np.empty((16, I * O), W.dtype)

    def task(inputs):
        part = slice(inputs.start * O, inputs.stop * O)
        g = W.reshape(9, -1)[:, part]
        if scale is not None:
            scaled = threads.scratch('winograd_g', g.shape, W.dtype)
            np.multiply(W[:, inputs], scale, out=scaled.reshape(9, -1, O))
            g = scaled
        np.matmul(GG, g, out=out[:, part])

    threads.run(task, _input_channels(I, O))
    out = out.reshape(16, I, O)
    return out.swapaxes(1, 2) if turned else out


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
    phase, picture, row, column, element = columns.strides
    rows = threads.scratch('winograd_rows', (4, 2, n, h, w + 1, I), dtype)
    pairs = as_strided(  # rows 2 i and 2 i + 1, then 2 i + 2 and 2 i + 3
        columns,
        (2, 2, 2, n, h, w + 1, I),
        (2 * row, row, phase, picture, 2 * row, column, element),
    )
    _input_transform(*pairs, rows)
    out = threads.scratch('winograd_patches', (4, 4, n, h, w, I), dtype)
    first, phase, picture, row, column, element = rows.strides
    pairs = as_strided(
        rows,
        (2, 2, 4, n, h, w, I),
        (column, phase, first, picture, row, column, element),
    )
    _input_transform(*pairs, out.swapaxes(0, 1))
    return out.reshape(16, -1, I)


def convolve(patches, U, out, shift=None):
    """Write the convolution of an input into out.

    Parameters
    ----------
    patches : (16, n·h·w, I) array
        Of `patches`.
    U : (16, I, O) array
        Of `transformed`.
    out : (n, rows, columns, O) array
        Written; rows and columns may be odd.
    shift : (O,) array or None
        Added to every output.
    """
    n, height, width, O = out.shape
    h, w = (height + 1) // 2, (width + 1) // 2
    m = threads.scratch('winograd_m', (4, 4, n, h, w, O), out.dtype)
    np.matmul(patches, U, out=m.reshape(16, -1, O))
    if shift is not None:
        m[1, 1] += shift  # which goes into all four outputs
    rows = threads.scratch('winograd_out', (2, 4, n, h, w, O), out.dtype)
    _output_transform(m, rows)
    whole = out
    if (height, width) != (2 * h, 2 * w):  # the last row or column has no partner
        whole = threads.scratch('winograd_whole', (n, 2 * h, 2 * w, O), out.dtype)
    y = whole.reshape(n, h, 2, w, 2, O).transpose(4, 2, 0, 1, 3, 5)
    _output_transform(rows.swapaxes(0, 1), y)
    if whole is not out:
        out[...] = whole[:, :height, :width]


def kernel_products(patches, dy, out):
    """Write what `kernel_gradient` takes for a tile into out, and return it.

    ∂y/∂g turned round: dg = Gᵀ [Σ (Bᵀ d B) ⊙ (A dy Aᵀ)] G, summed over patches by 16
    matrix products. A dy is dy₀, dy₀ + dy₁, dy₀ − dy₁ and, with G's sign, dy₁.

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
    _, I, O = sums.shape
    GG = np.kron(G, G).astype(sums.dtype).T.copy()
    sums = sums.reshape(16, I * O)
    dg = np.empty((9, I * O), sums.dtype)

    def task(inputs):
        part = slice(inputs.start * O, inputs.stop * O)
        np.matmul(GG, sums[:, part], out=dg[:, part])

    threads.run(task, _input_channels(I, O))
    return dg.reshape(3, 3, I, O)


def _input_transform(first, second, out):
    """Out = Bᵀ d of d₀, d₁ and d₂, d₃."""
    np.subtract(first, second, out=out[::3])
    np.add(first[1], second[0], out=out[1])
    np.subtract(second[0], first[1], out=out[2])


def _output_transform(m, out):
    """Out = Aᵀ m: m₁ + m₂ + m₀ and m₁ − m₂ + m₃."""
    step = threads.scratch('winograd_step', (2, *m.shape[1:]), m.dtype)
    np.add(m[1], m[2], out=step[0])
    np.subtract(m[1], m[2], out=step[1])
    np.add(step, m[::3], out=out)


def _gradient_transform(first, second, out):
    """Out = A (first, second), the last one's sign in G."""
    out[0] = first
    np.add(first, second, out=out[1])
    np.subtract(first, second, out=out[2])
    out[3] = second
