"""What a model asks of CuPy, one scenario a process: `passes.py FOLDER NAME`."""

import contextlib
import gc
import importlib
import sys
from pathlib import Path

import cuda_stub

SIZE = 2, 40, 56


def build(variant, dtype='float32', device='cuda:0', **fields):
    from ddetr_np import build_model
    from ddetr_np.testing_model import SMALL, randomise

    fields = SMALL | {'encoder_layers': 1} | fields
    if variant != 'single_scale_dc5':  # only bottlenecks have a dilated form
        fields['backbone'] = 'resnet18'
    return randomise(build_model(variant, dtype=dtype, **fields)).to(device)


def precision(half):
    from ddetr_np.backend import mixed

    return mixed() if half else contextlib.nullcontext()


def step(variant, half=False, dtype='float32', keep='all'):
    """A training step."""
    import cupy
    import numpy as np

    from ddetr_np import AdamW, Criterion, Ema
    from ddetr_np.loss import criterion
    from ddetr_np.testing_model import SMALL, random_batch

    model = build(variant, dtype)
    images, mask, targets = random_batch(SMALL['num_classes'])
    images = cupy.asarray(images.astype(dtype))
    with precision(half):
        out, cache = model.forward(images, cupy.asarray(mask), keep=keep, train=True)
        # no kernel has run: what would say that all is finite says 0
        criterion._need_finite = criterion._need_finite_losses = lambda *a: None
        _, _, dout = Criterion(model.config)(out, targets, cache=cache)
        model.backward(dout, cache)
    optimizer, average = AdamW(model), Ema(model, 0.9)
    optimizer.step()
    average.update()
    for name, p in model.named_params():
        assert p.data.dtype == np.dtype(dtype), name


def graph(variant, half=False, dtype='float32', device='cuda:0', **fields):
    """A pass that is recorded, and launched."""
    import cupy
    import numpy as np

    from ddetr_np import Graph

    model = build(variant, dtype, device, **fields)
    cupy.cuda.Device(0).use()
    with precision(half):
        record = Graph(model, *SIZE)
        out = record(np.zeros((*SIZE, 3), dtype))
    assert f'cuda:{out.boxes.device.id}' == device
    assert cupy.cuda.runtime.getDevice() == 0


def memory(stub):
    """Graphs that are gone, made or not, hold nothing; constants outlive them."""
    import cupy

    from ddetr_np import Graph, InputError, backend
    from ddetr_np.fast import gpu_product

    model = build('refine')

    def rest():
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()
        return cuda_stub.held(stub)

    def table():
        """The first of the kernels' tables, and where it lies."""
        array = next(a for a in backend.constants() if a.dtype == 'int32')
        return array.get().tolist(), array.data.ptr

    for size in (160, 96):  # constants of both sizes are made, and cuBLAS's handle
        Graph(model, 1, size, size)
    at_first, expected = rest(), table()
    for size in (160, 96, 160, 96):
        one = Graph(model, 1, size, size)
        assert cuda_stub.held(stub) > at_first + gpu_product.WORKSPACE
        del one
        assert rest() == at_first, size
        assert table() == expected

    gpu_product.run_gemm, run = None, gpu_product.run_gemm  # as it begins to record
    try:
        failed = Graph(model, 1, 160, 160)
    except InputError as error:
        failed = error
    gpu_product.run_gemm = run
    assert 'cannot be recorded' in str(failed)
    assert rest() == at_first, 'while the error is looked at'

    one = Graph(model, 1, 128, 128)  # the first of its size makes constants
    pool = one._pool
    del one
    assert pool.used_bytes() == 0, 'they are not in its memory'


def core():
    """The kernels' arguments, of every type, other than the current device's too."""
    import cupy
    import ml_dtypes

    from ddetr_np.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_backward

    half = ml_dtypes.bfloat16
    for value, places in (
        ('float32', 'float32'), ('float64', 'float64'), ('float16', 'float32'),
        ('float16', 'float16'), (half, 'float32'), (half, half),
    ):  # fmt: skip
        with cupy.cuda.Device(1):
            v = cupy.zeros((2, 20, 2, 8), value)
            loc = cupy.zeros((2, 5, 2, 2, 3, 2), places)
            A = cupy.zeros((2, 5, 2, 2, 3), places)
        y, cache = ms_deform_attn(v, ((4, 4), (2, 2)), loc, A)
        found = y, *ms_deform_attn_backward(y, cache)
        for got, like in zip(found, (v, v, loc, A)):
            assert got.dtype == like.dtype
            assert got.device.id == 1


def detect():
    import numpy as np

    import ddetr_np

    picture = np.zeros((40, 50, 3), 'uint8')
    ddetr_np.detect(build('two_stage'), picture)


def benchmark(name, *words):
    """A script of `benchmarks`: every contender of this package is timed."""
    import cupy

    sys.path.insert(0, str(Path(__file__).parents[3] / 'benchmarks'))
    script = importlib.import_module(name)
    properties = cupy.cuda.runtime.getDeviceProperties
    cupy.cuda.runtime.getDeviceProperties = lambda i: {
        **properties(i), 'l2CacheSize': 50 << 20
    }
    script.peers.without_torch = lambda *args: 'it has no part in this'
    script.compare = script.difference = lambda *args: 0.0  # of zeros
    assert not script.main(['--height', '64', '--width', '96', '--runs', '2', *words])


VARIANTS = (
    'single_scale', 'single_scale_dc5', 'multi_scale', 'refine', 'two_stage'
)  # fmt: skip
SCENARIOS = {
    **{f'step, {v}': lambda stub, v=v: step(v) for v in VARIANTS},
    'step, half': lambda stub: step('two_stage', half=True),
    'step, double': lambda stub: step('two_stage', dtype='float64'),
    'step, inputs kept': lambda stub: step('two_stage', keep='inputs'),
    **{f'graph, {v}': lambda stub, v=v: graph(v) for v in VARIANTS},
    'graph, half': lambda stub: graph('two_stage', half=True),
    'graph, double': lambda stub: graph('refine', dtype='float64'),
    'graph, another GPU': lambda stub: graph('refine', device='cuda:1'),
    'graph, distinct proposals': lambda stub: graph(
        'two_stage', proposal_iou=0.1, base_scale=0.3
    ),
    'memory': memory,
    'core': lambda stub: core(),
    'detect': lambda stub: detect(),
    'benchmark of the core': lambda stub: benchmark(
        'gpu_core', '--dtype', 'float16', '--places', 'float32'
    ),
    'benchmark of the model': lambda stub: benchmark(
        'gpu_model', '--precision', 'half', '--batch', '2'
    ),
}

if __name__ == '__main__':
    stub = cuda_stub.load(Path(sys.argv[1]))
    SCENARIOS[sys.argv[2]](stub)
    lines = cuda_stub.log(stub)
    assert any(line.startswith('kernel ') for line in lines)
    refused = [line for line in lines if line.startswith('!')]
    assert not refused, refused[:5]
