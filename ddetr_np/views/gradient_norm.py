"""What a detection looks at, drawn as in the paper's Figure 5."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..evaluate.detection import class_name
from .detections import COLOURS

COLUMNS = 3  # at most
WIDTH = 3.4  # inches, of a panel
TALLEST = 2.0  # times its width
BRIGHTEST = 99.5  # percentile of a map at the end of its colours
GREEN = tuple(v / 255 for v in COLOURS[2])


def draw_gradient_norms(norms, seen):
    """Return the picture with a detection's box, and the map of each item beside it.

    Each map has colours of its own, from 0 to its 99.5th percentile: a few pixels are
    so much above all others that they would leave these black. The number is written
    below the map.

    Parameters
    ----------
    norms : GradientNorms
        Of one detection; a map for each of its items.
    seen : Look
        What the norms were made from.

    Returns
    -------
    matplotlib.figure.Figure
    """
    H, W = seen.images.shape[1:3]
    n = 1 + len(norms.items)
    rows = math.ceil(n / COLUMNS)
    columns = math.ceil(n / rows)  # four panels stand two by two
    # a panel's height: the map's, and two lines of text
    height = WIDTH * min(H / W, TALLEST) + 0.5
    size = columns * WIDTH, rows * height
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    name = class_name(seen.model.config, norms.label)
    # the picture in its own pixels, laid over those that the model saw
    panels[0].imshow(seen.picture, extent=(0, W, H, 0))
    # a name is no formula, whatever signs are in it
    panels[0].set_title(f'{name} {norms.score:.2f}', parse_math=False)
    _draw_box(panels[0], norms.box, GREEN, 1.5)
    for axes, item in zip(panels[1:], norms.items):
        draw_map(axes, norms.maps[item])
        # italics: an upright I could be one more bar of the norm
        axes.set_title(rf'$\|\partial {item} / \partial I\|$')
        _draw_box(axes, norms.box, 'white', 0.8)
        axes.set_xlabel(
            f'{item} = {norms.values[item]:.3f}; brightest from '
            f'{brightest(norms.maps[item]):.1e}',
            fontsize=8,
        )
    for axes in panels:
        axes.set(xlim=(0, W), ylim=(H, 0), xticks=(), yticks=())
        axes.spines[:].set_visible(False)
    for axes in panels[n:]:
        axes.set_visible(False)
    return figure


def draw_map(axes, norm):
    """Draw one map into axes that count in its pixels.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The map spans x from 0 to W and y from 0, its top, to H.
    norm : (H, W) array
        At least 0: one of the maps of `GradientNorms`.

    Returns
    -------
    matplotlib.image.AxesImage
    """
    H, W = norm.shape
    high = brightest(norm)
    # a map of zeros has no range: any will do
    return axes.imshow(
        norm, cmap='inferno', vmin=0, vmax=high or 1, extent=(0, W, H, 0)
    )


def brightest(norm):
    """Return the value from which on a map has its brightest colour.

    Parameters
    ----------
    norm : (H, W) array
        At least 0.

    Returns
    -------
    float
        Its 99.5th percentile, or its maximum where that is 0.
    """
    high = float(np.percentile(norm, BRIGHTEST))
    # fewer pixels than that may be all there is
    return high or float(norm.max())


def _draw_box(axes, box, colour, line):
    x0, y0, x1, y1 = box
    # a dark line on either side: seen on light and on dark
    edge = withStroke(linewidth=line + 1.5, foreground='black')
    patch = Rectangle(
        (x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, linewidth=line,
        path_effects=[edge],
    )  # fmt: skip
    axes.add_patch(patch)
