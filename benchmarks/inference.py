"""Inference of the whole detector, beside ONNX Runtime and PyTorch.

    pip install torch==2.13.0          # first: the operator below is built against it
    pip install --no-build-isolation -e '.[bench]'
    python benchmarks/inference.py --runs 9 --json inference.json

ResNet-50, multi scale, float32, batch 1, the same random weights in all; outputs are
compared before anything is timed. Peers: ONNX Runtime on the graph that PyTorch exports
of `transformers` (opset 20), `transformers` as it is, and with the C++ operator of the
package `torch-ms-deform-attn` in its attention. What is not installed is left out.
"""

import argparse
import statistics
import sys
import tempfile

import contest
import peers

FLOOR = 'its matrix products'
TARGETS = {  # times of theirs
    'ONNX Runtime': 1.0,
    'PyTorch + C++ operator': 0.7,
    'PyTorch': 0.42,
    FLOOR: 1.35,
}
TOLERANCE = 1e-3  # of the largest output, in single precision through 100 layers
LIBRARIES = (
    'torch', 'transformers', 'torch-ms-deform-attn', 'onnx', 'onnxruntime', 'onnxscript'
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    contest.add_options(parser, runs=9)
    parser.add_argument('--size', nargs=2, type=int, default=(800, 1066))
    args = parser.parse_args()
    figures = {'machine': contest.machine(*LIBRARIES), 'options': vars(args)}
    with tempfile.TemporaryDirectory() as folder:
        contest.Contender('weights', peers.save_weights, folder, args.size).end()
        where = folder, *args.size, args.threads
        contenders = contest.enter(
            {
                'ddetr-np': (peers.our_inference, *where),
                'ONNX Runtime': (peers.onnx_inference, *where),
                'PyTorch + C++ operator': (peers.torch_inference, *where, True),
                'PyTorch': (peers.torch_inference, *where),
            }
        )
        figures['differences'] = compare(contenders)
        # in turn with the others: the machine's speed wanders, and theirs with it
        contenders[FLOOR] = contest.Contender(FLOOR, peers.our_products, *where)
        figures['macs'] = contenders[FLOOR].get('macs')
        tasks = {name: ['inference'] for name in contenders}
        runs = contest.rounds(contenders, tasks, args.runs, args.quiet)
        peak = {name: c.peak() for name, c in contenders.items()}
        for c in contenders.values():
            c.end()
    report(figures, runs, peak)
    contest.save(args.json, figures)


def compare(contenders):
    """Return {peer: how far its outputs are from ours}, of the largest output."""
    ours = contenders['ddetr-np'].get('inference')
    found = {}
    for name, c in contenders.items():
        if name != 'ddetr-np':
            theirs = c.get('inference')
            found[name] = float(
                max(abs(a - b).max() / abs(b).max() for a, b in zip(ours, theirs))
            )
            print(f'outputs differ from {name} by {found[name]:.1e} of the largest')
            if not found[name] < TOLERANCE:  # NaN fails too
                sys.exit(f'more than {TOLERANCE:g}: these are not the same models')
    print(flush=True)
    return found


def report(figures, runs, peak):
    """Print the table and the verdicts; put everything into figures."""
    ours = runs['ddetr-np', 'inference']
    rows = [('', 'median, s', 'range', 'ours / it', 'range', 'peak, GB')]
    results, ratios = [], {}
    for (name, _), taken in runs.items():
        seconds = contest.seconds(taken)
        row = [name, f'{statistics.median(seconds):.3f}', contest.span(seconds)]
        if name == 'ddetr-np':
            row += ['', '']
        else:
            middle, *ends = ratios[name] = contest.ratio(ours, taken)
            row += [f'{middle:.2f}', contest.span(ends, 2)]
            results.append((f'inference / {name}', middle, TARGETS[name]))
        rows.append((*row, '' if name == FLOOR else f'{peak[name] / 1e9:.2f}'))
    contest.print_table(rows)
    floors = contest.seconds(runs[FLOOR, 'inference'])
    above = statistics.median(contest.seconds(ours)) / min(floors)
    rate = 2e-9 * figures['macs'] / statistics.median(floors)
    print(f'products: {rate:.0f} GFLOP/s; inference / the quickest of them {above:.2f}')
    figures.update(
        runs={name: taken for (name, _), taken in runs.items()},
        ratios=ratios,
        over_quickest_floor=above,
        peak=peak,
        targets=contest.verdicts(results),
    )


if __name__ == '__main__':
    main()
