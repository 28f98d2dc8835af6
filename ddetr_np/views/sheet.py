"""Boxes of data sets and of misses, drawn; many pictures on one page."""

import math

import numpy as np
from PIL import Image, ImageDraw

from ..evaluate.detection import Detection
from .detections import draw_detections, label_font

PAPER, INK = (250, 250, 248), (40, 40, 40)
GAP = 14  # pixels
LEAST = 420  # of a drawn picture's longer side: labels are legible from here on
MISSED, FALSE, FOUND = 5, 0, 2  # of the colours: vermilion, orange, green


def draw_truth(picture, example, names):
    """Return a picture with its annotated boxes drawn in, as a PIL image.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        As `example.picture()` reads it.
    example : Example
        The picture's; its boxes are drawn, the smallest on top.
    names : sequence of str
        Of the classes; a crowd's label says so.

    Returns
    -------
    PIL.Image.Image
        Enlarged a whole number of times where its longer side has less than 420 pixels.
    """
    rows = zip(example.boxes.tolist(), example.labels.tolist(), example.crowd.tolist())
    # the smallest first: they lie on top, and their labels choose their places
    drawn = [
        Detection(None, label, f'{names[label]} (crowd)' if c else names[label], box)
        for box, label, c in sorted(rows, key=lambda r: _area(r[0]))
    ]
    return _enlarged(picture, drawn)


def draw_outcomes(picture, outcomes, names, threshold=0.3):
    """Return a picture with what was missed, what is false and what was found.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        In its own size, which the outcomes' boxes count in.
    outcomes : sequence of Miss
        Of this picture.
    names : sequence of str
        Of the classes.
    threshold : float
        False detections with a lower score are left out; a truth whose match scores
        less counts as missed.

    Returns
    -------
    PIL.Image.Image
        Enlarged as by `draw_truth`. Missed is vermilion, false orange, found green.
    """
    drawn = []
    for o in sorted(outcomes, key=lambda o: -o.score):
        if o.kind == 'false':
            if o.score >= threshold:
                row = o.score, FALSE, f'false {names[o.label]}'
                drawn.append(Detection(*row, o.box))
        elif o.score < threshold:
            drawn.append(Detection(None, MISSED, f'missed {names[o.label]}', o.box))
        else:
            drawn.append(Detection(o.score, FOUND, names[o.label], o.box))
    drawn.sort(key=lambda d: d.label == FOUND)  # what is wrong gets its label first
    return _enlarged(picture, drawn)


def _enlarged(picture, drawn):
    H, W = picture.shape[:2]
    zoom = max(1, math.ceil(LEAST / max(H, W)))
    large = np.asarray(
        Image.fromarray(picture).resize((zoom * W, zoom * H), Image.Resampling.BICUBIC)
    )
    scaled = [d._replace(box=tuple(zoom * edge for edge in d.box)) for d in drawn]
    return draw_detections(large, scaled)


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def make_sheet(images, captions, title='', columns=4, width=480):
    """Return one page of pictures.

    Parameters
    ----------
    images : sequence of PIL.Image.Image
        Row by row; each is resized to the width of a column.
    captions : sequence of str
        A line above each picture.
    title : str
        A line above all; '' for none.
    columns : int
        At most.
    width : int
        Pixels of a column.

    Returns
    -------
    PIL.Image.Image
    """
    columns = max(1, min(columns, len(images)))
    cells = [
        image.resize((width, max(1, round(image.height * width / image.width))))
        for image in images
    ]
    n = len(cells)
    rows = [range(i, min(i + columns, n)) for i in range(0, n, columns)]
    small, large = label_font(13), label_font(20)
    heights = [max(cells[i].height for i in row) + 20 + GAP for row in rows]
    top = GAP + (36 if title else 0)
    page = Image.new(
        'RGB', (columns * (width + GAP) + GAP, top + sum(heights) + GAP), PAPER
    )
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((GAP, GAP), title, fill=INK, font=large)
    y = top
    for row, height in zip(rows, heights):
        for column, i in enumerate(row):
            x = GAP + column * (width + GAP)
            draw.text((x, y), captions[i], fill=INK, font=small)
            page.paste(cells[i], (x, y + 20))
        y += height
    return page
