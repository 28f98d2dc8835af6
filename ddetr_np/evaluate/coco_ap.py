"""COCO's twelve figures, by pycocotools, and what lies behind them."""

import contextlib
import io
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..errors import InputError

FIGURES = (
    'AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large',
    'AR1', 'AR10', 'AR100', 'AR_small', 'AR_medium', 'AR_large',
)
IOU = np.linspace(0.5, 0.95, 10)
RECALL = np.linspace(0, 1, 101)


class ClassFigures(NamedTuple):
    """Figures of one class; −1 where it does not occur.

    Parameters
    ----------
    name : str
        Of the class.
    AP, AP50, AP75 : float
        Average precision, in [0, 1]: the mean over IoU 0.5, 0.55 … 0.95, at 0.5 and at
        0.75.
    AR100 : float
        Recall of at most 100 detections a picture, in [0, 1]; mean over the same IoU.
    objects : int
        Its truths in the data set, crowds left out; 0 where it does not occur.
    """

    name: str
    AP: float
    AP50: float
    AP75: float
    AR100: float
    objects: int


class Miss(NamedTuple):
    """One truth or detection, and how it fared at IoU 0.5.

    Parameters
    ----------
    picture : int
        Index in the data set.
    kind : {'found', 'missed', 'false'}
        A truth that is matched or not; a detection that matches none.
    label : int
        Index of the class in the data set's names.
    box : tuple
        x0, y0, x1, y1 in pixels.
    score : float
        Of the detection; of the match where a truth is found, 0 where it is missed.
    """

    picture: int
    kind: str
    label: int
    box: tuple
    score: float


@dataclass(eq=False)
class Report:
    """What an evaluation found. It prints as a table.

    Parameters
    ----------
    figures : dict
        The twelve of `FIGURES`, in [0, 1]; −1 where nothing of the kind occurs, as
        pycocotools has it.
    classes : list of ClassFigures
        One for each class of the data set, in its order.
    precision : (10, 101, classes) array
        At IoU 0.5, 0.55 … 0.95, at recall 0, 0.01 … 1; −1 for classes that do not
        occur.
    results : list of dict
        The detections in COCO's results format.
    outcomes : list of Miss
        Each truth and each false detection at IoU 0.5; crowds are left out.
    pictures : int
        How many were judged, without those skipped.
    skipped : Counter
        Pictures that could not be read, by kind of problem.
    """

    figures: dict
    classes: list
    precision: np.ndarray
    results: list
    outcomes: list
    pictures: int
    skipped: Counter = field(default_factory=Counter)

    def __repr__(self):
        lines = [f'{self.pictures} pictures, {len(self.results)} detections']
        pairs = [f'{name:9} {_shown(value)}' for name, value in self.figures.items()]
        lines += [f'{a}    {b}' for a, b in zip(pairs[:6], pairs[6:])]
        occur = [c for c in self.classes if c.objects]
        wide = max([5, *(len(c.name) for c in occur)])
        lines.append(f'{"class":{wide}}     AP   AP50   AP75  AR100  objects')
        for c in occur:
            values = '  '.join(map(_shown, (c.AP, c.AP50, c.AP75, c.AR100)))
            lines.append(f'{c.name:{wide}}  {values}  {c.objects:7}')
        return '\n'.join(lines)

    def to_dict(self):
        """Return figures, classes and counts as JSON can hold them.

        Returns
        -------
        dict
            'figures', 'classes' (a list of dict), 'skipped' (a count of each kind), and
            how many 'pictures' and 'detections'.
        """
        return {
            'figures': self.figures,
            'classes': [c._asdict() for c in self.classes],
            'pictures': self.pictures,
            'detections': len(self.results),
            'skipped': dict(self.skipped),
        }

    def worst(self, n=24):
        """Return the indices of the n pictures with the worst misses, worst first.

        A picture's misses weigh 1 − score for each truth, the score being that of its
        match, and the score for each false detection.

        Parameters
        ----------
        n : int
            At most so many; pictures whose weight is 0 are left out.

        Returns
        -------
        list of int
            Indices in the data set.
        """
        weight = Counter()
        for o in self.outcomes:
            weight[o.picture] += o.score if o.kind == 'false' else 1 - o.score
        order = sorted(weight, key=lambda i: (-weight[i], i))
        return [i for i in order if weight[i] > 0][:n]


def _shown(value):
    return '    –' if value < 0 else f'{value:.3f}'


def coco_figures(results, dataset):
    """Return the COCO figures of detections.

    Parameters
    ----------
    results : sequence of dict
        In COCO's results format: image_id, category_id, bbox (x, y, w, h), score.
    dataset : Dataset
        Its boxes as they were annotated are the truth. Crowds neither have to be found
        nor count what is found in them as false.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        A result names a picture or category that the data set does not have, or its
        numbers are not finite.
    """
    results = list(results)
    truth = dataset.to_coco()
    index = {image['id']: i for i, image in enumerate(truth['images'])}
    if len(index) < len(truth['images']):
        raise InputError(f'{dataset.origin}: two pictures have the same id')
    label_of = {id: label for label, id in enumerate(dataset.category_ids)}
    for n, result in enumerate(results):
        _check(n, result, index, label_of)
    found = [_record(n, r, index, label_of) for n, r in enumerate(results, 1)]
    for image in truth['images']:
        image['id'] = index[image['id']]
    for a in truth['annotations']:
        a |= {
            'image_id': index[a['image_id']], 'category_id': label_of[a['category_id']]
        }
    run = _run(truth, found, len(dataset.names))
    figures = dict(zip(FIGURES, map(float, run.stats)))
    precision = run.eval['precision'][:, :, :, 0, -1]
    recall = run.eval['recall'][:, :, 0, -1]
    objects = Counter(
        a['category_id'] for a in truth['annotations'] if not a['iscrowd']
    )
    classes = [
        ClassFigures(
            name, _mean(precision[..., k]), _mean(precision[0, :, k]),
            _mean(precision[5, :, k]), _mean(recall[:, k]), objects[k],
        )
        for k, name in enumerate(dataset.names)
    ]
    outcomes = list(_outcomes(run, truth['annotations'], found))
    return Report(figures, classes, precision, results, outcomes, len(index))


def _check(n, result, index, label_of):
    try:
        image, category = result['image_id'], result['category_id']
        numbers = [*map(float, result['bbox']), float(result['score'])]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'result {n} is not in COCO format: expected image_id, category_id, bbox '
            f'and score, but {error}'
        ) from error
    if image not in index:
        raise InputError(f'result {n}: the data set has no picture with id {image!r}')
    if category not in label_of:
        raise InputError(
            f'result {n}: the data set has no category {category!r}; its ids are '
            f'{sorted(label_of)}'
        )
    if len(numbers) != 5 or not all(map(math.isfinite, numbers)):
        raise InputError(
            f'result {n}: bbox {result["bbox"]} and score {result["score"]}; expected '
            'x, y, w, h and a score, all finite'
        )


def _record(n, result, index, label_of):
    x, y, w, h = map(float, result['bbox'])
    return {
        'id': n,
        'image_id': index[result['image_id']],
        'category_id': label_of[result['category_id']],
        'bbox': [x, y, w, h],
        'area': w * h,
        'iscrowd': 0,
        'score': float(result['score']),
    }


def _run(truth, found, classes):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    every = [{'id': k} for k in range(classes)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints at every step
        sides = []
        for annotations in (truth['annotations'], found):
            side = COCO()
            side.dataset = {
                'images': truth['images'], 'annotations': annotations,
                'categories': every,
            }
            side.createIndex()
            sides.append(side)
        run = COCOeval(*sides, 'bbox')
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def _mean(values):
    """Mean of what is defined; −1 if nothing is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _outcomes(run, truths, found):
    """Yield a Miss for each truth, and for each detection that matches none."""
    truths = {a['id']: a for a in truths}
    found = {a['id']: a for a in found}
    anything = [0, 1e10]  # of the four ranges of areas, all
    for part in run.evalImgs:
        if part is None or list(part['aRng'])[:2] != anything:
            continue
        picture, label = int(part['image_id']), int(part['category_id'])
        first = part['gtMatches'][0], part['gtIgnore']
        for id, match, ignore in zip(part['gtIds'], *first):
            if not ignore:
                score = found[int(match)]['score'] if match else 0.0
                kind = 'found' if match else 'missed'
                yield Miss(picture, kind, label, _edges(truths[id]), score)
        second = part['dtMatches'][0], part['dtIgnore'][0], part['dtScores']
        for id, match, ignore, score in zip(part['dtIds'], *second):
            if not match and not ignore:
                yield Miss(picture, 'false', label, _edges(found[id]), float(score))


def _edges(annotation):
    x, y, w, h = annotation['bbox']
    return x, y, x + w, y + h
