"""Precision over recall, as a picture."""

from matplotlib.figure import Figure

from ..evaluate.coco_ap import IOU, RECALL
from .detections import COLOURS

MOST = 10  # classes with a line each


def draw_curves(report):
    """Return precision–recall curves of an evaluation.

    On the left the mean over classes at each IoU from 0.5 to 0.95, on the right each
    class at IoU 0.5 (of many classes the ten most frequent).

    Parameters
    ----------
    report : Report
        What `evaluate` returned.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    occur = [k for k, c in enumerate(report.classes) if c.objects]
    for t, iou in enumerate(IOU):
        if occur:
            mean = report.precision[t][:, occur].mean(1)
            shade = 0.15 + 0.75 * t / (len(IOU) - 1)
            line = (0.1, 0.35 + 0.4 * shade, 0.75, 1.1 - shade)
            left.plot(RECALL, mean, color=line, label=f'{iou:.2f}')
    AP = report.figures['AP']
    left.set(title=f'all classes: AP {AP:.3f}', xlabel='recall', ylabel='precision')
    if occur:
        left.legend(title='IoU', fontsize=8)
    often = sorted(occur, key=lambda k: -report.classes[k].objects)[:MOST]
    for n, k in enumerate(often):
        c = report.classes[k]
        colour = [v / 255 for v in COLOURS[n % len(COLOURS)]]
        dash = '-' if n < len(COLOURS) else '--'
        name = f'{c.name}: AP50 {c.AP50:.3f}, {c.objects} objects'
        right.plot(RECALL, report.precision[0, :, k], dash, color=colour, label=name)
    right.set(title='IoU 0.5', xlabel='recall')
    if often:
        right.legend(fontsize=8)
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def save_curves(path, report):
    """Write the curves; the file's ending says in which format.

    Parameters
    ----------
    path : path
        Where to; what stands there is overwritten.
    report : Report
        As for `draw_curves`.
    """
    draw_curves(report).savefig(path, dpi=130)
