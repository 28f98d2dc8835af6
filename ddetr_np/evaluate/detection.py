"""A picture in, boxes out."""

import operator
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..backend import to_device
from ..data import coco
from ..data.pictures import read_picture
from ..data.prepare import normalise, pad_batch, resize, resized_size
from ..errors import InputError
from .postprocess import postprocess

COCO_CLASSES = 91


class Detection(NamedTuple):
    """One found object.

    Parameters
    ----------
    score : float
        In [0, 1].
    label : int
        Class id.
    name : str
        The class's name.
    box : tuple
        x0, y0, x1, y1 in pixels of the upright picture; not clipped to it.
    """

    score: float
    label: int
    name: str
    box: tuple


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one picture, best first.

    It has a length, can be iterated (a `Detection` at a time) and prints as a table.

    Parameters
    ----------
    scores : (n,) array
        In [0, 1], descending.
    labels : (n,) int array
        Class ids.
    names : list of n str
        The classes' names.
    boxes : (n, 4) array
        x0, y0, x1, y1 in pixels of the upright picture; not clipped to it.
    size : (int, int)
        H, W of the picture, pixels.
    """

    scores: np.ndarray
    labels: np.ndarray
    names: list
    boxes: np.ndarray
    size: tuple

    def __len__(self):
        return len(self.scores)

    def __iter__(self):
        for row in zip(
            self.scores.tolist(), self.labels.tolist(), self.names, self.boxes.tolist()
        ):
            yield Detection(*row[:3], tuple(row[3]))

    def __repr__(self):
        H, W = self.size
        lines = [f'{len(self)} detections in a picture of {W} × {H} pixels']
        if len(self):
            wide = max(4, *map(len, self.names))
            lines.append(f'score  {"name":{wide}}      x0      y0      x1      y1')
            lines += [
                f'{d.score:.3f}  {d.name:{wide}}'
                + ''.join(f' {edge:7.1f}' for edge in d.box)
                for d in self
            ]
        return '\n'.join(lines)

    def to_coco(self, image_id):
        """Return the detections in COCO's results format.

        Parameters
        ----------
        image_id : int or str
            The picture's id, which is repeated in each result.

        Returns
        -------
        list of dict
            image_id, category_id (the label), bbox (x, y, w, h in pixels) and score.
        """
        return [
            {
                'image_id': image_id,
                'category_id': d.label,
                'bbox': [d.box[0], d.box[1], d.box[2] - d.box[0], d.box[3] - d.box[1]],
                'score': d.score,
            }
            for d in self
        ]


def class_name(config, label):
    """Return a class's name: the configuration's, else COCO's if there are 91 classes.

    Ids that COCO leaves out, and classes without names, are called 'class 12'.

    Parameters
    ----------
    config : Config
        For names and num_classes.
    label : int
        Class id, in [0, num_classes).

    Returns
    -------
    str
    """
    if config.names is not None:
        return config.names[label]
    names = coco.NAMES if config.num_classes == COCO_CLASSES else {}
    return names.get(label, f'class {label}')


def detect(model, picture, threshold=0.5, top=100, short=None, long=None, batch=1):
    """Find the objects in a picture, or in each of several.

    Parameters
    ----------
    model : DeformableDETR
        The pictures go to its device, in its precision.
    picture : path, PIL image or array; or a list of them
        What `read_picture` takes.
    threshold : float
        In [0, 1]: detections with a lower score are left out; 0 gives all `top`.
    top : int
        At most so many detections in a picture.
    short, long : int, optional
        Pixels to which the sides are resized before detection (`resized_size`); if not
        given, what the model's configuration says.
    batch : int
        Pictures that go through the model together. Padding to a common size reaches
        the backbone's convolutions and the group norms' statistics, so pictures of
        different sizes give slightly other scores in a batch than alone.

    Returns
    -------
    Detections, or a list of them
        As `picture` is one or several.

    Raises
    ------
    InputError
        A picture cannot be used, or a number is out of range.

    Examples
    --------
    >>> from ddetr_np import draw_scene, load_model
    >>> found = detect(load_model('scenes'), draw_scene(0).picture)
    >>> found.boxes.shape == (len(found.scores), 4)
    True
    """
    check_numbers(threshold, top, batch)
    short, long = detection_size(model.config, short, long)
    if isinstance(picture, (str, os.PathLike, Image.Image)) or hasattr(picture, 'ndim'):
        return _detect_batch(model, [picture], threshold, top, short, long)[0]
    if not hasattr(picture, '__iter__'):
        raise InputError(
            f'picture is {picture!r}; expected a file, a PIL image or an array, '
            'or several of them'
        )
    found, pictures = [], list(picture)
    for i in range(0, len(pictures), batch):
        some = pictures[i : i + batch]
        found += _detect_batch(model, some, threshold, top, short, long)
    return found


def detection_size(config, short=None, long=None):
    """Return (short, long), pixels: the configuration's where one is None.

    Parameters
    ----------
    config : Config
        For short and long.
    short, long : int or None
        As of `resized_size`.

    Returns
    -------
    short, long : int

    Raises
    ------
    InputError
        They are impossible.
    """
    short = config.short if short is None else short
    long = config.long if long is None else long
    for name, number in (('short', short), ('long', long)):
        if not hasattr(number, '__index__'):
            raise InputError(f'{name} is {number!r}; expected whole pixels')
    resized_size(1, 1, short, long)
    return short, long


def check_numbers(threshold, top, batch):
    """Raise InputError if a number of `detect` is out of range.

    Parameters
    ----------
    threshold : float
        Expected in [0, 1].
    top, batch : int
        Expected at 1 or above.
    """
    if not hasattr(threshold, '__float__') or not 0 <= threshold <= 1:
        raise InputError(f'threshold is {threshold!r}; expected 0 (all) to 1')
    for name, number in (('top', top), ('batch', batch)):
        try:
            small = operator.index(number) < 1
        except TypeError:
            small = True
        if small:
            raise InputError(f'{name} is {number!r}; expected a whole number from 1')


def _detect_batch(model, pictures, threshold, top, short, long):
    pictures = [read_picture(picture) for picture in pictures]
    images, mask = pad_batch(
        [normalise(resize(picture, short, long)) for picture in pictures], model.dtype
    )
    images, mask = (to_device(a, model.device) for a in (images, mask))
    out, _ = model.forward(images, mask, train=False, keep='none')
    sizes = [picture.shape[:2] for picture in pictures]
    found = []
    for i, best in enumerate(postprocess(out.logits[-1], out.boxes[-1], sizes, top)):
        keep = best.scores >= threshold
        labels = best.labels[keep]
        names = [class_name(model.config, label) for label in labels.tolist()]
        found.append(
            Detections(best.scores[keep], labels, names, best.boxes[keep], sizes[i])
        )
    return found
