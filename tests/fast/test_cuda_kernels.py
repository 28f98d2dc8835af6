"""The CUDA kernels against the plain operation: on the CPU, and on a GPU by `-m gpu`.

Every step of the ladders, and the backward pass without atomics, on every case.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ddetr_np import backend
from ddetr_np.fast import cuda
from ddetr_np.fast import gpu_ms_deform_attn as gpu
from ddetr_np.ops.ms_deform_attn import (
    CoreCache,
    ms_deform_attn,
    ms_deform_attn_backward,
)


def load(name):
    path = Path(__file__).with_name('cuda_on_cpu') / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'cuda_on_cpu_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cpu = load('cpu')
LEVELS = ((3, 5), (2, 3), (1, 1))
TOLERANCE = {'float64': 1e-12, 'float32': 1e-5, 'float16': 1e-3, 'bfloat16': 8e-3}


class Case(NamedTuple):
    value: str = 'float64'  # types
    places: str | None = None  # of loc and A; value's, if not given
    Cv: int = 8
    K: int = 2
    N: int = 2
    Nq: int = 5
    M: int = 3
    shapes: tuple = LEVELS
    where: str = 'about'

    def __str__(self):
        usual = Case()._asdict()
        changed = (f'{k}={v}' for k, v in self._asdict().items() if v != usual[k])
        return ' '.join(changed).replace('), (', ')(') or 'usual'


CASES = [
    Case(),
    Case('float32'),
    Case('float16', 'float32'),
    Case('float16'),
    Case('bfloat16', 'float32'),
    Case('bfloat16'),
    *(Case('float32', Cv=Cv) for Cv in (1, 3, 32, 33, 256)),
    Case('float32', Cv=32, Nq=16),  # whole blocks
    *(Case('float16', 'float32', Cv=Cv) for Cv in (5, 6, 32)),
    Case(Cv=32, K=4, shapes=((9, 12), (5, 6), (3, 3), (2, 2))),
    *(Case('float32', K=K) for K in (1, 3, 4, 5)),
    Case('float32', K=3, shapes=((4, 3),) * 11),  # more points than lanes, and odd
    Case('float32', Cv=32, K=4, N=1, Nq=70, M=2, shapes=((6, 8), (3, 4))),
    Case('float32', N=1, Nq=1, M=1),
    Case(shapes=((1, 1),)),
    Case(shapes=((1, 7), (6, 1))),
    *(Case(where=where) for where in ('far', 'pixels', 'one', 'not numbers')),
    *(Case('float32', where=where) for where in ('far', 'pixels', 'not numbers')),
]


def dtype(name):
    if name == 'bfloat16':
        return np.dtype(pytest.importorskip('ml_dtypes').bfloat16)
    return np.dtype(name)


def inputs(case):
    """Return dy, and CoreCache of the case's arrays, of the host."""
    rng = np.random.default_rng(sum(map(ord, str(case))))
    N, Nq, M, L, K = case.N, case.Nq, case.M, len(case.shapes), case.K
    S = sum(H * W for H, W in case.shapes)
    loc = rng.uniform(-0.2, 1.2, (N, Nq, M, L, K, 2))
    sizes = np.array([(W, H) for H, W in case.shapes])[:, None]
    if case.where == 'far':
        loc = rng.choice([-9.0, 1e6, -np.inf, np.inf, 0.3, -1e30], loc.shape)
    elif case.where == 'pixels':
        loc = (np.floor(loc * sizes) + 0.5) / sizes
    elif case.where == 'one':
        loc[...] = 0.4
    elif case.where == 'not numbers':
        loc[rng.random(loc.shape) < 0.03] = np.nan
    A = rng.random((N, Nq, M, L, K))
    A /= A.sum((3, 4), keepdims=True)
    value = rng.standard_normal((N, S, M, case.Cv)).astype(dtype(case.value))
    dy = rng.standard_normal((N, Nq, M, case.Cv)).astype(dtype(case.value))
    loc, A = (a.astype(dtype(case.places or case.value)) for a in (loc, A))
    return dy, CoreCache(value, case.shapes, loc, A)


def expected(dy, cache):
    """What the plain operation makes of the same numbers: y, dvalue, dloc, dA."""
    exact = np.float64 if cache.value.dtype == np.float64 else np.float32
    value, loc, A, dy = (a.astype(exact) for a in (cache.value, cache.loc, cache.A, dy))
    with backend.plain(), np.errstate(invalid='ignore'):
        y, cache = ms_deform_attn(value, cache.shapes, loc, A)
        return y, *ms_deform_attn_backward(dy, cache)


def near(got, wanted, case):
    """Equal within the rounding of the array's type; not numbers where they should be.

    Parameters
    ----------
    got, wanted : sequence of arrays
    case : Case
    """
    for a, b in zip(got, wanted, strict=True):
        tolerance = max(TOLERANCE[a.dtype.name], TOLERANCE[case.value] / 100)
        scale = max(1.0, np.nanmax(np.abs(b), initial=0))
        np.testing.assert_allclose(
            a.astype(b.dtype), b, rtol=tolerance, atol=tolerance * scale
        )


class Gpu:
    """CuPy's current device, as a machine that runs launches."""

    name = 'gpu'

    def __init__(self):
        self.xp = pytest.importorskip('cupy', exc_type=ImportError)
        try:
            backend.to_device(np.zeros(1), 'cuda:0')
        except backend.InputError as error:
            pytest.skip(str(error))

    def run(self, *launches):
        cuda.launch(self.xp, *launches)


def forward(machine, cache, **options):
    """Return y by one launch."""
    value, shapes, loc, A = cache
    y = machine.xp.empty(loc.shape[:3] + value.shape[3:], value.dtype)
    levels = machine.xp.asarray(gpu.levels_of(shapes))
    machine.run(gpu.forward_launch(value, loc, A, levels, y, **options))
    return y


def backward(machine, dy, cache, **options):
    levels = machine.xp.asarray(gpu.levels_of(cache.shapes))
    return gpu.backward(machine.xp, machine.run, dy, cache, levels, **options)


def steps(case):
    """Return (forward's options, backward's options) of all that the case can have."""
    V, lanes = cuda.channels(case.Cv, dtype(case.value).itemsize)
    wide = case.Cv > V * lanes
    first = [{'step': s} for s in gpu.FORWARD[: 2 if wide else None]]
    if not wide and case.Cv == 32:
        first += [{'step': 'v5', 'unroll': n} for n in (1, 4)]
    then = [{'step': s} for s in gpu.BACKWARD[: 2 if wide else None]]
    then += [{**s, 'deterministic': True} for s in then[1:]]
    return first, then


class Recorder:
    """A machine that only notes what it is to run."""

    xp = np

    def __init__(self):
        self.launches = []

    def run(self, *launches):
        self.launches += launches


def all_launches():
    recorder = Recorder()
    for case in CASES:
        try:
            dy, cache = inputs(case)
        except pytest.skip.Exception:
            continue
        first, then = steps(case)
        for options in first:
            forward(recorder, cache, **options)
        for options in then:
            backward(recorder, dy, cache, **options)
    return recorder.launches


@pytest.fixture(scope='module')
def on_cpu(tmp_path_factory):
    try:
        return cpu.Cpu(tmp_path_factory.mktemp('kernels'), all_launches())
    except cpu.MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def on_gpu():
    return Gpu()


@pytest.fixture(params=['cpu', pytest.param('gpu', marks=pytest.mark.gpu)])
def machine(request):
    """Runs launches on the CPU, and with `-m gpu` on the GPU."""
    return request.getfixturevalue(f'on_{request.param}')


def put(machine, thing):
    if isinstance(thing, CoreCache):
        return CoreCache(*(put(machine, a) for a in thing))
    return machine.xp.asarray(thing) if isinstance(thing, np.ndarray) else thing


@pytest.mark.parametrize('case', CASES, ids=str)
def test_every_step_is_the_plain_operation(case, machine):
    host = inputs(case)
    y, *gradients = expected(*host)
    dy, cache = (put(machine, a) for a in host)
    first, then = steps(case)
    for options in first:
        near([backend.to_host(forward(machine, cache, **options))], [y], case)
    for options in then:
        got = map(backend.to_host, backward(machine, dy, cache, **options))
        near(got, gradients, case)


def test_without_atomics_the_bits_are_the_same_in_any_order_of_blocks(on_cpu):
    case = Case('float32', Cv=32, K=4, N=1, Nq=70, M=2, shapes=((6, 8), (3, 4)))
    dy, cache = inputs(case)
    rng = np.random.default_rng(0)
    found, scattered = [], []
    usual = on_cpu.order
    for order in (np.arange, lambda n: np.arange(n)[::-1], rng.permutation):
        on_cpu.order = order
        found.append(
            [a.tobytes() for a in backward(on_cpu, dy, cache, deterministic=True)]
        )
        scattered.append(backward(on_cpu, dy, cache))
    on_cpu.order = usual
    assert found[0] == found[1] == found[2]
    # atomics do depend on it, or this test would show nothing
    first = scattered[0]
    assert any(a[0].tobytes() != first[0].tobytes() for a in scattered)
    for other in scattered:
        near(other, first, case)


def test_keys_and_starts_by_hand(on_cpu):
    # one map of 1 × 2; a point on the right pixel, one left of the map, one far off
    loc = np.array([[0.75, 0.5], [0.2, 0.5], [9, 9]]).reshape(1, 3, 1, 1, 1, 2)
    shapes = ((1, 2),)
    keys = np.empty(3, np.int64)
    value, levels = np.empty((1, 2, 1, 8)), gpu.levels_of(shapes)
    on_cpu.run(gpu.cells_launch(value, shapes, loc, levels, keys))
    assert gpu.plan(shapes, loc) == (6, 2)  # 2 · 3 cells; points 0, 1 and 2
    # cells of rows −1 and 0, columns −1, 0 and 1; behind the last, what reads nothing
    assert [divmod(k, 4) for k in keys] == [(3 + 2, 0), (3 + 0, 1), (6, 2)]


def test_offsets_beyond_32_bits(on_cpu):
    # 2 ** 31 channels and more, of which so few are touched that they cost no memory
    shapes = ((8200, 8200),)
    case = Case('float16', 'float32', Cv=32)
    rng = np.random.default_rng(0)
    S = 8200 * 8200
    loc = np.array([[0.5, 0.5], [0.9999, 0.9999], [0.7, 0.9999]], np.float32)
    loc = loc.reshape(1, 3, 1, 1, 1, 2)
    A = np.ones((1, 3, 1, 1, 1), np.float32)
    try:
        value = np.zeros((1, S, 1, 32), np.float16)
        dvalue = np.zeros((1, S, 1, 32), np.float32)
    except MemoryError:
        pytest.skip('no 13 GB of addresses')
    value[0, -20000:, 0] = rng.standard_normal((20000, 32))
    cache = CoreCache(value, shapes, loc, A)
    with backend.plain():
        y, _ = ms_deform_attn(value, shapes, loc, A)
    assert y[0, 1:].any(-1).all()
    assert not y[0, 0].any()
    dy = np.ones(y.shape, np.float16)
    levels = gpu.levels_of(shapes)
    for options in steps(case)[0]:
        near([forward(on_cpu, cache, **options)], [y.astype(np.float32)], case)
    for step in gpu.BACKWARD:
        dloc, dA = np.zeros_like(loc), np.zeros_like(A)
        inputs = dy, value, loc, A, levels, dvalue, dloc, dA
        on_cpu.run(gpu.backward_launch(*inputs, step))
        # the plain operation's sums are halves
        sums = y.sum((2, 3), dtype=np.float32).ravel()
        np.testing.assert_allclose(dA.ravel(), sums, atol=0.01)
    # three steps have each added 32 ones for each of two points there
    np.testing.assert_allclose(dvalue[0, -20000:].sum(), 3 * 2 * 32, rtol=1e-5)


@pytest.mark.gpu
def test_a_hundred_runs_have_the_same_bits():
    machine = Gpu()
    case = Case('float32', Cv=32, K=4, Nq=3000, M=8, shapes=((50, 60), (25, 30)))
    dy, cache = (put(machine, a) for a in inputs(case))
    first = backward(machine, dy, cache, deterministic=True)
    for _ in range(99):
        for a, b in zip(backward(machine, dy, cache, deterministic=True), first):
            assert (a == b).all()
