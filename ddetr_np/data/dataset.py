"""Pictures with their boxes: one type, whatever they were read from."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..ops.boxes import xyxy_to_cxcywh
from .pictures import read_picture


@dataclass(frozen=True, eq=False)
class Example:
    """One picture and what is to be found in it. The pixels are read when asked for.

    Parameters
    ----------
    id : int or str
        The picture's id in results.
    source : path or (H, W, 3) uint8 array
        A picture file; or the pixels, as those of a drawn scene.
    size : (int, int)
        H, W in pixels, as annotated.
    boxes : (n, 4) float64 array
        x0, y0, x1, y1 in pixels, within the picture, none without area.
    labels : (n,) int array
        Classes as the model counts them, from 0.
    crowd : (n,) bool array
        Regions of many: training leaves them out, evaluation neither asks for them nor
        counts what is found there as wrong.
    areas : (n,) float64 array
        Pixels; of the object's outline where the data set knows it, else of its box.
        They decide what evaluation calls small, medium and large.
    annotated : (n, 4) float64 array
        The boxes before clipping, which evaluation compares with.
    """

    id: int | str
    source: object
    size: tuple
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    annotated: np.ndarray

    @property
    def name(self):
        """What messages call the picture."""
        return str(self.source) if isinstance(self.source, Path) else f'scene {self.id}'

    def picture(self):
        """Return the pixels.

        The rows and columns that the boxes count are those of the file as it is stored,
        as in the released code. Where the annotated size fits only the picture turned
        upright by its EXIF note, that is taken.

        Returns
        -------
        (H, W, 3) uint8 array
            RGB, of the annotated size; no copy where `source` is an array.

        Raises
        ------
        InputError
            The picture cannot be read or has not the annotated size.
        """
        if isinstance(self.source, np.ndarray):
            return self.source
        picture = read_picture(self.source, upright=False)
        if picture.shape[:2] != self.size:
            upright = read_picture(self.source)
            if upright.shape[:2] == self.size:
                return upright
            raise InputError(
                f'{self.source} has {picture.shape[1]} × {picture.shape[0]} pixels, '
                f'but is annotated as {self.size[1]} × {self.size[0]}; correct the '
                'annotation, or leave the picture out with skip_bad'
            )
        return picture

    def target(self):
        """Return the boxes and labels for training.

        Crowds are left out.

        Returns
        -------
        dict
            'boxes' (n, 4) float64: x0, y0, x1, y1 in pixels; 'labels' (n,).
        """
        single = ~self.crowd
        return {'boxes': self.boxes[single], 'labels': self.labels[single]}


def make_example(id, source, size, boxes, labels, crowd=None, areas=None):
    """Return an Example; boxes are clipped, those without area inside are left out.

    Parameters
    ----------
    id, source, size
        See `Example`.
    boxes : (n, 4) array-like
        x0, y0, x1, y1 in pixels.
    labels : (n,) array-like of int
        Classes from 0.
    crowd : (n,) array-like of bool, optional
        Regions of many; none if not given.
    areas : (n,) array-like, optional
        The boxes' own if not given.

    Returns
    -------
    Example
        With at most n boxes; `annotated` has those that are left, unclipped.
    """
    annotated = np.asarray(boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(labels, np.int64).reshape(-1)
    n = len(labels)
    crowd = np.zeros(n, bool) if crowd is None else np.asarray(crowd, bool).reshape(-1)
    sides = annotated[:, 2:] - annotated[:, :2]
    areas = sides.prod(1) if areas is None else np.asarray(areas, float).reshape(-1)
    inside = clip_boxes(annotated, size)
    keep = (inside[:, 2:] > inside[:, :2]).all(1)
    return Example(
        id, source, tuple(size), inside[keep], labels[keep], crowd[keep], areas[keep],
        annotated[keep],
    )


def clip_boxes(boxes, size):
    """Return boxes clipped to a picture.

    Parameters
    ----------
    boxes : (n, 4) array
        x0, y0, x1, y1 in pixels.
    size : (H, W)
        Of the picture, pixels.

    Returns
    -------
    (n, 4) float64 array
        Boxes that lie outside are left without area.
    """
    H, W = size
    return np.clip(boxes, 0, np.array([W, H, W, H], np.float64))


def training_target(target, size):
    """Return a target as `Criterion` wants it.

    Parameters
    ----------
    target : dict
        'boxes' (n, 4) x0, y0, x1, y1 in pixels and 'labels' (n,).
    size : (H, W)
        Of the unpadded picture that the boxes count in.

    Returns
    -------
    dict
        'boxes' (n, 4) cx, cy, w, h as fractions of the picture, and 'labels'.
    """
    H, W = size
    boxes = xyxy_to_cxcywh(target['boxes']) / np.array([W, H, W, H], np.float64)
    return {'boxes': boxes, 'labels': target['labels']}


@dataclass(eq=False)
class Dataset:
    """Examples, and what their classes are called. It has a length and `[i]`.

    Parameters
    ----------
    examples : sequence of Example
        One for each picture, in order.
    names : tuple of str
        The classes' names; as many as a model has logits.
    category_ids : tuple of int
        The id of each class in the file, and in results.
    origin : str
        What was read, for messages.
    skipped : Counter
        How many annotations and pictures were left out, by kind of problem.
    """

    examples: list
    names: tuple
    category_ids: tuple = None
    origin: str = 'the data set'
    skipped: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.names = tuple(self.names)
        if self.category_ids is None:
            self.category_ids = tuple(range(len(self.names)))

    @property
    def num_classes(self):
        """How many classes a model for this data set has."""
        return len(self.names)

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def at(self, i, epoch=0):
        """Return example i as it is in an epoch; only drawn scenes change.

        Parameters
        ----------
        i : int
            From 0.
        epoch : int
            From 0.

        Returns
        -------
        Example
            Here `[i]`.
        """
        return self[i]

    def __repr__(self):
        skipped = ''.join(f', {n} left out: {k}' for k, n in self.skipped.items())
        return (
            f'<{type(self).__name__} {self.origin}: {len(self)} pictures, '
            f'{self.num_classes} classes{skipped}>'
        )

    def to_coco(self):
        """Return the data set as a dict in COCO's annotation format.

        Boxes are as they were annotated, before clipping; annotations are numbered
        from 1, in order.

        Returns
        -------
        dict
            Lists 'images', 'annotations' (bbox: x, y, width, height in pixels) and
            'categories', as JSON can hold them.
        """
        images, annotations, used = [], [], set()
        for example in self:
            H, W = example.size
            name = Path(example.source).name if _is_path(example.source) else ''
            images.append(
                {'id': example.id, 'file_name': name, 'width': W, 'height': H}
            )
            rows = zip(
                example.annotated.tolist(), example.labels.tolist(),
                example.crowd.tolist(), example.areas.tolist(),
            )
            for (x0, y0, x1, y1), label, crowd, area in rows:
                used.add(label)
                annotations.append({
                    'id': len(annotations) + 1,
                    'image_id': example.id,
                    'category_id': self.category_ids[label],
                    'bbox': [x0, y0, x1 - x0, y1 - y0],
                    'area': area,
                    'iscrowd': int(crowd),
                })
        categories = [
            {'id': id, 'name': name}
            for label, (id, name) in enumerate(zip(self.category_ids, self.names))
            # ids that the file leaves out are logits, not categories
            if label in used or name != f'class {id}'
        ]
        return {'images': images, 'annotations': annotations, 'categories': categories}


def _is_path(source):
    return isinstance(source, (str, Path))
