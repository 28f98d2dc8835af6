"""Where a query reads, and how much each reading counts: Figure 6 of A.6.

    seen = look(model, 'photo.jpg')
    reads = decoder_reads(seen, query=17)
    axes = draw_sampling(reads)           # or draw_sampling(reads, axes, head=3)
    save_figure('photo.svg', axes.figure)

Figures belong to no window. A notebook shows the one that a cell ends with, after
`%matplotlib inline`.
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..analysis.look import (
    index_of,
)
from ..errors import InputError

GREEN = '#00e000'
COLOURS = 'plasma'  # runs evenly from dark to bright, and has no green
MARGIN = 0.1  # of the picture's sides: points farther out are counted, not drawn
LONG = 6.4  # inches of a picture's long side
SECONDS = 1.0  # of a layer in an animation
NAME = 28  # characters of a class's name above its box


def draw_sampling(
    reads, axes=None, head=None, level=None, zoom=1, most=None, bar=True, size=26
):
    """Draw sampling points, all levels in one picture, coloured by attention weight.

    The reference point is a green cross; where it is a box, that is dotted. In the
    decoder the predicted box is green, category and confidence above it. Points of
    large weight lie on top.

    Parameters
    ----------
    reads : Reads
        What one query of one layer reads.
    axes : matplotlib.axes.Axes, optional
        Where to draw; a figure of its own if not given.
    head, level : int, optional
        Only this head's or level's points.
    zoom : float or (x0, y0, x1, y1)
        How many times nearer, around the reference point; or the part of the picture
        to be seen, pixels.
    most : float, optional
        The weight at the end of the colours; if not given, the largest one drawn.
    bar : bool
        Draw the colour bar.
    size : float
        Of a point, square points as in `Axes.scatter`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        There is no such head or level, or the zoom is below 1.
    """
    loc, A = chosen(reads, head, level)
    window = window_of([reads], zoom)
    if axes is None:
        axes = _axes(window)
    H, W = reads.picture.shape[:2]
    axes.imshow(reads.picture, extent=(0, W, H, 0))
    order = np.argsort(A, axis=None)  # the heaviest last, on top
    points = axes.scatter(
        *loc.reshape(-1, 2)[order].T,
        s=size,
        c=A.ravel()[order],
        cmap=COLOURS,
        vmin=0,
        vmax=A.max() if most is None else most,
        edgecolors='white',
        linewidths=0.4,
        zorder=3,
    )
    _green(axes, reads, window, math.sqrt(size))
    axes.set(xlim=window[::2], ylim=window[:0:-2], aspect='equal', facecolor='0.88')
    axes.tick_params(labelsize=7, colors='0.4')
    axes.set_title(_title(reads, head, level), fontsize=9)
    hidden = _outside(loc, window)
    if hidden:
        axes.set_xlabel(f'{hidden} of {A.size} points lie farther out', fontsize=8)
    if bar:
        _bar(axes, points)
    return axes


def chosen(reads, head, level):
    """Points and weights of a head or all, a level or all.

    Parameters
    ----------
    reads : Reads
        What one query of one layer reads.
    head, level : int or None
        From 0; negative ones count from the last. None is all.

    Returns
    -------
    loc : (m, l, K, 2) array
        x, y in pixels of the picture; m is 1 or M, l is 1 or L.
    A : (m, l, K) array
        Attention weights, as they are: those of a part do not sum to 1.

    Raises
    ------
    InputError
        There is no such head or level.
    """
    M, L, _ = reads.A.shape
    heads, levels = slice(None), slice(None)
    if head is not None:
        head = index_of(head, M, 'head')
        heads = slice(head, head + 1)
    if level is not None:
        level = index_of(level, L, 'level')
        levels = slice(level, level + 1)
    return reads.loc[heads, levels], reads.A[heads, levels]


def _title(reads, head, level):
    M, L, _ = reads.A.shape
    head = f'all {M} heads' if head is None else f'head {head % M}'
    level = '' if level is None else f', level {level % L}'
    return f'{reads.title}; {head}{level}'.removeprefix('; ')


def window_of(frames, zoom):
    """x0, y0, x1, y1 of what is to be seen, pixels: the same for all frames.

    Parameters
    ----------
    frames : list of Reads
        On one picture; a window that is nearer stands around the last one's reference
        point.
    zoom : float or (x0, y0, x1, y1)
        As for `draw_sampling`. At 1 what lies up to a tenth of the picture's sides
        outside of it is seen too.

    Returns
    -------
    tuple of float
        (0, 0) is the picture's top left; x0 < x1, y0 < y1.

    Raises
    ------
    InputError
        `zoom` is below 1, or a part of the picture without area.
    """
    H, W = frames[-1].picture.shape[:2]
    if np.ndim(zoom):
        x0, y0, x1, y1 = map(float, zoom)
        if not (x0 < x1 and y0 < y1):
            raise InputError(f'zoom is {zoom}; expected x0 < x1 and y0 < y1')
        return x0, y0, x1, y1
    check_zoom(zoom)
    if zoom > 1:
        w, h = W / zoom, H / zoom
        x, y = np.clip(frames[-1].reference[:2], 0, (W, H))
        x0, y0 = min(max(x - w / 2, 0), W - w), min(max(y - h / 2, 0), H - h)
        return x0, y0, x0 + w, y0 + h
    seen = [f.loc.reshape(-1, 2) for f in frames]
    seen += [f.box.reshape(2, 2) for f in frames if f.box is not None]
    seen = np.concatenate(seen)
    size = np.array([W, H])
    near = seen[((seen >= -MARGIN * size) & (seen <= (1 + MARGIN) * size)).all(1)]
    near = np.concatenate([near, [size / 2]])  # of the points, all may be far out
    edge = 0.015 * size  # room for a circle
    low = np.minimum(near.min(0) - edge, 0)
    high = np.maximum(near.max(0) + edge, size)
    return *low.tolist(), *high.tolist()


def check_zoom(zoom):
    """Raise InputError if the picture cannot be seen so many times nearer.

    Parameters
    ----------
    zoom : float
        1 is the whole picture.

    Raises
    ------
    InputError
        It is less than 1, infinite or NaN.
    """
    if not 1 <= zoom < math.inf:
        raise InputError(f'zoom is {zoom:g}; expected 1 (the whole picture) or more')


def _outside(loc, window):
    x, y = loc[..., 0], loc[..., 1]
    x0, y0, x1, y1 = window
    return int(((x < x0) | (x > x1) | (y < y0) | (y > y1)).sum())


def _green(axes, reads, window, size):
    """The cross, and in the decoder the boxes and the label."""
    dark = [withStroke(linewidth=3, foreground='black')]
    x, y = reads.reference[:2]
    if len(reads.reference) == 4:
        w, h = reads.reference[2:]
        axes.add_patch(Rectangle(
            (x - w / 2, y - h / 2), w, h, fill=False, edgecolor=GREEN, linewidth=1,
            linestyle=':', zorder=2,
        ))  # fmt: skip
    if reads.box is not None:
        x0, y0, x1, y1 = reads.box
        axes.add_patch(Rectangle(
            (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=GREEN, linewidth=1.6,
            path_effects=dark, zorder=2,
        ))  # fmt: skip
        _label(axes, reads, window)
    axes.plot(
        x, y, '+', color=GREEN, markersize=2.6 * size, markeredgewidth=1.8,
        path_effects=dark, zorder=5,
    )  # fmt: skip


def _label(axes, reads, window):
    """Category and confidence above the box, or inside it where it ends on top."""
    left, top, right, bottom = window
    x0, y0, x1, _ = reads.box
    high = y0 - top < 0.08 * (bottom - top)
    if x0 < (left + right) / 2:
        x, side = max(x0, left), 'left'
    else:
        x, side = min(x1, right), 'right'
    axes.annotate(
        reads.label,
        (x, min(max(y0, top), bottom)),
        (2 if side == 'left' else -2, -3 if high else 3),
        textcoords='offset points',
        ha=side,
        va='top' if high else 'bottom',
        fontsize=8,
        color='black',
        bbox={'facecolor': GREEN, 'edgecolor': 'none', 'pad': 1.5},
        zorder=6,
    )


def _axes(window):
    """Axes in a figure just large enough for them, the title and the colour bar."""
    x0, y0, x1, y1 = window
    inches = LONG / max(x1 - x0, y1 - y0)
    w, h = max((x1 - x0) * inches, LONG / 2), max((y1 - y0) * inches, LONG / 8)
    left, bottom, right, top = 0.5, 0.5, 0.9, 0.35
    W, H = left + w + right, bottom + h + top
    return Figure(figsize=(W, H)).add_axes((left / W, bottom / H, w / W, h / H))


def _bar(axes, points):
    axes.apply_aspect()
    inch = axes.figure.dpi / axes.get_window_extent().width  # of the axes' width
    beside = axes.inset_axes([1 + 0.13 * inch, 0, 0.19 * inch, 1])
    bar = axes.figure.colorbar(points, cax=beside)
    bar.set_label('attention weight', fontsize=8)
    bar.ax.tick_params(labelsize=7)


def draw_levels(reads, head=None, zoom=1):
    """Return a figure with a panel for each level: its points, its share of the weight.

    Parameters
    ----------
    reads : Reads
        What one query of one layer reads.
    head : int, optional
        Only this head's points.
    zoom : float or (x0, y0, x1, y1)
        As for `draw_sampling`; the same for all panels, as is the scale of colours.

    Returns
    -------
    matplotlib.figure.Figure
    """
    L = reads.A.shape[1]
    _, A = chosen(reads, head, None)

    def name(l):
        h, w = reads.shapes[l]
        share = A[:, l].sum() / len(A)
        return f'level {l}: {w} × {h} tokens, {share:.0%} of the weight'

    panels = [(name(l), {'head': head, 'level': l}) for l in range(L)]
    return _panels(reads, panels, zoom, A.max(), _title(reads, head, None))


def draw_heads(reads, level=None, zoom=1):
    """Return a figure with a panel for each head; as `draw_levels`.

    Parameters
    ----------
    reads : Reads
        What one query of one layer reads.
    level : int, optional
        Only this level's points.
    zoom : float or (x0, y0, x1, y1)
        As for `draw_levels`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    M = reads.A.shape[0]
    _, A = chosen(reads, None, level)
    panels = [(f'head {m}', {'head': m, 'level': level}) for m in range(M)]
    return _panels(reads, panels, zoom, A.max(), _title(reads, None, level))


def _panels(reads, panels, zoom, most, title):
    window = x0, y0, x1, y1 = window_of([reads], zoom)
    n = len(panels)
    square = math.ceil(math.sqrt(n))
    columns = next((c for c in range(square, 5) if n % c == 0), square)
    rows = math.ceil(n / columns)
    inches = LONG / 2 / max(x1 - x0, y1 - y0)
    w, h = max((x1 - x0) * inches, LONG / 4), max((y1 - y0) * inches, LONG / 8)
    # compressed: what the shape of the picture leaves over is not kept between panels
    figure = Figure(
        figsize=(w * columns + 1, (h + 0.3) * rows + 0.4), layout='compressed'
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, options) in zip(grid, panels):
        draw_sampling(
            reads, axes, zoom=window, most=most, bar=False, size=16, **options
        )
        axes.set_title(name, fontsize=8)
        axes.set(xticks=[], yticks=[])
    for axes in grid[n:]:
        axes.set_axis_off()
    bar = figure.colorbar(grid[0].collections[0], ax=grid, shrink=0.8, aspect=30)
    bar.set_label('attention weight', fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def pixels_of(figure):
    """The figure, drawn.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Drawn at its own size and dots per inch.

    Returns
    -------
    pixels : (H, W, 3) uint8 array
        RGB, the top row first.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def save_figure(path, figure):
    """Write a figure as PNG or SVG, as the file's ending says.

    The same figure has the same bytes: SVG would otherwise hold the time and chance.

    Parameters
    ----------
    path : path
        Ends in .png or .svg; what stands there is overwritten.
    figure : matplotlib.figure.Figure
        PNG has 150 dots per inch.
    """
    if Path(path).suffix == '.svg':
        options = {'metadata': {'Date': None}}
    else:  # Pillow's own level, 6, takes as long again for a twentieth of the size
        options = {'pil_kwargs': {'compress_level': 4}}
    with matplotlib.rc_context({'svg.hashsalt': 'ddetr-np'}):
        figure.savefig(path, dpi=150, **options)


