"""A training pass of the whole detector, and a step of AdamW, beside PyTorch.

    pip install torch==2.13.0          # first: the operator below is built against it
    pip install --no-build-isolation -e '.[bench]'
    python benchmarks/training.py --runs 5 --json training.json

ResNet-50, multi scale, float32, batch 1, the same random weights in all, the published
parts frozen, dropout on. The pass is forward and backward from fixed gradients of the
last layer's logits and boxes (`transformers` gives out no other layer's); matching and
losses are in none. This package keeps freed memory, as `ddetr-np train` does. Before
anything is timed, the gradients of all parameters are compared, without dropout. Peers:
`transformers` as it is, and with the C++ operator of the package `torch-ms-deform-attn`
in its attention, backward too.

A step of AdamW clips by the global norm, as in training. PyTorch's default on the CPU
is its loop over the parameters (`foreach` is for GPUs); `fused=True` and the loop
without clipping are there for comparison.
"""

import argparse
import statistics
import sys
import tempfile

import contest
import numpy as np
import peers

TARGETS = {  # times of theirs
    ('PyTorch + C++ operator', 'training pass'): 0.8,
    ('PyTorch', 'training pass'): 0.4,
    ('PyTorch', 'AdamW step'): 1.0,
}
# Of all gradients together. In single precision a sample may lie beyond a pixel's
# centre in one and before it in the other, where the gradient is another.
TOLERANCE = 1e-2
LIBRARIES = ('torch', 'transformers', 'torch-ms-deform-attn')
PASS, STEP = 'training pass', 'AdamW step'


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    contest.add_options(parser, runs=5)
    parser.add_argument('--size', nargs=2, type=int, default=(800, 1066))
    args = parser.parse_args()
    figures = {'machine': contest.machine(*LIBRARIES), 'options': vars(args)}
    with tempfile.TemporaryDirectory() as folder:
        contest.Contender('weights', peers.save_weights, folder).end()
        where = folder, *args.size, args.threads
        contenders = contest.enter(
            {
                'ddetr-np': (peers.our_training, *where),
                "ddetr-np, keep='inputs'": (peers.our_training, *where, 'inputs'),
                'PyTorch + C++ operator': (peers.torch_training, *where, True),
                'PyTorch': (peers.torch_training, *where),
            }
        )
        figures['differences'] = compare(contenders)
        tasks = {name: [PASS] for name in contenders}
        tasks['ddetr-np'] = [PASS, STEP]
        if 'PyTorch' in contenders:
            tasks['PyTorch'] = [PASS, STEP, f'{STEP}, fused', f'{STEP}, not clipped']
        runs = contest.rounds(contenders, tasks, args.runs, args.quiet)
        # after the first rounds all hold what a training holds, optimiser's state too
        peak = {name: c.peak() for name, c in contenders.items()}
        for c in contenders.values():
            c.end()
    report(figures, runs, peak)
    contest.save(args.json, figures)


def compare(contenders):
    """Return {peer: relative distance of all gradients together, from ours}."""
    ours = contenders['ddetr-np']
    expected, size = ours.get('gradients'), ours.get('size')
    found = {}
    for name, c in contenders.items():
        if name == 'ddetr-np':
            continue
        if c.get('size') != size:
            sys.exit(f'{name} learns {c.get("size")} parameters, ddetr-np {size}')
        theirs = c.get('gradients')
        shared = [n for n in expected if n in theirs]
        difference = sum(float(np.sum((expected[n] - theirs[n]) ** 2)) for n in shared)
        whole = sum(float(np.sum(theirs[n] ** 2)) for n in shared)
        found[name] = (difference / whole) ** 0.5
        print(f'gradients of {name}: {found[name]:.1e} off, in {len(shared)} arrays')
        if not found[name] < TOLERANCE:
            sys.exit(f'more than {TOLERANCE:g}: these are not the same models')
    print(flush=True)
    for c in contenders.values():
        c.get('zero')
    return found


def report(figures, runs, peak):
    """Print the tables and the verdicts; put everything into figures."""
    results, ratios = [], {}
    for task in (PASS, STEP):
        rows = [(task, 'median, s', 'range', 'ours / it', 'range', 'peak, GB')]
        ours = runs['ddetr-np', task]
        for (name, what), taken in runs.items():
            if not what.startswith(task):
                continue
            seconds = contest.seconds(taken)
            row = [
                name + what.removeprefix(task),
                f'{statistics.median(seconds):.3f}',
                contest.span(seconds),
            ]
            if name == 'ddetr-np':
                row += ['', '']
            else:
                middle, *ends = contest.ratio(ours, taken)
                ratios[f'{name}: {what}'] = middle, *ends
                row += [f'{middle:.2f}', contest.span(ends, 2)]
                if (name, what) in TARGETS:
                    limit = TARGETS[name, what]
                    results.append((f'{what} / {name}', middle, limit))
            rows.append((*row, f'{peak[name] / 1e9:.2f}' if task == PASS else ''))
        contest.print_table(rows)
    figures.update(
        runs={f'{name}: {what}': taken for (name, what), taken in runs.items()},
        ratios=ratios,
        peak=peak,
        targets=contest.verdicts(results),
    )


if __name__ == '__main__':
    main()
