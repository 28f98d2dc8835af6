"""The sampling core's kernels on a GPU, step by step, against published operators.

    pip install 'ddetr-np[gpu12]'                 # or [gpu13]: CuPy
    pip install torch                             # for the driver's CUDA
    pip install --no-build-isolation torch-ms-deform-attn
    pip install --no-build-isolation DCNv4        # if it builds
    python benchmarks/gpu_core.py
    python benchmarks/gpu_core.py --dtype float16 --batch 8 --height 800 --width 1333
    python benchmarks/gpu_core.py --all           # each precision, batch 1 and 8

NO FIGURE OF THIS SCRIPT HAS BEEN MEASURED YET: it was written without a GPU.

Peers are left out where they are not installed or refuse the precision. Both are
compiled when they are installed, which needs nvcc and a card in sight. DCNv4's
`FlashDeformAttn` takes logits and computes their softmax; nobody else here does. It
shares out the queries of all pictures in blocks whose size divides their number. 17,821
is 71 · 251 and 22,223 is 71 · 313: at 800 × 1066 or 1333 it has a block for each query,
and in batches of eight blocks with queries of two pictures, so that it differs. At a
width of 1024 it has larger blocks: `--all` ends there.

Printed are medians of times between two events on the device; all runs are asked for
before the first is waited for, so that the host is ahead. Each run has another set
of inputs, as many as twice fill the second-level cache, so that each finds it cold. The
floor is the bytes of all corners read over the bandwidth of the second-level cache,
measured here; what moves through memory is told beside it.
"""

import argparse
import functools
import statistics
from pathlib import Path

import numpy as np
import peers
from core import inputs, shapes_of

from ddetr_np import backend
from ddetr_np.fast import cuda
from ddetr_np.fast import gpu_ms_deform_attn as gpu
from ddetr_np.ops.ms_deform_attn import CoreCache

WARM_UP = 3
ALL = [  # type of values, of locations and weights, pictures: what --all measures
    (dtype, places, batch)
    for batch in (1, 8)
    for dtype, places in (
        ('float32', 'float32'),
        ('float16', 'float16'),
        ('float16', 'float32'),  # as in mixed precision
        ('float64', 'float64'),
    )
]
FLASH_WIDTH, FLASH = 1024, [('float32', 'float32', 1), ('float16', 'float16', 1)]


def corner_bytes(value, loc):
    """Bytes of value that a forward pass reads: four corners a point."""
    points = loc.size // 2
    return 4 * points * value.shape[3] * value.itemsize


def moved_bytes(arrays):
    """Bytes that must move through memory at least: each array once."""
    return sum(a.nbytes for a in arrays)


def sets_of(nbytes, cache_bytes):
    """How many sets of so many bytes fill the cache twice, and never less than two."""
    return max(2, -(-2 * cache_bytes // nbytes))


def batch_of(arrays, N):
    """Repeat a picture's arrays N times, each time with other numbers."""
    return tuple(
        np.concatenate([np.roll(a, 7 * n, axis=1) for n in range(N)]) for a in arrays
    )


def tasks_of_steps(cupy, run, cache, dy):
    """Return ({step: function}, {step: function}) of every step on one set of inputs.

    The functions of the first return y, those of the second the gradients.

    Parameters
    ----------
    cupy : module
    run : callable
        Runs launches.
    cache : CoreCache
    dy : array
    """
    value, shapes, loc, A = cache
    levels = cupy.asarray(gpu.levels_of(shapes))

    def forward(**options):
        y = cupy.empty(dy.shape, dy.dtype)
        run(gpu.forward_launch(value, loc, A, levels, y, **options))
        return y

    def backward(**options):
        return gpu.backward(cupy, run, dy, cache, levels, **options)

    partial = functools.partial
    forwards = {step: partial(forward, step=step) for step in gpu.FORWARD}
    for n in (1, 4):
        forwards[f'v5, {n} at a time'] = partial(forward, step='v5', unroll=n)
    backwards = {step: partial(backward, step=step) for step in gpu.BACKWARD}
    backwards['deterministic'] = partial(backward, deterministic=True)
    return forwards, backwards


def torch_peers(cache, dy):
    """Return ({name: function}, {name: function}) of the peers on one set of inputs."""
    if peers.without_torch('cuda:0'):
        return {}, {}
    import torch

    value, loc, A = (
        torch.from_dlpack(a).requires_grad_() for a in (cache.value, cache.loc, cache.A)
    )
    given = torch.from_dlpack(dy).flatten(2)
    shapes = torch.tensor(cache.shapes, device='cuda')
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    forwards, backwards = {}, {}

    def add(name, function, leaves, pick):
        kept = []

        def forward():
            kept[:] = [function(*leaves)]
            return kept[0]

        def backward():
            if not kept:
                forward()
            return pick(torch.autograd.grad(kept[0], leaves, given, retain_graph=True))

        forwards[name], backwards[name] = forward, backward

    try:
        from torch_ms_deform_attn import ms_deform_attn

        def published(value, loc, A):
            return ms_deform_attn(value, shapes, starts, loc, A, 64)

        add('torch-ms-deform-attn', published, (value, loc, A), tuple)
    except ImportError:
        pass
    try:
        from DCNv4.functions import FlashDeformAttnFunction

        if value.dtype not in (torch.float16, torch.float32):
            raise NotImplementedError  # it would end the process
        N, Nq, M, L, K, _ = loc.shape
        with torch.no_grad():
            both = torch.cat([loc.flatten(3), A.log().flatten(3)], -1)
        both = both.to(value.dtype).contiguous().requires_grad_()

        def flash(value, both):
            return FlashDeformAttnFunction.apply(value, shapes, starts, both, 64, K)

        # of its other gradient, part is by logits: only dvalue and dloc compare
        def pick(gradients):
            dvalue, dboth = gradients
            return dvalue, dboth[..., : 2 * L * K].reshape(loc.shape)

        add('FlashDeformAttn', flash, (value, both), pick)
    except (ImportError, NotImplementedError):  # the latter: a card it does not know
        pass
    return forwards, backwards


def difference(got, wanted):
    """The largest difference of arrays, relative to the largest number."""
    host = [backend.to_host(a) if hasattr(a, 'get') else a.detach().cpu().numpy()
            for a in (got, wanted)]  # fmt: skip
    a, b = (h.astype(np.float64).ravel() for h in host)
    return np.abs(a - b).max() / np.abs(b).max()


def timed(cupy, tasks, runs):
    """Return the median of the milliseconds that tasks take, in turn, by events."""
    times = []
    # the first ones do not count: what they need is compiled, and the host gets ahead
    for i in range(-WARM_UP, runs):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        tasks[i % len(tasks)]()
        end.record()
        times.append((begin, end))
    end.synchronize()
    return statistics.median(
        cupy.cuda.get_elapsed_time(*both) for both in times[WARM_UP:]
    )


def bandwidth(cupy, nbytes, runs=20):
    """Return bytes a second that the card reads of so many bytes, again and again."""
    code = Path(__file__).with_name('read.cu').read_text()
    read = cupy.RawModule(code=code, options=cuda.OPTIONS, name_expressions=('read',))
    read = read.get_function('read')
    x, unused, times = cupy.zeros(nbytes // 4, 'float32'), cupy.zeros(1, 'float32'), 32
    device = cupy.cuda.Device()
    blocks = 8 * device.attributes['MultiProcessorCount']
    args = x, unused, np.int32(nbytes // 16), np.int32(times)
    ms = timed(cupy, [lambda: read((blocks,), (256,), args)], runs)
    return nbytes * times / (ms / 1e3)


def table(title, times, floor_ms, differences):
    """Return lines: each contender's time, what it is of the first peer's, the floor.

    Parameters
    ----------
    title : str
    times : dict
        {name: milliseconds, or a str that says why there are none}.
    floor_ms : float
    differences : dict
        {name: largest relative difference from the last step}.
    """
    peer = times.get('torch-ms-deform-attn')
    peer = None if isinstance(peer, str) else peer
    titles = 'ms', '/ published', 'of floor', 'differs by'
    lines = ['{:24}{:>9}{:>13}{:>10}{:>12}'.format(title, *titles)]
    for name, ms in times.items():
        if isinstance(ms, str):
            lines.append(f'{name:24}{ms}')
            continue
        ratio = f'{ms / peer:.2f}' if peer else ''
        line = f'{name:24}{ms:9.3f}{ratio:>13}{floor_ms / ms:10.0%}'
        lines.append(f'{line}{differences.get(name, 0):12.1e}')
    return lines


def measure(cupy, contenders, reference, runs):
    """Return (times, differences) of contenders: {name: [a function for each set]}."""
    wanted = reference()
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    times, differences = {}, {}
    for name, tasks in contenders.items():
        try:
            got = tasks[0]()
            got = got if isinstance(got, tuple) else (got,)
            differences[name] = max(map(difference, got, wanted))
            times[name] = timed(cupy, tasks, runs)
        except Exception as error:  # whatever a peer says
            reason = str(error) or repr(error)
            times[name] = f'  {reason.splitlines()[0][:60]}'
    return times, differences


def report(cupy, shapes, dtype, places, batch, runs):
    """Measure every contender on one size and precision; print both tables."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    cached = properties['l2CacheSize']

    def make(seed):
        value, loc, A, dy = batch_of(inputs(shapes, seed=seed), batch)
        value, dy = (cupy.asarray(a.astype(dtype)) for a in (value, dy))
        loc, A = (cupy.asarray(a.astype(places)) for a in (loc, A))
        return CoreCache(value, shapes, loc, A), dy

    first = make(0)
    arrays = first[0].value, first[0].loc, first[0].A, first[1]
    number = sets_of(moved_bytes(arrays), cached)
    sets = [first, *(make(seed) for seed in range(1, number))]
    run = functools.partial(cuda.launch, cupy)
    forward, backward = {}, {}
    for cache, dy in sets:
        for found in (tasks_of_steps(cupy, run, cache, dy), torch_peers(cache, dy)):
            for all_, some in zip((forward, backward), found):
                for name, task in some.items():
                    all_.setdefault(name, []).append(task)
    l2 = bandwidth(cupy, min(cached // 3, 1 << 24))
    memory = bandwidth(cupy, 1 << 30)
    read = corner_bytes(first[0].value, first[0].loc)
    print(f'{properties["name"].decode()}, CuPy {cupy.__version__}')
    print(f'levels {shapes}, batch {batch}, {dtype}, {places} places')
    print(f'{number} sets of {moved_bytes(arrays) / 1e6:.0f} MB in turn')
    print(f'second-level cache {l2 / 1e12:.2f} TB/s, memory {memory / 1e12:.2f} TB/s')
    moved = moved_bytes(arrays)
    print(f'corners {read / 1e9:.2f} GB; through memory {moved / 1e6:.0f} MB')
    floor = 1e3 * read / l2
    # backward: the corners are read, and as many bytes added to dvalue
    for title, contenders, last, ms in (
        ('forward', forward, 'v5', floor),
        ('backward', backward, 'v3', 2 * floor),
    ):
        times, differences = measure(cupy, contenders, contenders[last][0], runs)
        lines = table(title, times, ms, differences)
        print('\n' + '\n'.join(lines), flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--runs', type=int, default=200)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--height', type=int, default=800)
    parser.add_argument('--width', type=int, default=1066)
    parser.add_argument('--dtype', default='float32', help='or float16, float64')
    parser.add_argument(
        '--places', help='type of locations and weights; peers need that of --dtype'
    )
    parser.add_argument(
        '--all', action='store_true', help='each precision, batch 1 and 8, in turn'
    )
    options = parser.parse_args(arguments)
    try:
        backend.to_device(np.zeros(1), 'cuda:0')
    except backend.InputError as error:
        parser.exit(2, f'{error}\n')
    import cupy

    reason = peers.without_torch('cuda:0')
    if reason:
        print(f'PyTorch and its operators are left out: {reason}\n')
    one = options.dtype, options.places or options.dtype, options.batch
    cases = [(options.width, *case) for case in (ALL if options.all else [one])]
    if options.all:
        cases += [(FLASH_WIDTH, *case) for case in FLASH]
    failed = 0
    for width, dtype, places, batch in cases:
        shapes = shapes_of(options.height, width)
        try:
            report(cupy, shapes, dtype, places, batch, options.runs)
        except (MemoryError, RuntimeError) as error:  # of this case alone
            print(f'{dtype}, batch {batch}, width {width} is not measured: {error}')
            failed = 1
        print()
        cupy.get_default_memory_pool().free_all_blocks()
    return failed


if __name__ == '__main__':
    raise SystemExit(main())
