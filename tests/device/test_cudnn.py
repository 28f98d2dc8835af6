"""Convolutions by cuDNN: the graphs that are asked for, and on a GPU what they give."""

import os
import types

import numpy as np
import pytest

from ddetr_np import ops
from ddetr_np.backend import get_xp
from ddetr_np.fast import cuda, gpu_conv, gpu_cudnn
from ddetr_np.testing import cases, run_backward, run_forward

EVERY_CASE = [
    pytest.param(case, id=case.label)
    for case in cases('conv.conv2d')
    if case.inputs['W'].shape[:2] != (1, 1)
]


class Tensor:
    """Of a graph: cuDNN's setters hand the tensor back."""

    def __init__(self, dim, stride, data_type, name):
        self.dim, self.stride, self.data_type = dim, stride, data_type

    def set_output(self, value):
        assert value
        return self

    def set_data_type(self, data_type):
        self.data_type = data_type
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def meets(self, a):
        """Whether an array has the sizes, strides (in elements) and type declared."""
        stride = [s // a.itemsize for s in a.strides]
        # where there is one step along an axis, its stride does not matter
        close = all(s == t for s, t, n in zip(stride, self.stride, a.shape) if n > 1)
        return [*a.shape] == self.dim and close and a.dtype.name == self.data_type


class Graph:
    """A graph of one convolution, worked out on the host."""

    def __init__(self, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert handle == 'handle'
        self.notes = []

    def tensor(self, dim, stride, data_type, name):
        return Tensor(dim, stride, data_type, name)

    def _node(self, kind, a, b, padding, stride, dilation):
        self.kind, self.inputs = kind, (a, b)
        self.geometry = stride[0], padding[0], dilation[0]
        self.output = Tensor(None, None, None, kind)
        return self.output

    def conv_fprop(self, image, weight, **options):
        return self._node('fprop', image, weight, **options)

    def conv_dgrad(self, loss, filter, **options):
        return self._node('dgrad', loss, filter, **options)

    def conv_wgrad(self, image, loss, **options):
        return self._node('wgrad', image, loss, **options)

    def validate(self):
        pass

    build_operation_graph = check_support = build_plans = validate

    def create_execution_plans(self, modes):
        assert modes == ['A', 'fallback']

    def deselect_numeric_notes(self, notes):
        self.notes = notes

    def get_workspace_size(self):
        return 16

    def execute(self, pack, workspace, handle):
        assert ('tensor core' in self.notes) == (os.environ.get('CUPY_TF32') != '1')
        assert ('any order' in self.notes) == cuda.is_deterministic()
        assert workspace.nbytes == 16
        assert all(cuda.address(a) % 16 == 0 for a in pack.values())
        arrays = [pack[t] for t in (*self.inputs, self.output)]
        for tensor, a in zip((*self.inputs, self.output), arrays):
            assert tensor.meets(a)
        a, b, out = (x.transpose(0, 2, 3, 1) for x in arrays)
        xp, conv = get_xp(out), ops.conv
        if self.kind == 'fprop':
            out[...] = conv.conv2d.plain(a, b.transpose(1, 2, 3, 0), None,
                                         *self.geometry)[0]  # fmt: skip
        elif self.kind == 'dgrad':
            W = b.transpose(1, 2, 3, 0)
            cache = conv.ConvCache(xp.empty_like(out), W, *self.geometry)
            out[...] = conv.conv2d_backward.plain(a, cache, need_dW=False)[0]
        else:
            W = xp.empty_like(out.transpose(1, 2, 3, 0))
            cache = conv.ConvCache(a, W, *self.geometry)
            dW = conv.conv2d_backward.plain(b, cache, need_dx=False)[1]
            out[...] = dW.transpose(3, 0, 1, 2)


class UnsupportedError(Exception):
    pass


@pytest.fixture
def library(double, monkeypatch):
    """A front end that hands its graphs to the plain operations."""
    fake = types.SimpleNamespace(
        pygraph=Graph,
        data_type=types.SimpleNamespace(FLOAT='float32', HALF='float16'),
        heur_mode=types.SimpleNamespace(A='A', FALLBACK='fallback'),
        numerical_note=types.SimpleNamespace(
            TENSOR_CORE='tensor core', NONDETERMINISTIC='any order'
        ),
        cudnnGraphNotSupportedError=UnsupportedError,
        create_handle=lambda: 'handle',
        set_stream=lambda handle, stream: None,
    )
    forget()
    monkeypatch.delenv('CUPY_TF32', raising=False)
    monkeypatch.setattr(gpu_cudnn, '_library', lambda: fake)
    yield fake
    forget()


def forget():
    gpu_cudnn._handle.cache_clear()
    gpu_cudnn._plan.cache_clear()


def single(case):
    return case._replace(
        inputs={k: a.astype('float32') for k, a in case.inputs.items()}
    )


def compare(case, gpu):
    """The twin's forward and backward pass beside the plain one's."""
    forward, backward = gpu_conv.gpu_conv2d, gpu_conv.gpu_conv2d_backward
    y, cache = run_forward(ops.conv.conv2d.plain, case)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
    expected = run_backward(ops.conv.conv2d_backward.plain, case, dy, cache)
    moved = gpu.put(case)
    y2, cache = run_forward(forward, moved)
    got = gpu.fetch(run_backward(backward, moved, gpu.put(dy), cache))
    for a, b in ((gpu.fetch(y2), y), *((got[k], expected[k]) for k in expected)):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, 1e-5, 1e-5 * np.abs(b).max())


@pytest.mark.parametrize('case', EVERY_CASE)
def test_what_is_asked_of_it(double, library, case):
    compare(single(case), double)
    assert gpu_cudnn._plan.cache_info().currsize > 0
    before = gpu_cudnn._plan.cache_info().misses
    compare(single(case), double)
    assert gpu_cudnn._plan.cache_info().misses == before  # plans are kept


def test_what_it_has_no_engine_for(double, library, monkeypatch):
    def refuse(graph):
        raise UnsupportedError

    monkeypatch.setattr(Graph, 'check_support', refuse)
    compare(single(EVERY_CASE[0].values[0]), double)


@pytest.mark.parametrize('error', [RuntimeError, ValueError])
def test_it_fails(double, library, monkeypatch, error):
    """A library that does not fit the card: cuBLAS's products do, and it is said."""

    def fail(graph):
        raise error('CUDNN_STATUS_NOT_INITIALIZED')

    monkeypatch.setattr(Graph, 'build_operation_graph', fail)
    with pytest.warns(RuntimeWarning, match='cuBLAS takes: CUDNN_STATUS_NOT_INIT'):
        compare(single(EVERY_CASE[0].values[0]), double)


def test_the_same_bits_if_asked(double, library):
    """Plans are kept apart: one that adds in any order is not taken."""
    case = single(EVERY_CASE[0].values[0])
    compare(case, double)
    kept = gpu_cudnn._plan.cache_info().currsize
    with cuda.deterministic():
        compare(case, double)
    assert gpu_cudnn._plan.cache_info().currsize == 2 * kept


def test_pictures_from_the_middle_of_a_batch(double, library):
    """cuDNN takes for granted that arrays begin at a multiple of 16 bytes."""
    x = np.ones((3, 5, 7, 3), 'float32')
    inputs = {'x': x, 'W': np.ones((3, 3, 3, 4), 'float32')}
    moved = double.put(inputs)
    y = gpu_cudnn.fprop(moved['x'][1:], moved['W'], 1, 1, 1)
    expected, _ = ops.conv.conv2d.plain(x[1:], inputs['W'], None, 1, 1, 1)
    np.testing.assert_allclose(double.fetch(y), expected, 1e-6)


def test_tensor_cores_take_part_if_asked(double, library, monkeypatch):
    monkeypatch.setenv('CUPY_TF32', '1')
    compare(single(EVERY_CASE[0].values[0]), double)


def test_double_precision_is_not_asked_of_it(double, library):
    compare(EVERY_CASE[0].values[0], double)
    assert gpu_cudnn._plan.cache_info().misses == 0


@pytest.mark.parametrize('kind', ['fprop', 'dgrad', 'wgrad'])
@pytest.mark.parametrize('geometry', [(1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 1)])
def test_the_front_end_takes_the_graph(kind, geometry, monkeypatch):
    """Of the installed front end, which builds graphs without a GPU."""
    cudnn = pytest.importorskip('cudnn', exc_type=ImportError)
    monkeypatch.setattr(gpu_cudnn, '_library', lambda: cudnn)
    monkeypatch.setattr(gpu_cudnn, '_handle', lambda device: None)
    shapes = (2, 20, 30, 16), (3, 3, 16, 8)
    _, inputs, output, shape = gpu_cudnn._graph(
        kind, *shapes, geometry, 'float32', 'cuda:0'
    )
    n, h, w, c = shape
    assert [*output.get_dim()] == [n, c, h, w]
    assert [*output.get_stride()] == [h * w * c, 1, w * c, c]
    assert len(inputs) == 2
    for name in (
        'backend_version', 'create_handle', 'set_stream', 'cudnnGraphNotSupportedError'
    ):
        assert hasattr(cudnn, name)
    assert cudnn.numerical_note.TENSOR_CORE is not None
    assert cudnn.numerical_note.NONDETERMINISTIC is not None
    assert cudnn.heur_mode.A != cudnn.heur_mode.FALLBACK


@pytest.mark.gpu
@pytest.mark.parametrize('case', EVERY_CASE)
def test_on_a_gpu(real, case, monkeypatch):
    """In channels of eight, for which cuDNN has engines."""
    if gpu_cudnn._library() is None:
        pytest.skip('needs cuDNN and its front end')
    plans, plan = [], gpu_cudnn._plan.__wrapped__

    def make(*args):
        plans.append(plan(*args))
        return plans[-1]

    monkeypatch.setattr(gpu_cudnn, '_plan', make)
    rng = np.random.default_rng(0)
    kh, kw = case.inputs['W'].shape[:2]
    shapes = {'x': (2, 30, 40, 16), 'W': (kh, kw, 16, 32), 'b': (32,)}
    inputs = {k: rng.standard_normal(shapes[k]) for k in case.inputs}
    gpu_cudnn._handle.cache_clear()
    compare(single(case._replace(inputs=inputs)), real)
    assert None not in plans
    assert len(plans) == 3
