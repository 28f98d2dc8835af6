"""What Figures 5 and 6 cost, beside a forward pass and a training pass.

    python benchmarks/looking.py --runs 3 --json looking.json

ResNet-50, multi scale, float32, one picture, random weights. Figure 6 is the command's
own work for the decoder's last layer: detecting, keeping what the layers read,
computing the asked layer again, drawing, and writing a PNG; it is held against a
forward pass that keeps nothing. Figure 5 is five backward passes, one for each item of
a detection, with the drawing; it is held against one training pass.
"""

import argparse
import functools
import statistics
import tempfile
from pathlib import Path

import contest
import numpy as np
import peers

TARGETS = {('Figure 6', 'forward'): 1.3, ('Figure 5', 'training pass'): 6.0}
TASKS = ('forward', 'Figure 6', 'training pass', 'Figure 5')


def looking(H, W, threads, variant, folder):
    """Tasks: the two figures as the command makes them, and the two passes."""
    from threadpoolctl import threadpool_limits

    import ddetr_np
    from ddetr_np.analysis.look import look
    from ddetr_np.commands.figures import draw_gradients, draw_points

    ddetr_np.threads.set_threads(threads)
    ddetr_np.threads.keep_freed_memory()
    model = ddetr_np.build_model(variant)
    rng = np.random.default_rng(0)
    for p in model.params():
        p.data += 0.02 * rng.standard_normal(p.data.shape, np.float32)
    threadpool_limits(threads, 'blas')
    images = peers.pictures(H, W)
    picture = rng.integers(0, 256, (H, W, 3), np.uint8)
    fixed = peers.gradients_of_output((1, model.config.Nq))
    dlogits, dboxes = (
        [None] * (model.config.decoder_layers - 1) + [d] for d in fixed
    )
    base = str(Path(folder) / 'figure')
    see = functools.partial(look, model, picture, min(H, W), max(H, W))

    def training_pass():
        out, cache = model.forward(images, train=True)
        model.backward(type(out)(dlogits, dboxes), cache)

    def figure_6():
        seen = see()
        subject = int(seen.best.queries[0]), int(seen.best.labels[0])
        draw_points(seen, 'decoder', subject, base, endings=('png',))

    return {
        'forward': lambda: model.forward(images, keep='none'),
        'Figure 6': figure_6,
        'training pass': training_pass,
        'Figure 5': lambda: draw_gradients(see(), 0, base, endings=('png',)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    contest.add_options(parser, runs=3)
    parser.add_argument('--size', nargs=2, type=int, default=(800, 1066))
    parser.add_argument('--variant', default='multi_scale')
    args = parser.parse_args()
    figures = {'machine': contest.machine('matplotlib'), 'options': vars(args)}
    with tempfile.TemporaryDirectory() as folder:
        where = *args.size, args.threads, args.variant, folder
        contenders = contest.enter({'ddetr-np': (looking, *where)})
        runs = contest.rounds(contenders, {'ddetr-np': TASKS}, args.runs, args.quiet)
        contenders['ddetr-np'].end()
    report(figures, {task: taken for (_, task), taken in runs.items()})
    contest.save(args.json, figures)


def report(figures, runs):
    """Print the table and the verdicts; put everything into figures."""
    rows, results, ratios = [('', 'median, s', 'range')], [], {}
    for task, taken in runs.items():
        seconds = contest.seconds(taken)
        middle = f'{statistics.median(seconds):.3f}'
        rows.append((task, middle, contest.span(seconds)))
    contest.print_table(rows)
    for (figure, against), limit in TARGETS.items():
        what = f'{figure} / {against}'
        ratios[what] = contest.ratio(runs[figure], runs[against])
        results.append((what, ratios[what][0], limit))
    figures['runs'] = runs
    figures['ratios'] = ratios
    figures['targets'] = contest.verdicts(results)


if __name__ == '__main__':
    main()
