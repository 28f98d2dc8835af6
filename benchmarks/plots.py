"""Plots of what `scaling.py` measured: readable on a light page and on a dark one."""

import statistics
from pathlib import Path

LABELS = {
    'size': 'picture, million pixels',
    'queries': 'queries',
    'batch': 'pictures in the batch',
}
COLOURS = {'inference': '#2a7de1', 'training pass': '#e07b00'}
GREY = '#808080'  # seen on white and on black


def draw(axes, folder):
    """Draw time and memory along each axis; return the files' paths.

    Parameters
    ----------
    axes : dict
        Axis → list of points, as `scaling.measure` makes them.
    folder : path
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    style = {
        'font.size': 11,
        'text.color': GREY,
        'axes.labelcolor': GREY,
        'axes.edgecolor': GREY,
        'xtick.color': GREY,
        'ytick.color': GREY,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'legend.frameon': False,
        'savefig.transparent': True,
    }
    paths = []
    for axis, points in axes.items():
        with plt.rc_context(style):
            figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
            x = [_place(axis, p) for p in points]
            for task in points[0]['seconds']:
                _line(left, x, points, task)
                peak = [p['peak'][task] / 1e9 for p in points]
                right.plot(x, peak, 'o-', color=COLOURS[task], label=task)
            left.set_ylabel('seconds')
            right.set_ylabel('peak resident memory, GB')
            for ax in (left, right):
                ax.set_xlabel(LABELS[axis])
                ax.set_xlim(0, None)
                ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
                ax.grid(color=GREY, alpha=0.2)
            left.legend(labelcolor=GREY, loc='upper left')
            figure.tight_layout()
            path = folder / f'scaling-{axis}.png'
            figure.savefig(path, dpi=150)
            plt.close(figure)
            paths.append(path)
    return paths


def _place(axis, point):
    return point['size'] ** 2 / 1e6 if axis == 'size' else point[axis]


def _line(ax, x, points, task):
    """Medians with their ranges, and what the first point would be in proportion."""
    seconds = [p['seconds'][task] for p in points]
    middle = [statistics.median(s) for s in seconds]
    low, high = [min(s) for s in seconds], [max(s) for s in seconds]
    ax.plot(x, middle, 'o-', color=COLOURS[task], label=task)
    ax.fill_between(x, low, high, color=COLOURS[task], alpha=0.25, linewidth=0)
    work = [p['macs']['all'] for p in points]
    same = [middle[0] * w / work[0] for w in work]
    label = 'in proportion to its work' if task == 'inference' else None
    ax.plot(x, same, '--', color=GREY, linewidth=1, label=label)
