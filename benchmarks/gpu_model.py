"""The whole detector on a GPU, inference and a training step, beside PyTorch eager.

    pip install 'ddetr-np[gpu12]'                 # or [gpu13]: CuPy
    pip install torch transformers
    python benchmarks/gpu_model.py
    python benchmarks/gpu_model.py --batch 8 --precision half
    python benchmarks/gpu_model.py --all --json gpu.json    # every batch and precision

NO FIGURE OF THIS SCRIPT HAS BEEN MEASURED YET: it was written without a GPU.
`--device cpu --height 64 --width 96` tries it without one; those times mean nothing.

ResNet-50, multi scale, the same random weights in both, 800 × 1333, one process, both
on the device's default stream, in turn, each time with other pictures. Times are
between two events on the device, medians; ratios are of runs of the same round.
Precisions:

- single: products of single precision in both (PyTorch's convolutions would otherwise
  use TF32);
- tf32: products of factors rounded to TF32, sums in single precision, in both;
- half: here `mixed`; in PyTorch `autocast`, and for inference also `model.half()`.

A training step is forward, backward from fixed gradients of the last layer's logits and
boxes (`transformers` gives out no other layer's), clipping and AdamW; stem and first
stage are frozen, dropout is on, matching and losses are in neither. Before anything is
timed the outputs are compared.
"""

import argparse
import contextlib
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest
import numpy as np
import peers

PRECISIONS = ('single', 'tf32', 'half')
BATCHES = (1, 8)
SETS = 3  # of pictures, used in turn
WARM_UP = 3
INFERENCE, STEP = 'inference', 'training step'
TARGET = 1.0  # of PyTorch's time, for both
# of the largest logit. A sample may lie on a pixel's other side, where the map differs
TOLERANCE = {'single': 1e-3, 'tf32': 5e-2, 'half': 5e-2}
LOSS_SCALE = 2.0**10  # of half precision
GRADIENT = 2.0**-10  # of the fixed ones: those of a loss that is a mean are so small


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--runs', type=int, default=30, help='rounds that count')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--height', type=int, default=800)
    parser.add_argument('--width', type=int, default=1333)
    parser.add_argument('--precision', choices=PRECISIONS, default='single')
    parser.add_argument('--device', default='cuda:0')
    parser.add_argument('--all', action='store_true', help='all batches, precisions')
    parser.add_argument('--json', help='file for all figures')
    args = parser.parse_args(words)
    cases = [(args.batch, args.precision)]
    if args.all:
        cases = [(N, precision) for N in BATCHES for precision in PRECISIONS]
    if len(cases) > 1:
        return run_each(args, cases)
    return run_one(args)


def run_each(args, cases):
    """Run a process for each case: TF32 is chosen when CuPy is imported."""
    failed = 0
    for N, precision in cases:
        words = [sys.executable, __file__, '--batch', N, '--precision', precision]
        for name in ('runs', 'height', 'width', 'device'):
            words += [f'--{name}', getattr(args, name)]
        if args.json:
            path = Path(args.json)
            words += ['--json', path.with_stem(f'{path.stem}-{N}-{precision}')]
        print(f'--- batch {N}, {precision}\n', flush=True)
        # what one case cannot do the next may
        failed += subprocess.run([*map(str, words)]).returncode != 0
    if failed:
        print(f'{failed} of {len(cases)} cases failed')
    return min(failed, 1)


def run_one(args):
    if args.precision == 'tf32':
        os.environ['CUPY_TF32'] = '1'
    from ddetr_np import InputError, backend

    try:
        backend.need_device(args.device)
    except InputError as error:
        raise SystemExit(str(error)) from error
    libraries = 'cupy-cuda12x', 'cupy-cuda13x', 'torch', 'transformers'
    figures = {'machine': contest.machine(*libraries)}
    figures['options'] = vars(args)
    figures['card'] = card(args.device)
    print(f'{figures["card"]}, {args.precision}, batch {args.batch}\n')
    sets = pictures(args)
    with tempfile.TemporaryDirectory() as folder:
        weights = save_weights(folder)
        tasks, theirs = ours(weights, sets, args.device, args.precision), {}
        reason = peers.without_torch(args.device, 'transformers')
        if reason:
            print(f'PyTorch is left out: {reason}')
        else:
            theirs = torch_tasks(weights, sets, args.device, args.precision)
    figures['differences'] = compare(tasks, theirs, TOLERANCE[args.precision])
    clock = Clock(args.device)
    results = []
    for what in (INFERENCE, STEP):
        contenders = {n: t[what] for some in (tasks, theirs) for n, t in some.items()
                      if what in t}  # fmt: skip
        times = rounds(clock, contenders, args.runs)
        figures[what] = times
        results += report(what, times)
        contest.save(args.json, figures)  # should the next not fit the card
    figures['targets'] = contest.verdicts(results)
    contest.save(args.json, figures)
    return 0


def save_weights(folder):
    """Save a model; return its path. PyTorch draws it, and else this package does."""
    import ddetr_np
    from ddetr_np.testing_model import randomise

    try:
        peers.save_weights(folder)
        return folder
    except ImportError:
        path = Path(folder) / 'model.safetensors'
        ddetr_np.save_model(randomise(ddetr_np.build_model('multi_scale')), path)
        return path


def card(device):
    """Return the device's name, and the CUDA of CuPy and of the driver."""
    if device == 'cpu':
        return 'CPU'
    import cupy

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(int(device.partition(':')[2] or 0))['name']
    versions = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    cuda, driver = (f'{v // 1000}.{v % 1000 // 10}' for v in versions)
    return f'{name.decode()}, CUDA {cuda}, driver for {driver}'


def pictures(args):
    """Return sets of normalised noise, all different, on the host."""
    first = peers.pictures(args.height, args.width, args.batch)
    return [np.roll(first, 17 * i, axis=2) for i in range(SETS)]


class Clock:
    """Times work on a device, by its own events."""

    def __init__(self, device):
        self.device = device

    def time(self, task):
        """Return the milliseconds that a task takes on the device."""
        if self.device == 'cpu':
            start = time.perf_counter()
            task()
            return 1e3 * (time.perf_counter() - start)
        import cupy

        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        task()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end)


def rounds(clock, contenders, runs):
    """Return {name: milliseconds of each round}; each round has other pictures.

    Whoever does not fit the card beside the others is left out, and told of.
    """
    for name, task in [*contenders.items()]:
        try:
            for i in range(WARM_UP):
                task(i % SETS)
        except (MemoryError, RuntimeError) as error:
            # PyTorch's is a RuntimeError that says so
            if isinstance(error, RuntimeError) and 'out of memory' not in str(error):
                raise
            print(f'{name} does not fit: {str(error).splitlines()[0]}')
            del contenders[name]
    times = {name: [] for name in contenders}
    for i in range(runs):
        for name, task in contenders.items():
            times[name].append(clock.time(functools.partial(task, i % SETS)))
    return times


def report(what, times):
    """Print a table; return (what, ratio, target) of each pair that has a target."""
    rows, results = [(what, 'median, ms', 'range', 'of PyTorch', 'range')], []
    peer = min(
        (n for n in times if n.startswith('PyTorch')),
        key=lambda n: statistics.median(times[n]),
        default=None,
    )
    for name, taken in times.items():
        row = [name, f'{statistics.median(taken):.2f}', contest.span(taken, 2), '', '']
        if peer and not name.startswith('PyTorch'):
            ratios = [a / b for a, b in zip(taken, times[peer], strict=True)]
            middle = statistics.median(ratios)
            row[3:] = f'{middle:.2f}', contest.span(ratios, 2)
            results.append((f'{what}: {name} / {peer}', middle, TARGET))
        rows.append(row)
    contest.print_table(rows)
    return results


def compare(tasks, theirs, tolerance):
    """Return {peer: largest difference of the last logits}, relative to the largest."""
    found = {}
    expected = as_host(tasks['ddetr-np']['logits'](0))
    for name, their in {**tasks, **theirs}.items():
        if name == 'ddetr-np':
            continue
        got = as_host(their['logits'](0))
        found[name] = float(abs(got - expected).max() / abs(expected).max())
        print(f'logits of {name}: {found[name]:.1e} off')
        if not found[name] < tolerance:
            raise SystemExit(f'more than {tolerance:g}: these are not the same models')
    print()
    return found


def as_host(a):
    """Return an array of any library as NumPy's, in double precision."""
    from ddetr_np import backend

    if hasattr(a, 'detach'):
        a = a.detach().float().cpu().numpy()
    return backend.to_host(a).astype(np.float64)


def ours(folder, sets, device, precision):
    """Return {contender: {task: function of a set's number}} of this package.

    Parameters
    ----------
    folder : path
        Of the weights.
    sets : list of (N, H, W, 3) arrays
        On the host.
    device : str
    precision : {'single', 'tf32', 'half'}
    """
    import ddetr_np
    from ddetr_np import backend

    model = ddetr_np.load_model(folder).to(device)
    images = [backend.to_device(a, device) for a in sets]
    config = model.config
    fixed = peers.gradients_of_output((len(sets[0]), config.Nq))
    scale = LOSS_SCALE if precision == 'half' else 1.0
    fixed = (d * np.float32(scale * GRADIENT) for d in fixed)
    dlogits, dboxes = (backend.to_device(d, device) for d in fixed)
    nothing = [None] * (config.decoder_layers - 1)
    optimizer = ddetr_np.AdamW(model, peers.LR, peers.DECAY, peers.CLIP)

    def block():
        return backend.mixed() if precision == 'half' else contextlib.nullcontext()

    def infer(i):
        with block():
            return model.forward(images[i], keep='none')[0]

    def step(i):
        model.zero_grad()
        with block():
            out, cache = model.forward(images[i], train=True)
            model.backward(type(out)([*nothing, dlogits], [*nothing, dboxes]), cache)
        optimizer.step(scale)

    tasks = {
        'ddetr-np': {
            INFERENCE: infer, STEP: step, 'logits': lambda i: infer(i).logits[-1]
        }
    }
    if device != 'cpu':
        from ddetr_np.fast.graph import Graph

        try:
            with block():
                graph = Graph(model, *sets[0].shape[:3])
        except ddetr_np.InputError as error:
            print(f'the CUDA graph is left out: {error}')
            return tasks
        tasks['ddetr-np, CUDA graph'] = {
            INFERENCE: lambda i: graph(images[i]),
            'logits': lambda i: graph(images[i]).logits[-1],
        }
    return tasks


def torch_tasks(folder, sets, device, precision):
    """Return the same of PyTorch with `transformers`, as they are.

    Parameters
    ----------
    folder, sets, device, precision
        As of `ours`.
    """
    import torch
    import transformers

    exact = precision != 'tf32'
    torch.backends.cuda.matmul.allow_tf32 = not exact
    torch.backends.cudnn.allow_tf32 = not exact
    transformers.utils.logging.disable_progress_bar()

    def load():
        Model = transformers.DeformableDetrForObjectDetection
        return Model.from_pretrained(folder).to(device)

    def put(a, dtype=torch.float32):
        return torch.from_numpy(np.ascontiguousarray(a)).to(device, dtype)

    images = [put(a.transpose(0, 3, 1, 2)) for a in sets]
    model, kind = load(), torch.device(device).type
    fixed = peers.gradients_of_output((len(sets[0]), model.config.num_queries))
    scale = LOSS_SCALE if precision == 'half' else 1.0
    dlogits, dboxes = (put(d) * (scale * GRADIENT) for d in fixed)
    for name, p in model.named_parameters():
        p.requires_grad_('embedder.' not in name and '.encoder.stages.0.' not in name)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=peers.LR, weight_decay=peers.DECAY)

    def block():
        half = precision == 'half'
        return torch.autocast(kind, torch.float16, enabled=half)

    @torch.inference_mode()
    def infer(model, images, i):
        model.eval()
        with block():
            return model(images[i])

    def step(i):
        model.train()
        optimizer.zero_grad()
        with block():
            out = model(images[i])
        loss = (out.logits.float() * dlogits).sum()
        (loss + (out.pred_boxes.float() * dboxes).sum()).backward()
        for p in learning:  # as GradScaler does before clipping
            if scale != 1 and p.grad is not None:
                p.grad /= scale
        torch.nn.utils.clip_grad_norm_(learning, peers.CLIP)
        optimizer.step()

    name = 'PyTorch, autocast' if precision == 'half' else 'PyTorch'
    tasks = {
        name: {
            INFERENCE: functools.partial(infer, model, images),
            STEP: step,
            'logits': lambda i: infer(model, images, i).logits,
        }
    }
    if precision == 'half':
        halved, halves = load().half(), [a.half() for a in images]

        def infer_half(i):
            with torch.inference_mode():
                return halved.eval()(halves[i])

        tasks['PyTorch, half'] = {
            INFERENCE: infer_half, 'logits': lambda i: infer_half(i).logits
        }
    return tasks


if __name__ == '__main__':
    raise SystemExit(main())
