"""Deformable attention on a GPU, by kernels of our own: `kernels/*.cu`.

Which kernels run, and on what, is decided by `forward_launch`, `backward_launch`,
`cells_launch` and `gather_launch`: functions of arrays that are NumPy's or CuPy's. The
steps of the ladders v1 … can all be asked for; the twins take the last that fits.
"""

import functools
import itertools

import numpy as np

from ..backend import constant, get_xp, twin
from ..ops.ms_deform_attn import (
    CoreCache,
    check_shapes,
    ms_deform_attn,
    ms_deform_attn_backward,
)
from . import cuda
from .cuda import Launch, template

FORWARD = ('v1', 'v2', 'v3', 'v4', 'v5')
BACKWARD = ('v1', 'v2', 'v3')
UNROLL = 2  # points loaded before the first is used: v4 and v5 of the forward pass


@twin(ms_deform_attn, 'cupy')
def gpu_ms_deform_attn(value, shapes, loc, A):
    """See `ops.ms_deform_attn`.

    value may be of half, bfloat16, single or double precision; loc and A of the same
    or, beside the first two, of single. Sums are of single precision, or double.
    """
    check_shapes(value, shapes, loc, A)
    shapes = tuple((int(H), int(W)) for H, W in shapes)
    if not _takes(value, shapes, loc, A):
        return ms_deform_attn.plain(value, shapes, loc, A)
    xp = get_xp(value)
    cache = CoreCache(value, shapes, loc, A)
    with value.device:
        y = xp.empty(loc.shape[:3] + value.shape[3:], value.dtype)
        if not loc.size:
            y[...] = 0
        if not (loc.size and y.size):
            return y, cache
        inputs = (cuda.contiguous(xp, a) for a in (value, loc, A))
        cuda.launch(xp, forward_launch(*inputs, _table(value, shapes), y))
    return y, cache


@twin(ms_deform_attn_backward, 'cupy')
def gpu_ms_deform_attn_backward(dy, cache):
    """See `ops.ms_deform_attn`; within `cuda.deterministic` there are no atomics.

    dvalue is summed in single precision, or double, and rounded once.
    """
    value, shapes, loc, A = cache
    if not _takes(value, shapes, loc, A):
        return ms_deform_attn_backward.plain(dy, cache)
    xp = get_xp(value)
    with value.device:
        if not (loc.size and value.size):
            return tuple(xp.zeros(a.shape, a.dtype) for a in (value, loc, A))
        dy = dy.astype(value.dtype, copy=False)
        dy, value, loc, A = (cuda.contiguous(xp, a) for a in (dy, value, loc, A))
        run = functools.partial(cuda.launch, xp)
        cache = CoreCache(value, shapes, loc, A)
        return backward(
            xp, run, dy, cache, _table(value, shapes), cuda.is_deterministic()
        )


def _takes(value, shapes, loc, A):
    """Whether the kernels take these; the plain operation takes the others."""
    kind = value.dtype.name
    allowed = {kind, 'float32'} if kind in ('float16', 'bfloat16') else {kind}
    return (
        kind in ('float16', 'bfloat16', 'float32', 'float64')
        and loc.dtype == A.dtype
        and loc.dtype.name in allowed
        and all(H > 0 and W > 0 for H, W in shapes)
    )


def levels_of(shapes):
    """Return the kernels' table: H, W, first token, first cell.

    Parameters
    ----------
    shapes : sequence of (H, W)
        The levels' sizes.

    Returns
    -------
    (L, 4) int32 array
        NumPy's. A level has H W tokens and (H + 1) (W + 1) cells.
    """
    tokens = itertools.accumulate((H * W for H, W in shapes), initial=0)
    cells = itertools.accumulate(((H + 1) * (W + 1) for H, W in shapes), initial=0)
    rows = [(*size, *first) for size, *first in zip(shapes, tokens, cells)]
    return np.array(rows, np.int32).reshape(-1, 4)


def _table(like, shapes):
    return constant(tuple(map(tuple, levels_of(shapes).tolist())), 'int32', like)


def forward_launch(value, loc, A, levels, y, step=None, unroll=UNROLL):
    """Return the launch that computes y.

    Parameters
    ----------
    value, loc, A : arrays
        As for `ops.ms_deform_attn`, contiguous and not empty.
    levels : (L, 4) int32 array
        Of `levels_of`.
    y : (N, Nq, M, Cv) array
        Written.
    step : str
        One of FORWARD; the last that fits, if not given. Heads wider than 32 loads of
        V channels, rare as they are, are left to v2.
    unroll : int
        Points that v4 and v5 load before they use one.

    Returns
    -------
    Launch

    Raises
    ------
    ValueError
        `step` is for other numbers of channels.
    """
    V, lanes = _channels(value)
    step = _step(step, FORWARD, value)
    numbers = {'v1': (), 'v2': (V,), 'v3': (V, lanes)}.get(step, (V, lanes, unroll))
    name = template(f'forward_{step}', value.dtype, loc.dtype, *numbers)
    blocks = {
        'v1': cuda.blocks(y.size),
        'v2': cuda.blocks(y.size // V),
        'v5': _head_blocks(y, lanes),
    }.get(step, _item_blocks(y, lanes))
    args = value, levels, loc, A, y, *_sizes(value, loc)
    return Launch('forward.cu', name, blocks, args)


def backward_launch(
    dy, value, loc, A, levels, dvalue, dloc, dA, step=None, scatter=True
):
    """Return the launch that computes dloc and dA, and adds to dvalue.

    Parameters
    ----------
    dy, value, loc, A, levels : arrays
        As for `forward_launch`; dy has the type of value.
    dvalue, dloc, dA : arrays
        Written. dvalue has the type of sums and is zero before; so with v1 all three.
    step : str
        One of BACKWARD; the last that fits, if not given.
    scatter : bool
        False leaves dvalue alone: `gather_launch` writes it. Not with v1.

    Returns
    -------
    Launch

    Raises
    ------
    ValueError
        `step` is for other numbers of channels.
    """
    V, lanes = _channels(value)
    step = _step(step, BACKWARD, value)
    numbers = () if step == 'v1' else (V, lanes, scatter)
    types = value.dtype, loc.dtype, sum_type(value)
    name = template(f'backward_{step}', *types, *numbers)
    blocks = {
        'v1': cuda.blocks(dy.size),
        'v2': _item_blocks(dy, lanes),
        'v3': _head_blocks(dy, lanes),
    }[step]
    args = dy, value, levels, loc, A, dvalue, dloc, dA, *_sizes(value, loc)
    return Launch('backward.cu', name, blocks, args)


def cells_launch(value, shapes, loc, levels, keys):
    """Return the launch that writes the points' keys.

    Parameters
    ----------
    value, shapes, loc, levels
        As for `forward_launch`.
    keys : (N·Nq·M·L·K,) int64 array
        Written.

    Returns
    -------
    Launch
    """
    name = template('cells', value.dtype, loc.dtype)
    *sizes, _, _ = _sizes(value, loc)
    args = levels, loc, keys, *sizes, *map(np.int32, plan(shapes, loc))
    return Launch('gather.cu', name, cuda.blocks(keys.size), args)


def gather_launch(dy, shapes, loc, A, levels, keys, starts, dvalue):
    """Return the launch that writes dvalue, from sorted keys.

    Parameters
    ----------
    dy, shapes, loc, A, levels
        As for `backward_launch`.
    keys : (N·Nq·M·L·K,) int64 array
        Sorted.
    starts : (N·M·cells + 1,) int64 array
        Where in keys each cell's begin.
    dvalue : (N, S, M, Cv) array
        Written.

    Returns
    -------
    Launch
    """
    name = template('gather', dy.dtype, loc.dtype, *_channels(dy))
    sizes = *_sizes(dvalue, loc), *map(np.int32, plan(shapes, loc))
    args = dy, levels, loc, A, keys, starts, dvalue, *sizes
    N, S, M, _ = dvalue.shape
    return Launch('gather.cu', name, N * M * cuda.blocks(32 * S), args)


def plan(shapes, loc):
    """Return (cells, bits): cells of one head, and bits that hold any q·K + k.

    Parameters
    ----------
    shapes : sequence of (H, W)
        The levels' sizes.
    loc : (N, Nq, M, L, K, 2) array
        Only its shape matters.

    Returns
    -------
    cells, bits : int
        Cells are those of all levels together.
    """
    Nq, K = loc.shape[1], loc.shape[4]
    return sum((H + 1) * (W + 1) for H, W in shapes), (Nq * K - 1).bit_length()


def backward(xp, run, dy, cache, levels, deterministic=False, step=None):
    """Compute the gradients of Eq. 3.

    Parameters
    ----------
    xp : module
        The arrays' library.
    run : callable
        Runs launches, in order.
    dy : (N, Nq, M, Cv) array
        ∂loss/∂y.
    cache : CoreCache
        Of contiguous arrays, none of them empty; dy has the type of value.
    levels : (L, 4) int32 array
        Of `levels_of`.
    deterministic : bool
        Whether dvalue is gathered, in a fixed order, and not scattered by atomics.
    step : str
        Of `backward_launch`.

    Returns
    -------
    dvalue, dloc, dA : arrays
        As of `ops.ms_deform_attn_backward`.
    """
    value, _, loc, A = cache
    inputs = dy, value, loc, A, levels
    if deterministic:
        dloc, dA = (xp.empty(a.shape, a.dtype) for a in (loc, A))
        untouched = xp.empty(1, sum_type(value))
        run(backward_launch(*inputs, untouched, dloc, dA, step, scatter=False))
        return gathered(xp, run, dy, cache, levels), dloc, dA
    dvalue = xp.zeros(value.shape, sum_type(value))
    if step == 'v1':
        dloc, dA = (xp.zeros(a.shape, sum_type(value)) for a in (loc, A))
    else:
        dloc, dA = (xp.empty(a.shape, a.dtype) for a in (loc, A))
    run(backward_launch(*inputs, dvalue, dloc, dA, step))
    pairs = (dvalue, value), (dloc, loc), (dA, A)
    return tuple(a.astype(like.dtype, copy=False) for a, like in pairs)


def gathered(xp, run, dy, cache, levels):
    """Return dvalue, with the same bits each time: see `kernels/gather.cu`.

    Parameters
    ----------
    xp, run, dy, cache, levels
        As for `backward`.

    Returns
    -------
    (N, S, M, Cv) array
    """
    value, shapes, loc, A = cache
    keys = xp.empty(A.size, np.int64)
    run(cells_launch(value, shapes, loc, levels, keys))
    keys.sort()
    cells, bits = plan(shapes, loc)
    N, _, M, _ = value.shape
    first_keys = xp.arange(N * M * cells + 1, dtype=np.int64) << bits
    starts = xp.searchsorted(keys, first_keys)
    dvalue = xp.empty(value.shape, value.dtype)
    run(gather_launch(dy, shapes, loc, A, levels, keys, starts, dvalue))
    return dvalue


def sum_type(value):
    """Return the dtype of sums: single precision, double for double.

    Parameters
    ----------
    value : (N, S, M, Cv) array
        Only its type matters.

    Returns
    -------
    dtype
    """
    return np.dtype(np.float64 if value.dtype == np.float64 else np.float32)


def _channels(value):
    return cuda.channels(value.shape[3], value.itemsize)


def _step(step, ladder, value):
    """The step asked for, or the last; v2 where a head does not fit the lanes."""
    V, lanes = _channels(value)
    fits = value.shape[3] <= V * lanes
    step = step or (ladder[-1] if fits else 'v2')
    if step > 'v2' and not fits:
        raise ValueError(
            f'{step} has {V * lanes} channels a head, not {value.shape[3]}'
        )
    return step


def _item_blocks(y, lanes):
    """Blocks for `lanes` threads a query and head, in the order of y."""
    N, Nq, M, _ = y.shape
    return cuda.blocks(N * Nq * M * lanes)


def _head_blocks(y, lanes):
    """The same where a block has queries of one head alone."""
    N, Nq, M, _ = y.shape
    return N * M * cuda.blocks(Nq * lanes)


def _sizes(value, loc):
    """The kernels' N, Nq, M, L, K, S, Cv."""
    N, S, M, Cv = value.shape
    _, Nq, _, L, K, _ = loc.shape
    return tuple(map(np.int32, (N, Nq, M, L, K, S, Cv)))
