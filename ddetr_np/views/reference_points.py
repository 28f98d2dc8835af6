"""Where queries look from and how their boxes move, drawn into the picture."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..analysis.reference_points import (
    first_stage,
    learned_points,
    steps,
    token_grid,
)
from ..ops.boxes import cxcywh_to_xyxy
from .detections import COLOURS

MOST = 6  # detections whose boxes are followed
LINES = [tuple(v / 255 for v in COLOURS[i]) for i in (0, 1, 2, 6, 5, 4, 3)]


def draw_reference_points(seen, threshold=0.3):
    """Return the reference points of a picture that a model has looked at.

    The encoder's grid of tokens; where the decoder's queries start from, learned points
    or proposals; the best detections' boxes layer by layer; and how far they move.

    Parameters
    ----------
    seen : Look
        The picture and the pass it made.
    threshold : float
        Detections whose boxes are followed, of these the six best. If none scores as
        much, the best one.

    Returns
    -------
    matplotlib.figure.Figure
    """
    H, W = seen.picture.shape[:2]
    wide = 4.2 * float(np.clip(W / H, 0.6, 1.8))
    figure = Figure(figsize=(2 * wide + 1.2, 9), layout='constrained')
    (grid, start), (boxes, moves) = figure.subplots(2, 2)
    for axes in (grid, start, boxes):
        _picture(axes, seen.picture)
    _draw_tokens(grid, seen)
    if seen.model.config.two_stage:
        _draw_proposals(start, seen)
    else:
        _draw_points(start, seen)
    chosen = _best(seen, threshold)
    _draw_steps(boxes, steps(seen, chosen))
    _draw_moves(moves, steps(seen, chosen), steps(seen))
    return figure


def _best(seen, threshold):
    """The queries of the best detections, each once."""
    n = max(1, int((seen.best.scores >= threshold).sum()))
    return list(dict.fromkeys(seen.best.queries[:n].tolist()))[:MOST]


def _picture(axes, picture):
    H, W = picture.shape[:2]
    # half as strong: what is drawn on top is to be seen
    axes.imshow(255 - (255 - picture.astype(int)) // 2, extent=(0, W, H, 0))
    axes.set(xlim=(0, W), ylim=(H, 0), xlabel='x, pixels', ylabel='y, pixels')


def _draw_tokens(axes, seen):
    H, W = seen.picture.shape[:2]
    shapes = seen.cache.shapes
    grid = token_grid(seen.model.config, [seen.images.shape[1:3]])
    for l, (h, w) in enumerate(shapes):
        xy = grid.p_hat[0, grid.level == l, l] * (W, H)
        size = (2.5 + 2.5 * l) ** 2 / 4
        axes.scatter(
            *xy.T, s=size, color=LINES[l % len(LINES)], linewidths=0, zorder=2 + l,
            label=f'level {l + 1}: {h} × {w}',
        )  # fmt: skip
    axes.set_title('encoder: each token from its own place')
    axes.legend(fontsize=8, loc='upper right', framealpha=0.9)


def _draw_points(axes, seen):
    H, W = seen.picture.shape[:2]
    xy = learned_points(seen.model) * (W, H)
    axes.scatter(*xy.T, s=12, color=LINES[4], edgecolors='white', linewidths=0.4)
    axes.set_title(f'decoder: {len(xy)} learned points, the same for all pictures')


def _draw_proposals(axes, seen):
    H, W = seen.picture.shape[:2]
    found = first_stage(seen)
    has_base = ~np.isnan(found.base[found.top, 0])
    top = found.top[has_base]
    xyxy = cxcywh_to_xyxy(found.boxes[top]) * (W, H, W, H)
    for token, box in zip(top[::-1], xyxy[::-1]):
        colour = LINES[found.level[token] % len(LINES)]
        alpha = 0.15 + 0.85 * found.scores[token]
        _box(axes, box, edgecolor=colour, alpha=float(alpha), linewidth=1)
    for l in np.unique(found.level[top]):
        n = (found.level[top] == l).sum()
        axes.plot([], [], color=LINES[l % len(LINES)], label=f'level {l + 1}: {n}')
    axes.legend(fontsize=8, loc='upper right', framealpha=0.9)
    axes.set_title(f'decoder: {len(top)} proposals, the fainter the lower their score')


def _box(axes, box, **style):
    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style))


def _draw_steps(axes, found):
    D = len(found.boxes)
    H, W = axes.get_ylim()[0], axes.get_xlim()[1]
    for i in range(len(found.queries)):
        colour = LINES[i % len(LINES)]
        for d in range(D):
            last = d == D - 1
            _box(
                axes, found.boxes[d, i], edgecolor=colour,
                alpha=1 if last else 0.25 + 0.5 * d / D, linewidth=2 if last else 1,
            )  # fmt: skip
        start = found.p_hat[0, i, :2] * (W, H)
        centres = (found.boxes[:, i, :2] + found.boxes[:, i, 2:]) / 2
        axes.plot(*np.vstack([start, centres]).T, '.-', color=colour, markersize=4)
        axes.plot(
            *start, 'x', color=colour, markersize=7, markeredgewidth=2,
            label=f'query {found.queries[i]}',
        )  # fmt: skip
    axes.legend(fontsize=8, loc='upper right', framealpha=0.9)
    axes.set_title(f'boxes of {D} layers, the last one thick; × is the first reference')


def _draw_moves(axes, best, every):
    D = len(every.boxes)
    layers = np.arange(1, D + 1)
    other = axes.twinx()
    for found, fill, who in ((best, 'full', 'drawn'), (every, 'none', 'all queries')):
        line = {'linestyle': '-' if fill == 'full' else '--', 'fillstyle': fill}
        shift, iou = (np.median(a, 1) for a in (found.shift, found.iou))
        axes.plot(layers, shift, 'o', color=LINES[4], label=f'shift, {who}', **line)
        other.plot(layers, iou, 's', color=LINES[2], label=f'IoU, {who}', **line)
    axes.set(
        title='from layer to layer, medians', xlabel='decoder layer', xticks=layers,
        ylabel='shift of the centre, pixels', ylim=(0, None),
    )  # fmt: skip
    other.set(ylabel="IoU with the last layer's box", ylim=(0, 1.03))
    axes.yaxis.label.set_color(LINES[4])
    other.yaxis.label.set_color(LINES[2])
    axes.grid(alpha=0.3)
    for a in (axes, other):
        a.spines['top'].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    more, names = other.get_legend_handles_labels()
    other.legend(handles + more, labels + names, fontsize=8, loc='center right')


def draw_padding(config, sizes):
    """Return where the tokens of padded pictures look from, a plot for each picture.

    The two coarsest levels' own points are drawn, those of padded tokens hollow: they
    lie outside the picture. The share of each level that is not padding is written out.

    Parameters
    ----------
    config : Config
        Of the model whose feature levels are drawn.
    sizes : sequence of (H, W)
        The pictures' pixels; the batch has the largest of each.

    Returns
    -------
    matplotlib.figure.Figure
    """
    grid = token_grid(config, sizes)
    H, W = np.max(sizes, 0)
    n = len(sizes)
    figure = Figure(figsize=(5.2 * n, 4.7 * H / W + 1.2), layout='constrained')
    plots = figure.subplots(1, n, squeeze=False)[0]
    for i, (axes, (h, w)) in enumerate(zip(plots, sizes)):
        axes.add_patch(Rectangle((0, 0), W, H, color='0.88', label='padding'))
        axes.add_patch(Rectangle((0, 0), w, h, color='white'))
        for l in range(len(grid.shapes))[-2:]:
            xy = grid.p_hat[i, grid.level == l, l] * (W, H)
            inside = (xy < grid.ratios[i, l] * (W, H)).all(-1)
            colour, size = LINES[l % len(LINES)], 14 + 10 * l
            name = f'level {l + 1}'
            axes.scatter(*xy[inside].T, s=size, color=colour, label=name)
            axes.scatter(*xy[~inside].T, s=size, color='none', edgecolors=colour)
        shares = ', '.join(f'{x:.3f} × {y:.3f}' for x, y in grid.ratios[i])
        axes.set(
            title=f'{h} × {w} of {H} × {W}', xlim=(0, W), ylim=(H, 0),
            xlabel=f'x, pixels\nvalid share, width × height by level:\n{shares}',
            ylabel='y, pixels', aspect='equal',
        )  # fmt: skip
        axes.legend(fontsize=8, loc='lower right', framealpha=0.9)
    return figure


def save_reference_points(path, seen, threshold=0.3):
    """Write `draw_reference_points`; the file's ending says in which format.

    Parameters
    ----------
    path : path
        Where to; what stands there is overwritten.
    seen, threshold
        As for `draw_reference_points`.
    """
    draw_reference_points(seen, threshold).savefig(path, dpi=120)
