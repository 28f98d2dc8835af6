"""The twin for CuPy, its launches run on the CPU: what it takes, copies and returns."""

import contextlib
import sys
import types

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddetr_np import backend
from ddetr_np.fast import cuda
from ddetr_np.fast import gpu_ms_deform_attn as gpu
from ddetr_np.ops.ms_deform_attn import (
    CoreCache,
    ms_deform_attn,
    ms_deform_attn_backward,
)

SHAPES = ((3, 5), (2, 3))


class Card(contextlib.nullcontext):
    id = 0


class Array(np.ndarray):
    """NumPy's, taken for CuPy's."""

    device = Card()


def library(launched):
    """Return a module to stand as `cupy`; launches are noted."""
    cupy = types.ModuleType('cupy')
    cupy.ndarray, cupy.intp = Array, np.intp
    cupy.array = lambda a, *args: np.array(a, *args).view(Array)

    def our(function):
        return lambda *args, **options: function(*args, **options).view(Array)

    for name in 'empty zeros asarray arange searchsorted zeros_like clip floor'.split():
        setattr(cupy, name, our(getattr(np, name)))
    cupy.ascontiguousarray = our(np.ascontiguousarray)
    cupy.nan_to_num = our(np.nan_to_num)
    cupy.cuda = types.SimpleNamespace(
        Device=lambda: types.SimpleNamespace(id=0),
        using_allocator=contextlib.nullcontext,
    )
    pool = types.SimpleNamespace(malloc=None)
    cupy.get_default_memory_pool = lambda: pool

    class RawModule:
        def __init__(self, code, options, name_expressions):
            assert code.count('struct Point') == 1  # the header is in it, once
            assert options == cuda.OPTIONS
            (self.name,) = name_expressions

        def get_function(self, name):
            assert name == self.name

            def run(grid, block, args):
                assert block == (cuda.THREADS,)
                launched.append(cuda.Launch('', name, grid[0], args))

            return run

    cupy.RawModule = RawModule
    return cupy


@pytest.fixture
def launched(monkeypatch):
    """CuPy's stand-in is imported; what is launched comes to this list."""
    found = []
    monkeypatch.setitem(sys.modules, 'cupy', library(found))
    monkeypatch.setattr(backend, 'scatter_add', np.add.at)
    return found


def arguments(rng, dtype='float32', places=None, N=1, Nq=4, K=2):
    S = sum(H * W for H, W in SHAPES)
    value = rng.standard_normal((N, S, 2, 8)).astype(dtype)
    loc = rng.random((N, Nq, 2, 2, K, 2)).astype(places or dtype)
    A = rng.random((N, Nq, 2, 2, K)).astype(places or dtype)
    return tuple(a.view(Array) for a in (value, loc, A))


def kernels(launched):
    return [launch.kernel.partition('<')[0] for launch in launched]


def test_it_stands_in_for_the_operation(launched, rng):
    value, loc, A = arguments(rng)
    y, cache = ms_deform_attn(value, SHAPES, loc, A)
    assert (type(y), y.shape, y.dtype) == (Array, (1, 4, 2, 8), np.float32)
    assert isinstance(cache, CoreCache)
    assert cache.shapes == SHAPES
    assert cache.value is value
    gradients = ms_deform_attn_backward(y, cache)
    assert [g.shape for g in gradients] == [a.shape for a in (value, loc, A)]
    assert kernels(launched) == ['forward_v5', 'backward_v3']
    with cuda.deterministic():
        ms_deform_attn_backward(y, cache)
        with cuda.deterministic(False):
            ms_deform_attn_backward(y, cache)
    assert kernels(launched)[2:] == ['backward_v3', 'cells', 'gather', 'backward_v3']
    assert launched[2].kernel.endswith('false>')
    assert launched[5].kernel.endswith('true>')


def test_scalars_are_of_the_kernels_types(launched, rng):
    value, loc, A = arguments(rng)
    y, cache = ms_deform_attn(value, SHAPES, loc, A)
    with cuda.deterministic():
        ms_deform_attn_backward(y, cache)
    for launch in launched:
        for a in launch.args:
            assert isinstance(a, (Array, np.int32)), launch.kernel


@pytest.mark.parametrize(
    ('dtype', 'places', 'kernel'),
    [
        ('float64', 'float64', 'forward_v5<double, double, 2, 4, 2>'),
        ('float32', 'float32', 'forward_v5<float, float, 4, 2, 2>'),
        ('float16', 'float32', 'forward_v5<__half, float, 8, 1, 2>'),
        ('float16', 'float16', 'forward_v5<__half, __half, 8, 1, 2>'),
        ('float32', 'float64', None),
        ('float64', 'float32', None),
        ('float32', 'float16', None),
    ],
)
def test_types(dtype, places, kernel, launched, rng):
    value, loc, A = arguments(rng, dtype, places)
    y, cache = ms_deform_attn(value, SHAPES, loc, A)
    assert [launch.kernel for launch in launched] == [kernel] * bool(kernel)
    if kernel:  # dy of another type is turned into value's
        gradients = ms_deform_attn_backward(y.astype('float64'), cache)
        assert [g.dtype for g in gradients] == [dtype, places, places]


def test_arguments_are_copied_where_a_kernel_could_not_read_them(launched, rng):
    value, loc, A = arguments(rng)
    strided = np.moveaxis(np.moveaxis(value, 0, -1).copy(), -1, 0)
    odd = np.empty(loc.size + 1, loc.dtype)
    shift = 1 if odd[1:].ctypes.data % 16 else 0
    odd = odd[shift : shift + loc.size].reshape(loc.shape).view(Array)
    odd[...] = loc
    _, cache = ms_deform_attn(strided, SHAPES, odd, A)
    assert cache.value is strided
    given = launched[0].args
    assert all(a.flags.c_contiguous for a in given[:5])
    assert all(cuda.address(a) % 16 == 0 for a in given[:5])
    assert_array_equal(given[0], value)
    assert_array_equal(given[2], loc)


@pytest.mark.parametrize('empty', ['N', 'Nq', 'K'])
def test_nothing_to_do(empty, launched, rng):
    value, loc, A = arguments(rng, **{empty: 0})
    y, cache = ms_deform_attn(value, SHAPES, loc, A)
    assert y.shape == (*loc.shape[:3], 8)
    assert not y.any()
    for deterministic in (False, True):
        with cuda.deterministic(deterministic):
            gradients = ms_deform_attn_backward(y, cache)
        for g, a in zip(gradients, (value, loc, A)):
            assert g.shape == a.shape
            assert not g.any()
    assert not launched


def test_what_does_not_belong_together_is_refused(launched, rng):
    value, loc, A = arguments(rng)
    with pytest.raises(ValueError, match='value has 21 tokens, shapes .* sum to 15'):
        ms_deform_attn(value, SHAPES[:1], loc, A)
    with pytest.raises(ValueError, match='loc must be'):
        ms_deform_attn(value, SHAPES, loc[:, :, 1:], A)
    assert not launched


def test_a_step_that_cannot_have_so_many_channels_says_so():
    value, loc, A = np.ones((1, 6, 1, 33)), np.ones((1, 1, 1, 1, 1, 2)), 1
    y = np.ones((1, 1, 1, 33))
    with pytest.raises(ValueError, match='v3 has 32 channels a head, not 33'):
        gpu.forward_launch(value, loc, A, None, y, 'v3')
    with pytest.raises(ValueError, match='v3 has 32 channels a head, not 33'):
        gpu.backward_launch(y, value, loc, A, None, y, loc, A, 'v3')
    assert gpu.forward_launch(value, loc, A, None, y).kernel.startswith('forward_v2')


@pytest.mark.parametrize(
    ('Cv', 'itemsize', 'V', 'lanes'),
    [(32, 4, 4, 8), (32, 2, 8, 4), (32, 8, 2, 16), (1, 4, 1, 1), (3, 4, 1, 4),
     (33, 4, 1, 32), (256, 4, 4, 32), (6, 2, 2, 4), (24, 4, 4, 8)],
)  # fmt: skip
def test_channels_of_a_thread(Cv, itemsize, V, lanes):
    assert cuda.channels(Cv, itemsize) == (V, lanes)


def test_blocks_cover_every_thread_once():
    y = np.empty((2, 70, 3, 32), np.float32)
    value = np.empty((2, 54, 3, 32), np.float32)
    loc = A = np.empty((2, 70, 3, 1, 4, 2), np.float32)
    blocks = {
        step: gpu.forward_launch(value, loc, A, None, y, step).blocks
        for step in gpu.FORWARD
    }
    threads = 2 * 70 * 3 * 32
    assert blocks['v1'] == threads / 128
    assert blocks['v2'] == -(-threads // 4 // 128)
    assert blocks['v3'] == blocks['v4'] == -(-2 * 70 * 3 * 8 // 128)
    assert blocks['v5'] == 2 * 3 * -(-70 // 16)  # a head's last block is not full


def test_levels_of():
    assert_array_equal(gpu.levels_of(SHAPES), [[3, 5, 0, 0], [2, 3, 15, 24]])
    assert gpu.levels_of(SHAPES).dtype == np.int32


def test_headers_are_in_a_source_once():
    for name in ('forward.cu', 'backward.cu', 'gather.cu'):
        text = cuda.source(name)
        assert '#include "' not in text
        assert text.count('Channels {') == 1
        assert text.count('struct Point') == 1
