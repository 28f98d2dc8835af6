"""Peak resident memory of inference and of training, each in a process of its own.

    python benchmarks/memory.py
    python benchmarks/memory.py --variant two_stage --case inputs --plain

Measured is what the operating system saw at the highest, Python and its libraries
included (on Linux of this process alone: `ru_maxrss` would begin with its parent's).
Not for Windows, whose standard library has no such figure.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ('multi_scale', 'two_stage')
CASES = {
    'import': 'only the imports and the model',
    'none': "inference, keep='none'",
    'all': "training pass, keep='all'",
    'inputs': "training pass, keep='inputs'",
}


def run(variant, case, height, width, plain):
    """Do what the case says in this process; return its figures."""
    import numpy as np

    import ddetr_np
    from ddetr_np.analysis.machine import peak

    with ddetr_np.backend.plain() if plain else contextlib.nullcontext():
        model = ddetr_np.build_model(variant)
        rng = np.random.default_rng(0)
        # random weights, all of the same size: initial ones put all samples on a grid
        for p in model.params():
            p.data += 0.02 * rng.standard_normal(p.data.shape, np.float32)
        images = rng.standard_normal((1, height, width, 3), np.float32)
        start = time.perf_counter()
        if case == 'none':
            model.forward(images, keep='none')
        elif case != 'import':
            n = 10
            centre, size = rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.1, 0.5, (n, 2))
            boxes = np.concatenate([centre, size], -1)
            targets = [{'labels': rng.integers(1, 91, n), 'boxes': boxes}]
            out, cache = model.forward(images, train=True, keep=case)
            _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
            model.zero_grad()
            model.backward(dout, cache)
        return {'peak': peak(), 'seconds': time.perf_counter() - start}


def measure(variant, case, height=800, width=1066, plain=False):
    """Return the figures of a case, run in a fresh process: {'peak': bytes, 'seconds'}.

    `plain` keeps quicker twins of operations out.
    """
    command = [sys.executable, __file__, '--here', '--variant', variant, '--case', case]
    command += ['--size', str(height), str(width), *(['--plain'] if plain else [])]
    # the package beside this file, installed or not
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f'{variant}, {case}: {done.stderr}')
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--variant', choices=VARIANTS, action='append')
    parser.add_argument('--case', choices=CASES, action='append')
    parser.add_argument('--size', nargs=2, type=int, default=(800, 1066))
    parser.add_argument('--plain', action='store_true', help='the readable operations')
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        figures = run(args.variant[0], args.case[0], *args.size, args.plain)
        print(json.dumps(figures))
        return
    for variant in args.variant or VARIANTS:
        for case in args.case or CASES:
            figures = measure(variant, case, *args.size, args.plain)
            print(
                f'{variant:12} {CASES[case]:32} {figures["peak"] / 1e9:6.2f} GB '
                f'{figures["seconds"]:7.1f} s',
                flush=True,
            )


if __name__ == '__main__':
    main()
