"""Is a box one? The same questions for every format."""

import math

TOLERANCE = 1.0  # pixels by which rounding may take a box over the picture's edge


def box_problem(box, size):
    """Return (kind, message) of what is wrong with a box, or None.

    Parameters
    ----------
    box : sequence of 4 numbers
        x0, y0, x1, y1 in pixels.
    size : (H, W)
        Of the picture, pixels; infinite where it is not known.

    Returns
    -------
    (str, str) or None
        A key of `problems.KINDS`, and a sentence with the numbers.
    """
    x0, y0, x1, y1 = box
    H, W = size
    shown = f'x0, y0, x1, y1 = {x0:g}, {y0:g}, {x1:g}, {y1:g}'
    if not all(map(math.isfinite, box)):
        return 'box not finite', f'the box ({shown}) has NaN or infinite numbers'
    if x1 < x0 or y1 < y0:
        return 'negative size', (
            f'the box ({shown}) has width {x1 - x0:g} and height {y1 - y0:g}; expected '
            'both above 0'
        )
    if x1 == x0 or y1 == y0:
        return 'zero area', (
            f'the box ({shown}) has width {x1 - x0:g} and height {y1 - y0:g}: no area, '
            'nothing to find'
        )
    if x1 <= 0 or y1 <= 0 or x0 >= W or y0 >= H:
        return 'box outside', (
            f'the box ({shown}) lies outside the picture of {W} × {H} pixels'
        )
    over = max(-x0, -y0, x1 - W, y1 - H)
    if over > TOLERANCE:
        return 'box reaches outside', (
            f'the box ({shown}) reaches {over:g} pixels outside the picture of '
            f'{W} × {H}; it is clipped'
        )
    return None
