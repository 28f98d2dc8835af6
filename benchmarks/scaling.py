"""Time and memory against the pictures' size, the number of queries, and the batch.

    python benchmarks/scaling.py --runs 5 --json scaling.json
    python benchmarks/scaling.py --only size --training

ResNet-50, multi scale, float32, square pictures. Each point is a process of its own:
its peak memory is its own. The points of a curve run in turn, round after round: a
machine that slows down does not bend the curve. Multiply-accumulates are counted in a
real pass and compared with the formula of the paper's appendix A.1. Plots go to
docs/figures/. Needs no peer.
"""

import argparse
import statistics

import contest
import peers

SIZES = (320, 480, 640, 800, 960, 1120, 1280, 1440, 1600)
QUERIES = (100, 300, 600, 900, 1200)
BATCHES = (1, 2, 3, 4)
AXES = {'size': SIZES, 'queries': QUERIES, 'batch': BATCHES}
ELSEWHERE = {'size': 640, 'queries': 300, 'batch': 1}  # what the other axes are at
SLACK = 1.15  # a pixel may cost so many times one of a smaller picture


def detector(size, queries, batch, threads, keep):
    """Return the tasks of a point; for a `contest.Contender`."""
    from threadpoolctl import threadpool_limits

    import ddetr_np
    from ddetr_np import threads as pool
    from ddetr_np.analysis.complexity import counting
    from ddetr_np.testing_model import randomise

    pool.set_threads(threads)
    model = randomise(ddetr_np.build_model('multi_scale', Nq=queries))
    threadpool_limits(threads, 'blas')
    images = peers.pictures(size, size, batch)

    def inference():
        model.forward(images, keep='none')

    def training_pass():
        out, cache = model.forward(images, train=True, keep=keep)
        model.backward(out, cache)  # any gradient costs the same

    def count():
        with counting(model) as counted:
            _, cache = model.forward(images, keep='none')
        encoder = {'tokens': 0, 'attention': 0, 'sampled': 0, 'formula': 0}
        encoder['tokens'] = S = sum(H * W for H, W in cache.shapes)
        for i in range(model.config.encoder_layers):
            name = f'transformer.encoder.layers.{i}.self_attn'
            encoder['attention'] += counted.macs(name)
            encoder['sampled'] += counted.sampled(name)
            encoder['formula'] += batch * complexity(model.config, S, S)
        return {'all': counted.macs(), **encoder}

    return {'inference': inference, 'training pass': training_pass, 'count': count}


def complexity(config, Nq, HW):
    """A.1: N_q C² + min(HW C², N_q K C²) + 5 N_q K C + 3 N_q C M K, K in all levels."""
    C, M, K = config.C, config.M, config.L * config.K
    return Nq * C**2 + min(HW, Nq * K) * C**2 + 5 * Nq * K * C + 3 * Nq * C * M * K


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    contest.add_options(parser, runs=5)
    parser.add_argument('--only', choices=AXES, action='append')
    parser.add_argument('--sizes', nargs='+', type=int, default=SIZES)
    parser.add_argument('--training', action='store_true', help='training passes, too')
    parser.add_argument('--keep', choices=('all', 'inputs'), default='inputs')
    parser.add_argument(
        '--figures', default=contest.ROOT / 'docs' / 'figures', help='folder for plots'
    )
    args = parser.parse_args()
    figures = {'machine': contest.machine('matplotlib'), 'axes': {}}
    figures['options'] = {name: str(value) for name, value in vars(args).items()}
    tasks = ['inference', 'training pass'][: 1 + args.training]
    results = []
    for axis in args.only or AXES:
        values = args.sizes if axis == 'size' else AXES[axis]
        points = measure(axis, values, tasks, args)
        figures['axes'][axis] = points
        show(axis, points, tasks)
        if axis == 'size':
            results += [linear(points, task) for task in tasks]
    figures['targets'] = contest.verdicts(results)
    contest.save(args.json, figures)
    import plots

    for path in plots.draw(figures['axes'], args.figures):
        print(path)


def measure(axis, values, tasks, args):
    """Return a list of points: {'size', 'queries', 'batch', counts, seconds, peak}."""
    points = [{**ELSEWHERE, axis: value} for value in values]
    where = args.threads, args.keep
    for point in points:
        name = f'{axis} {point[axis]}'
        c = contest.Contender(name, detector, *point.values(), *where)
        point['macs'] = c.get('count')
        c.end()
        point['seconds'] = {task: [] for task in tasks}
    for task in tasks:
        for i in range(args.runs):
            for point in points:
                at = [point[name] for name in ELSEWHERE]
                name = f'{axis} {point[axis]}'
                c = contest.Contender(name, detector, *at, *where)
                c.get(task)  # the first run is no measure of time
                run = contest.undisturbed(c, task, args.quiet)
                point['seconds'][task].append(run.seconds)
                point.setdefault('peak', {})[task] = c.peak()
                c.end()
                contest.tell(f'run {i + 1}: {name}, {task}', run)
    return points


def show(axis, points, tasks):
    """Print the table of an axis."""
    head = [axis, 'tokens', 'GMAC', 'attention', 'by A.1']
    for task in tasks:
        head += [f'{task}, s', 'range', 'GFLOP/s', 'peak, GB']
    rows = [head]
    for p in points:
        macs = p['macs']
        # the paper counts five operations a sample and channel: four corners, one sum
        counted = macs['attention'] + macs['sampled'] * 5 / 4
        row = [
            str(p[axis]),
            str(macs['tokens']),
            f'{macs["all"] / 1e9:.1f}',
            f'{counted / 1e9:.2f}',
            f'{macs["formula"] / 1e9:.2f}',
        ]
        for task in tasks:
            taken = p['seconds'][task]
            middle = statistics.median(taken)
            work = 2e-9 * macs['all'] * (1 if task == 'inference' else 3)
            row += [f'{middle:.3f}', contest.span(taken)]
            row += [f'{work / middle:.0f}', f'{p["peak"][task] / 1e9:.2f}']
        rows.append(row)
    print(f'\n{axis}; attention: of the encoder, GMAC, counted and by the formula')
    contest.print_table(rows)


def linear(points, task):
    """Return how much dearer a pixel is than one of any smaller picture, at the worst.

    Returns
    -------
    (str, float, float)
        What it is, the ratio, and the most that counts as linear.
    """
    least, worst = float('inf'), 0.0
    for p in points:
        each = statistics.median(p['seconds'][task]) / p['size'] ** 2
        worst = max(worst, each / least)
        least = min(least, each)
    return f'{task}: cost of a pixel / of one of a smaller picture', worst, SLACK


if __name__ == '__main__':
    main()
