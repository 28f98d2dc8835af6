"""Boxes, names and scores drawn into a picture at its own resolution."""

import functools
import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.pictures import read_picture

# Okabe and Ito's colours, told apart whatever one's colour vision
COLOURS = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # purple
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def draw_detections(picture, detections):
    """Return the picture with its detections drawn in.

    Each box is a line in its class's colour between two thin dark ones, seen on light
    and on dark. Its label stands in a filled chip, moved along the box to where it
    covers no other label; where no place is left, labels of lower scores are left out
    and their boxes remain.

    Parameters
    ----------
    picture : path, PIL image or array
        The picture that was given to `detect`.
    detections : Detections, or a list of Detection
        Drawn best on top. Boxes are clipped to the picture. A score of None is not
        written.

    Returns
    -------
    PIL.Image.Image
        RGB, of the picture's size.
    """
    image = Image.fromarray(read_picture(picture))
    draw = ImageDraw.Draw(image)
    shown = [(d, box) for d in detections if (box := _clip(d.box, image.size))]
    line = max(1, round(math.sqrt(image.width * image.height) / 280))
    for d, box in reversed(shown):  # the best last, on top
        _frame(draw, box, line, _colour(d.label))
    taken, labels = [], []
    for d, box in shown:  # the best choose their places first
        label = _place(d, box, [b for _, b in shown], line, image.size, taken)
        if label:
            taken.append(label[0])
            labels.append((label, _colour(d.label)))
    for label, colour in labels:
        _chip(draw, *label, colour)
    return image


def save_detections(path, picture, detections):
    """Write the drawn picture; the file's ending says in which format.

    Parameters
    ----------
    path : path
        Where to; what stands there is overwritten.
    picture, detections
        As for `draw_detections`.
    """
    draw_detections(picture, detections).save(Path(path))


def _colour(label):
    return COLOURS[label % len(COLOURS)]


def _clip(box, size):
    """Whole pixels of a box inside the picture, or None if nothing of it is."""
    W, H = size
    if not np.isfinite(box).all():
        return None
    x0, y0, x1, y1 = (round(edge) for edge in box)
    if x1 < 0 or y1 < 0 or x0 >= W or y0 >= H:
        return None
    x0, y0 = max(0, x0), max(0, y0)
    return x0, y0, max(x0, min(W - 1, x1)), max(y0, min(H - 1, y1))


def _frame(draw, box, line, colour):
    """A coloured line of the given width with a dark one on either side of it."""
    x0, y0, x1, y1 = box
    edge = max(1, line // 2)
    width = line + edge
    if min(x1 - x0, y1 - y0) > 4 * (line + edge):
        width += edge  # the inner one would fill a small box
    W, H = draw.im.size
    left, top = max(0, x0 - edge), max(0, y0 - edge)
    right, bottom = min(W - 1, x1 + edge), min(H - 1, y1 + edge)
    draw.rectangle((left, top, right, bottom), outline=BLACK, width=width)
    draw.rectangle(box, outline=colour, width=line)


@functools.cache
def label_font(pixels):
    """Return the font of all labels at a size in pixels.

    Parameters
    ----------
    pixels : int
        Of the em; a line of text is somewhat higher.

    Returns
    -------
    PIL.ImageFont.FreeTypeFont
        DejaVu Sans Bold; one object for each size.
    """
    # Matplotlib ships this font, so that every machine draws the same label
    folder = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
    return ImageFont.truetype(str(folder / 'DejaVuSans-Bold.ttf'), pixels)


def _place(d, box, boxes, line, size, taken):
    """Return (place, text, font, pad) of a label clear of all others, or None."""
    W, H = size
    # less than 9 pixels nobody can read
    large = max(9, min(round(math.sqrt(W * H) / 38), H // 6))
    small = max(9, round(0.8 * large))
    full = d.name if d.score is None else f'{d.name} {d.score:.2f}'
    for text, pixels in ((full, large), (d.name, small)):
        font = label_font(pixels)
        pad = max(1, pixels // 5)
        text = _shorten(text, font, W - 2 * pad)
        w = math.ceil(font.getlength(text)) + 2 * pad
        h = sum(font.getmetrics()) + pad
        free = [
            place
            for place in _places(box, w, h, line, size)
            if not any(_overlap(place, other) for other in taken)
        ]
        if free:
            # the first of those that hide the least of other, smaller boxes
            hidden = [
                sum(_overlap(place, other) / _area(other) for other in boxes)
                for place in free
            ]
            place = free[hidden.index(min(hidden))]
            return place, text, font, pad
    return None


def _places(box, w, h, line, size):
    """Yield a label's places: above, inside or below; left, middle or right."""
    W, H = size
    x0, y0, x1, y1 = box
    for y in (y0 - h, y0 + line, y1 + 1, y1 - line - h):
        if 0 <= y <= H - h:
            for x in (x0, (x0 + x1 - w) // 2, x1 - w):
                x = min(max(0, x), W - w)
                yield x, y, x + w, y + h


def _shorten(text, font, width):
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + '…'
    return text


def _overlap(a, b):
    """Pixels that two places share."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, w) * max(0, h)


def _area(box):
    return max(1, (box[2] - box[0]) * (box[3] - box[1]))


def _chip(draw, place, text, font, pad, colour):
    """A label: text on its class's colour, black or white, whichever is clearer."""
    x0, y0, x1, y1 = place
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour, outline=BLACK)
    ink = BLACK if _luminance(colour) > 0.18 else WHITE  # equal contrast at 0.18
    draw.text((x0 + pad, y0 + pad // 2), text, fill=ink, font=font)


def _luminance(colour):
    """Relative luminance of sRGB, as WCAG defines it."""
    c = np.asarray(colour) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
