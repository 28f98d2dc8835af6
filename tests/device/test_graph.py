"""Inference as a CUDA graph: what may be recorded, and what comes of it."""

import contextlib
import sys

import numpy as np
import pytest

from ddetr_np import InputError, build_model
from ddetr_np.backend import device_of, mixed, plain
from ddetr_np.config import VARIANTS
from ddetr_np.fast import graph as graph_module
from ddetr_np.fast.graph import Graph
from ddetr_np.nn import ddetr
from ddetr_np.ops import top
from ddetr_np.testing_model import SMALL, randomise

SIZE = (2, 40, 56)


def build(variant, gpu, **fields):
    if variant != 'single_scale_dc5':  # only bottlenecks have a dilated form
        fields = {'backbone': 'resnet18', **fields}
    model = build_model(variant, **SMALL | {'encoder_layers': 1} | fields)
    return randomise(model).to(gpu.name)


def pictures(seed=0):
    return np.random.default_rng(seed).standard_normal((*SIZE, 3), 'float32')


@pytest.fixture
def unsorted(monkeypatch, recorder, request):
    """No kernel runs on the double: its capture takes the choice made before."""
    if recorder is None:
        return
    held, plain = [], top.top.plain

    def choose(scores, n):
        # the first one always: scores that are nearly equal may change places
        if not held:
            held.append(plain(scores, n))
        return held[0]

    monkeypatch.setattr(top, 'top', choose)


def compare(got, expected, tolerance):
    """Compare arrays on the host, by the largest value."""
    np.testing.assert_allclose(got, expected, 0, tolerance * np.abs(expected).max())


@pytest.mark.usefixtures('unsorted')
@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_is_recorded(gpu, recorder, variant, half):
    """Nothing in the pass waits, or copies from the host; products are cuBLAS's."""
    model = build(variant, gpu)
    with mixed() if half else contextlib.nullcontext():
        graph = Graph(model, *SIZE)
        for seed in (1, 2):
            images = pictures(seed)
            out = graph(gpu.put(images) if seed == 1 else images)
            if gpu.traffic:  # the double has run the pass once, on what stood there
                np.testing.assert_array_equal(gpu.fetch(graph._images), images)
                images = np.zeros_like(images)
            expected, _ = model.forward(gpu.put(images), keep='none')
            for name in ('logits', 'boxes'):
                a, b = (gpu.fetch(getattr(x, name)) for x in (out, expected))
                compare(a, b, 1e-2 if half else 1e-5)
        assert device_of(out.logits) == gpu.name
    if recorder is not None:
        kinds = {args[8] for name, args in recorder.called if 'Gemm' in name}
        assert kinds == ({0, 2} if half else {0})  # single and half precision
        assert recorder.errors == []


@pytest.mark.usefixtures('unsorted', 'recorder')
def test_distinct_proposals_are_recorded(gpu):
    model = build('two_stage', gpu, proposal_iou=0.1, base_scale=0.3)
    images = pictures()
    got = Graph(model, *SIZE)(images)
    if gpu.traffic:  # as above
        images = np.zeros_like(images)
    expected, _ = model.forward(gpu.put(images), keep='none')
    compare(gpu.fetch(got.boxes), gpu.fetch(expected.boxes), 1e-5)


def test_what_cublas_is_told(double, cublas):
    """The graph's stream, and memory that the graph keeps."""
    model = build('refine', double)
    graph = Graph(model, *SIZE)
    assert cublas.stream == graph._stream.ptr
    assert cublas.workspace == (graph._workspace.data.ptr, 32 << 20)
    asked = len(cublas.called)
    model.forward(double.put(pictures()), keep='none')  # CuPy's products again
    assert len(cublas.called) == asked


@pytest.mark.parametrize(
    'name', ['cublasSetWorkspace_v2', 'cublasGemmStridedBatchedEx']
)
def test_cublas_fails(double, machine, cublas, name):
    model = build('refine', double)
    cublas.fail[name] = 13
    with pytest.raises(InputError, match=f'cannot be recorded.*{name} has status 13'):
        Graph(model, *SIZE)
    assert not machine.capturing
    assert len(machine.streams) == 1
    del cublas.fail[name]
    Graph(model, *SIZE)


def test_no_cublas(double, monkeypatch):
    """CuPy says it has a handle, and nothing is loaded in this process."""
    with pytest.raises(InputError, match='cannot be recorded.*cuBLAS.*is not found'):
        Graph(build('refine', double), *SIZE)


@pytest.mark.usefixtures('cublas')
def test_a_call_launches_once_and_streams_wait(double, machine):
    graph = Graph(build('refine', double), *SIZE)
    outer = machine.streams[-1]
    assert not machine.capturing
    for n in (1, 2):
        graph(pictures())
        assert machine.launched == n
        assert len(outer.waited) == len(graph._stream.waited) == n
    assert machine.streams == [outer]


@pytest.mark.usefixtures('cublas')
def test_its_memory_is_its_own(double, machine, monkeypatch):
    seen = []
    forward = ddetr.DeformableDETR.forward

    def watch(*args, **kwargs):
        seen.append((machine.capturing, list(machine.allocators)))
        return forward(*args, **kwargs)

    monkeypatch.setattr(ddetr.DeformableDETR, 'forward', watch)
    graph = Graph(build('refine', double), *SIZE)
    capturing, allocators = zip(*seen)
    before = graph_module.WARM_UP + 1  # the last with cuBLAS's own products
    assert capturing == (False,) * before + (True,)
    assert all(used == [graph._pool.malloc] for used in allocators)
    assert machine.allocators == []


@pytest.mark.usefixtures('cublas')
def test_its_memory_goes_with_it(double, machine, monkeypatch):
    """CuPy's pools keep theirs, even when they go themselves."""
    pools, pool = [], sys.modules['cupy'].cuda.MemoryPool

    def make():
        pools.append(pool())
        return pools[-1]

    monkeypatch.setattr(sys.modules['cupy'].cuda, 'MemoryPool', make)
    model = build('refine', double)
    graph = Graph(model, *SIZE)
    assert pools[0].freed == 0
    del graph
    assert pools[0].freed == 1
    monkeypatch.setattr(machine, 'capturing', True)  # so that its first read fails
    with pytest.raises(RuntimeError):
        Graph(model, *SIZE)
    assert pools[1].freed > 0
    assert machine.allocators == []


@pytest.mark.usefixtures('cublas')
def test_what_cannot_be_recorded(double, machine, monkeypatch):
    model = build('two_stage', double)
    monkeypatch.setattr(top, 'top', top.top.plain)  # sorts
    with pytest.raises(InputError, match='cannot be recorded.*argsort.*model.forward'):
        Graph(model, *SIZE)
    assert not machine.capturing  # the stream is given back
    assert len(machine.streams) == 1


@pytest.mark.usefixtures('cublas')
def test_refused(double):
    model = build('refine', double)
    with pytest.raises(InputError, match='2 pictures of 0 × 56'):
        Graph(model, 2, 0, 56)
    graph = Graph(model, *SIZE)
    for images in (pictures()[:1], pictures()[:, :8], pictures() > 0, [1.0]):
        with pytest.raises(InputError, match='this graph is for normalised ones of'):
            graph(images)
    p = next(p for _, p in model.named_params())
    p.data = p.data.copy()
    with pytest.raises(InputError, match='make another Graph'):
        graph(pictures())
    with pytest.raises(InputError, match='is on the CPU'):
        Graph(model.to('cpu'), *SIZE)


@pytest.mark.usefixtures('cublas')
@pytest.mark.parametrize('name', ['begin_capture', 'end_capture'])
def test_a_capture_that_fails(double, machine, monkeypatch, name):
    """CUDA may say only at the end that it could not."""
    model, error = build('refine', double), machine.error('capture invalidated')

    def fail(*args):
        raise error

    monkeypatch.setattr(sys.modules['cupy'].cuda.Stream, name, fail)
    with pytest.raises(InputError, match='cannot be recorded.*invalidated') as caught:
        Graph(model, *SIZE)
    assert caught.value.__cause__ is error
    assert len(machine.streams) == 1
    assert machine.allocators == []


@pytest.mark.usefixtures('cublas')
def test_on_the_model_s_own_gpu(double, machine):
    """Not the current one: stream, pictures and output are where the weights are."""
    model = build('refine', double).to('cuda:1')
    machine.current = 0
    out = Graph(model, *SIZE)(pictures())
    assert device_of(out.boxes) == 'cuda:1'
    assert machine.current == 0


def test_plain_products_are_not_recorded_yet(gpu, request, recorder):
    """By CuPy to 14.2: where this fails on a GPU, `gpu_product` may go."""
    model = build('refine', gpu)
    with plain(), pytest.raises(InputError, match='cannot be recorded.*cuBLAS') as e:
        Graph(model, *SIZE)
    assert isinstance(e.value.__cause__, NotImplementedError)
    if gpu.traffic:
        request.getfixturevalue('machine').records_products = True
        with plain():
            Graph(model, *SIZE)


def test_many_layers(double, cublas):
    """More than eight are not stacked by CuPy, which would copy from the host."""
    out = Graph(build('refine', double, decoder_layers=9), *SIZE)(pictures())
    assert out.logits.shape[0] == 9


FORBIDDEN = {
    'get': lambda xp, a: a.get(),
    'item': lambda xp, a: a[0].item(),
    'bool': lambda xp, a: bool(a[0]),
    'int': lambda xp, a: int(a[0]),
    'float': lambda xp, a: float(a[0]),
    'from the host': lambda xp, a: xp.asarray(np.ones(3)),
    'numbers': lambda xp, a: xp.array([1.0, 2.0]),
    'argsort': lambda xp, a: xp.argsort(a),
    'a mask': lambda xp, a: a[a > 0],
    'nine side by side': lambda xp, a: xp.concatenate([a] * 9),
    'nine on top': lambda xp, a: xp.stack([a] * 9),
    'the device': lambda xp, a: a.device.synchronize(),
    'the stream': lambda xp, a: xp.cuda.get_current_stream().synchronize(),
    'an event': lambda xp, a: xp.cuda.Event().synchronize(),
}


@pytest.mark.parametrize('what', FORBIDDEN)
def test_what_the_double_refuses_meanwhile(double, machine, what):
    xp = sys.modules['cupy']
    a = xp.arange(3.0)
    FORBIDDEN[what](xp, a)
    with xp.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(machine.error, match='not permitted when stream is captu'):
            FORBIDDEN[what](xp, a)
        stream.end_capture()


@pytest.mark.gpu
def test_weights_in_place_and_freed_memory(real):
    """Overwritten weights count; other work may use all the memory there is."""
    import cupy

    model = build('two_stage', real)
    graph = Graph(model, *SIZE)
    for _, p in model.named_params():
        p.data *= 1.01
    cupy.get_default_memory_pool().free_all_blocks()
    noise = [cupy.full(1 << 20, np.nan, 'float32') for _ in range(50)]
    out = graph(pictures(3))
    expected, _ = model.forward(real.put(pictures(3)), keep='none')
    real.check(out.boxes, real.fetch(expected.boxes), 1e-5)
    assert len(noise) == 50
