"""A model judged on a data set."""

import dataclasses
from collections import Counter

from ..data.dataset import Dataset
from ..data.reading import picture_kind
from ..errors import InputError
from .coco_ap import coco_figures
from .detection import COCO_CLASSES, check_numbers, class_name, detect


def evaluate(
    model,
    dataset,
    *,
    short=None,
    long=None,
    batch=1,
    top=100,
    skip_bad=False,
    progress=None,
):
    """Detect in all pictures of a data set and return the COCO figures.

    Parameters
    ----------
    model : DeformableDETR
        The pictures go to its device, in its precision.
    dataset : Dataset
        Its labels are the model's: see `reading_for`.
    short, long : int, optional
        Pixels to which the sides are resized before detection (`resized_size`); if not
        given, what the model's configuration says.
    batch : int
        Pictures that go through the model together; see `detect`.
    top : int
        At most so many detections in a picture; COCO counts up to 100.
    skip_bad : bool
        Leave out pictures that cannot be read and count them, rather than raise.
    progress : callable, optional
        Called with the number of pictures done after each batch.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        The classes of the model and of the data set differ, a picture cannot be read.
    """
    check_numbers(0, top, batch)
    check_classes(model.config, dataset)
    results, seen, places, skipped = [], [], [], Counter()
    some = []
    for i in range(len(dataset)):
        example = dataset[i]
        try:
            some.append((example, example.picture()))
            places.append(i)
        except InputError:
            if not skip_bad:
                raise
            skipped[picture_kind(example)] += 1
        if len(some) < batch and i + 1 < len(dataset):
            continue
        found = detect(
            model, [p for _, p in some], 0, top, short, long, batch
        )
        for (example, _), detections in zip(some, found):
            results += _results(example, detections, dataset.category_ids)
            # a drawn scene would keep its pixels
            seen.append(dataclasses.replace(example, source=example.name))
        some = []
        if progress:
            progress(i + 1)
    judged = Dataset(seen, dataset.names, dataset.category_ids, dataset.origin)
    report = coco_figures(results, judged)
    report.skipped = skipped
    # the data set's own numbering, whatever was left out
    report.outcomes = [
        o._replace(picture=places[o.picture]) for o in report.outcomes
    ]
    return report


def _results(example, detections, category_ids):
    """COCO results, in the data set's ids; what only the model knows is left out."""
    n = len(category_ids)
    return [
        result | {'category_id': category_ids[result['category_id']]}
        for result in detections.to_coco(example.id)
        if result['category_id'] < n
    ]


def reading_for(config):
    """Return the arguments of `read_dataset` that number classes as a model does.

    Parameters
    ----------
    config : Config
        The model's: for names and num_classes.

    Returns
    -------
    dict
        Its names where it has some; COCO's ids as they are for 91 nameless classes;
        nothing otherwise.
    """
    if config.names is not None:
        return {'names': config.names}
    return {'labels': 'ids'} if config.num_classes == COCO_CLASSES else {}


def check_classes(config, dataset):
    """Raise InputError if a model and a data set do not mean the same by a label.

    Parameters
    ----------
    config : Config
        The model's: for names and num_classes.
    dataset : Dataset
        For names, category_ids and num_classes.
    """
    if config.names is not None:
        if tuple(dataset.names) == tuple(config.names):
            return
        raise InputError(
            f'the model finds {", ".join(config.names)}, in this order, but '
            f'{dataset.origin} has {", ".join(dataset.names)}; read it with '
            'names=model.config.names'
        )
    n = dataset.num_classes
    if config.num_classes != COCO_CLASSES:
        if n == config.num_classes:
            return
        hint = ''
    else:
        # a part of COCO may end before its last id
        known = [class_name(config, i) for i in range(COCO_CLASSES)]
        if n == COCO_CLASSES or set(dataset.names) <= set(known[:n]):
            if tuple(dataset.category_ids) == tuple(range(n)):
                return
        hint = "; COCO's ids are its labels as they are: read with labels='ids'"
    raise InputError(
        f'the model has {config.num_classes} classes, {dataset.origin} has {n}{hint}'
    )
