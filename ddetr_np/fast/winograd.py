"""3×3 convolutions with a quarter of the multiplications (Winograd's F(4×4, 3×3)).

Sixteen neighbouring outputs y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A come from a 6×6 patch d of
the input and the kernel g: 36 products for 144. Summed over channels, ⊙ is 36 matrix
products, one for each element of the patches. The transforms are matrix products, too,
of Bᵀ ⊗ Bᵀ with all patches' elements, and so on.

Behind it are polynomials. A convolution has the coefficients of a product of two, which
is computed at as many points as it has coefficients and put together again (Toom and
Cook). Any points will do, but they decide how rounding errors grow: with those below to
six times the direct sum's in single precision, with the usual 0, ±1, ±2 to twelve.
"""

from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .. import threads

OUT = 4  # outputs along each axis,
PATCH = OUT + 2  # … and the inputs that they see
POINTS = 0, Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)  # and ∞
LEAST = 48  # channels: with fewer the transforms cost more than they save,
LEAST_PIXELS = 1 << 8  # … and with fewer pixels the kernel's transform alone does
SHARE = 1 << 15  # kernels worth a task
PIXELS = 1 << 10  # output pixels of a tile: 36 products with a sixteenth as many rows


def _matrices():
    """Return A (6, 4), G (6, 3) and B (6, 6), float64.

    A row of A has a point's powers, one of G, too, over its distances from the others;
    a column of B has the coefficients of the polynomial that is 0 at the others. Of ∞
    only the highest power counts.
    """
    A, G, B = (np.zeros((PATCH, n)) for n in (OUT, 3, PATCH))
    for i, p in enumerate(POINTS):
        others = [q for q in POINTS if q != p]
        distances = np.prod([p - q for q in others])
        A[i] = [p**k for k in range(OUT)]
        G[i] = [p**k / distances for k in range(3)]
        B[:-1, i] = np.poly(np.array(others, float))[::-1]
    A[-1, -1] = G[-1, -1] = 1
    B[:, -1] = np.poly(np.array(POINTS, float))[::-1]
    return A, G, B


# a patch's rows and columns at once
AA, GG, BB = (np.kron(matrix, matrix) for matrix in _matrices())
# … and a 37th product that goes into all outputs as it is
AA_AND_ONES = np.vstack([AA, np.ones(OUT**2)])


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
    (36, I, O) array, or (36, O, I) if `turned`
        Of the kernel's type.
    """
    I, O = W.shape[2:]
    G = GG[:, ::-1] if turned else GG
    G = G.astype(W.dtype, order='C')
    W = W.reshape(9, I, O)
    as_it_is = scale is None and W.flags.c_contiguous
    out = np.empty((len(G), I * O), W.dtype)

    def task(inputs):
        part = slice(inputs.start * O, inputs.stop * O)
        if as_it_is:
            g = W.reshape(9, -1)[:, part]
        else:
            g = threads.scratch('winograd_g', W[:, inputs].shape, W.dtype)
            np.multiply(W[:, inputs], 1 if scale is None else scale, out=g)
        np.matmul(G, g.reshape(9, -1), out=out[:, part])

    threads.run(task, _input_channels(I, O))
    out = out.reshape(-1, I, O)
    return out.swapaxes(1, 2) if turned else out


def patches(inside, out=None):
    """Return Bᵀ d B of the input's 6×6 patches.

    Parameters
    ----------
    inside : (n, 4 h + 2, 4 w + 2, I) array
        The bordered input. 4 h and 4 w are the output's rows and columns, rounded up to
        multiples of four.
    out : (36, n·h·w, I) array or None
        Written; matrices of contiguous rows. None: scratch memory, which is good until
        this thread's next call.

    Returns
    -------
    (36, n·h·w, I) array
    """
    n, height, width, I = inside.shape
    shape = PATCH, PATCH, n, height // OUT, width // OUT, I
    picture, row, column, element = inside.strides
    strides = row, column, picture, OUT * row, OUT * column, element
    d = threads.scratch('winograd_d', shape, inside.dtype)
    d[...] = as_strided(inside, shape, strides)
    if out is None:
        shape = PATCH**2, d[0, 0].size // I, I
        out = threads.scratch('winograd_patches', shape, d.dtype)
    B = BB.T.astype(d.dtype, order='C')
    np.matmul(B, d.reshape(PATCH**2, -1), out=out.reshape(PATCH**2, -1))
    return out


def convolve(patches, U, out, shift=None):
    """Write the convolution of an input into out.

    Parameters
    ----------
    patches : (36, n·h·w, I) array
        Of `patches`.
    U : (36, I, O) array
        Of `transformed`.
    out : (n, rows, columns, O) array
        Written; rows and columns need not be multiples of four.
    shift : (O,) array or None
        Added to every output.
    """
    n, rows, columns, O = out.shape
    h, w = -(-rows // OUT), -(-columns // OUT)
    # below the products the shift: cheaper than adding it to each output
    m = threads.scratch('winograd_d', (PATCH**2 + 1, n * h * w, O), out.dtype)
    np.matmul(patches, U, out=m[:-1])
    m[-1] = 0 if shift is None else shift
    A = AA_AND_ONES.T.astype(out.dtype, order='C')
    y = threads.scratch('winograd_y', (OUT, OUT, n, h, w, O), out.dtype)
    np.matmul(A, m.reshape(len(m), -1), out=y.reshape(OUT**2, -1))
    y = y.transpose(2, 3, 0, 4, 1, 5)
    if (rows, columns) == (OUT * h, OUT * w):
        out.reshape(y.shape)[...] = y
    else:
        whole = threads.scratch('winograd_whole', y.shape, out.dtype)
        whole[...] = y
        out[...] = whole.reshape(n, OUT * h, OUT * w, O)[:, :rows, :columns]


def kernel_products(patches, dy, out):
    """Write what `kernel_gradient` takes for a tile into out.

    ∂y/∂g turned round: dg = Gᵀ [Σ (Bᵀ d B) ⊙ (A dy Aᵀ)] G, summed over patches by 36
    matrix products.

    Parameters
    ----------
    patches : (36, n·h·w, I) array
        Of `patches`.
    dy : (n, rows, columns, O) array
        ∂loss/∂y of the tile; rows and columns need not be multiples of four.
    out : (36, I, O) array
        Written: tiles' are to be added up.
    """
    n, rows, columns, O = dy.shape
    h, w = -(-rows // OUT), -(-columns // OUT)
    whole = threads.scratch('winograd_whole', (n, OUT * h, OUT * w, O), dy.dtype)
    whole[:, :rows, :columns] = dy
    whole[:, rows:] = 0
    whole[:, :, columns:] = 0
    d = threads.scratch('winograd_y', (OUT, OUT, n, h, w, O), dy.dtype)
    d[...] = whole.reshape(n, h, OUT, w, OUT, O).transpose(2, 4, 0, 1, 3, 5)
    D = threads.scratch('winograd_d', (PATCH**2, n * h * w, O), dy.dtype)
    A = AA.astype(dy.dtype)
    np.matmul(A, d.reshape(OUT**2, -1), out=D.reshape(PATCH**2, -1))
    np.matmul(patches.swapaxes(1, 2), D, out=out)


def kernel_gradient(sums):
    """Return dg from the sums of `kernel_products`.

    Parameters
    ----------
    sums : (36, I, O) array
        Over all tiles.

    Returns
    -------
    dg : (3, 3, I, O) array
        ∂loss/∂g.
    """
    _, I, O = sums.shape
    G = GG.T.astype(sums.dtype, order='C')
    sums = sums.reshape(PATCH**2, I * O)
    dg = np.empty((9, I * O), sums.dtype)

    def task(inputs):
        part = slice(inputs.start * O, inputs.stop * O)
        np.matmul(G, sums[:, part], out=dg[:, part])

    threads.run(task, _input_channels(I, O))
    return dg.reshape(3, 3, I, O)
