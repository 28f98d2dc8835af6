"""A run's losses and AP over its steps, as a picture."""

import numpy as np
from matplotlib.figure import Figure

from .detections import COLOURS

LOSSES = {'loss_ce': 'class (focal)', 'loss_bbox': 'L1', 'loss_giou': 'GIoU'}
WINDOWS = 50  # parts of a run over which losses are averaged


def draw_training(records):
    """Return the curves of a run.

    On the left the total loss and on the right AP and AP50; below them the losses of
    the last decoder layer, and the learning rate.

    Parameters
    ----------
    records : list of dict
        Of metrics.jsonl.

    Returns
    -------
    matplotlib.figure.Figure
    """
    steps = [r for r in records if r['kind'] == 'step']
    evals = [r for r in records if r['kind'] == 'eval']
    figure = Figure(figsize=(11, 7), layout='constrained')
    (total, ap), (parts, rate) = figure.subplots(2, 2, sharex=True)
    colours = [[v / 255 for v in colour] for colour in COLOURS]
    x = np.array([r['step'] for r in steps])
    window = max(1, len(steps) // WINDOWS)

    def curve(axes, name, colour, label):
        y = np.array([np.nan if r[name] is None else r[name] for r in steps], float)
        axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(_mean(x, window), _mean(y, window), color=colour, label=label)

    if steps:
        curve(total, 'loss', colours[0], 'all layers')
        for (name, label), colour in zip(LOSSES.items(), colours):
            curve(parts, name, colour, label)
        parts.legend(fontsize=8)
        rate.plot(x, [r['lr'] for r in steps], color=colours[0])
    for name, colour in zip(('AP', 'AP50'), colours):
        if evals:
            xs, ys = zip(*((r['step'], r[name]) for r in evals))
            ap.plot(xs, ys, '.-', color=colour, label=f'{name}: {ys[-1]:.3f}')
    if evals:
        ap.legend(fontsize=8)
    else:
        ap.text(0.5, 0.5, 'not evaluated', transform=ap.transAxes, ha='center')
    total.set(title='loss')
    ap.set(title='average precision', ylim=(0, 1))
    parts.set(title='losses of the last layer', xlabel='step')
    rate.set(title='learning rate', xlabel='step', ylim=(0, None))
    for axes in (total, ap, parts, rate):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def _mean(values, window):
    """The means of whole windows."""
    n = len(values) // window * window
    return values[:n].reshape(-1, window).mean(1)


def save_training(path, records):
    """Write the curves; the file's ending says in which format.

    Parameters
    ----------
    path : path
        Where to; what stands there is overwritten.
    records : list of dict
        As for `draw_training`.
    """
    draw_training(records).savefig(path, dpi=110)
