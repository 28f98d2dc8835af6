"""3×3 convolutions with 4/9 of the multiplications (Winograd's F(2×2, 3×3)).

Four neighbouring outputs y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A come from a 4×4 patch d of the
input and the kernel g: 16 products for 36. Summed over channels, ⊙ is 16 matrix
products, one for each element of the patch. The transforms only add and halve, so the
error stays near the direct sum's in single precision.
"""

import numpy as np

from .. import threads

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
LEAST = 32  # channels; with fewer the transforms cost more than they save
PIXELS = 1 << 11  # output pixels of a tile: 16 products with a quarter as many rows


def transformed(W):
    """Return G g Gᵀ of a kernel (3, 3, I, O): (16, I, O)."""
    I, O = W.shape[2:]
    GG = np.kron(G, G).astype(W.dtype)
    return (GG @ np.ascontiguousarray(W).reshape(9, -1)).reshape(16, I, O)


def convolve(columns, U, out):
    """Write the convolution of a bordered input into out (rows, columns, O).

    Parameters
    ----------
    columns : (2, 2 h + 2, w + 1, I) array
        The input's even columns and its odd ones: so every sum below runs along memory.
        2 h and 2 w are the output's rows and columns, rounded up to even numbers.
    U : (16, I, O) array
        Of `transformed`.
    """
    h, w = columns.shape[1] // 2 - 1, columns.shape[2] - 1
    I, O = U.shape[1:]
    dtype = out.dtype
    rows = threads.scratch('winograd_rows', (4, 2, h, w + 1, I), dtype)
    d = [columns[:, i : i + 2 * h : 2] for i in range(4)]
    _input_transform(d, rows)
    patches = threads.scratch('winograd_patches', (4, 4, h, w, I), dtype)
    even, odd = rows[:, 0], rows[:, 1]
    d = [even[:, :, :w], odd[:, :, :w], even[:, :, 1:], odd[:, :, 1:]]
    _input_transform(d, patches.swapaxes(0, 1))
    m = threads.scratch('winograd_m', (4, 4, h, w, O), dtype)
    np.matmul(patches.reshape(16, -1, I), U, out=m.reshape(16, -1, O))
    rows = threads.scratch('winograd_out', (2, 4, h, w, O), dtype)
    _output_transform(m, rows)
    whole = out
    if out.shape[:2] != (2 * h, 2 * w):  # the last row or column has no partner
        whole = threads.scratch('winograd_whole', (2 * h, 2 * w, O), dtype)
    for i in range(2):
        _output_transform(rows[i], [whole[i::2, 0::2], whole[i::2, 1::2]])
    if whole is not out:
        out[...] = whole[: out.shape[0], : out.shape[1]]


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
