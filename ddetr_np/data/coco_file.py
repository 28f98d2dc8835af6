"""COCO's JSON annotations, checked record by record."""

import json
import math
import os
from pathlib import Path

from .boxes import box_problem
from .dataset import Dataset, make_example
from .problems import picture_problem

IDS, CONTIGUOUS = 'ids', 'contiguous'


def scan_coco(path, findings, pictures=None, labels=CONTIGUOUS, names=None):
    """Read a COCO annotation file; what is wrong goes into `findings`.

    Parameters
    ----------
    path : path
        The file: JSON in UTF-8.
    findings : Findings
        Its `add` raises InputError where nothing can be read.
    pictures : path, optional
        The pictures' folder; looked for beside the file if not given.
    labels : {'contiguous', 'ids'}
        Classes numbered from 0 in the order of their ids; or the ids themselves, as
        published (91 logits for COCO's 80 classes).
    names : sequence of str, optional
        The classes' order by name, which a trained model brings along.

    Returns
    -------
    Dataset
        Of all that could be used.
    """
    path = Path(path)
    data = _load(path, findings)
    label_of, names, ids = _categories(path, data, findings, labels, names)
    records = _records(path, data, findings)
    folder = Path(pictures) if pictures else _folder(path, records)
    rows = _annotations(path, data, findings, records, label_of)
    examples = []
    for id, record in records.items():
        if record['file_name'] is None:
            continue
        file = folder / record['file_name']
        problem = picture_problem(file)
        if problem:
            findings.add(problem[0], path, problem[1], id=f'picture {id}')
            continue
        if not record['size']:
            continue
        boxes, classes, crowd, areas = rows[id]
        examples.append(
            make_example(id, file, record['size'], boxes, classes, crowd, areas)
        )
    return Dataset(examples, names, ids, str(path))


def _load(path, findings):
    data = path.read_bytes()
    if not data.strip():
        findings.add('empty file', path, 'the file is empty; expected COCO JSON')
    try:
        data = json.loads(data.decode('utf-8-sig'))
    except json.JSONDecodeError as error:
        place = f'line {error.lineno}, column {error.colno}'
        message = f'broken JSON at {place}: {error.msg}'
        findings.add('broken JSON', path, message, line=error.lineno)
    except (UnicodeDecodeError, RecursionError) as error:
        findings.add('broken JSON', path, f'no JSON in UTF-8: {error}')
    if isinstance(data, dict) and not data:
        findings.add('empty file', path, 'the JSON is an empty object')
    for part in ('images', 'annotations', 'categories'):
        if not isinstance(data, dict) or not isinstance(data.get(part), list):
            kind = type(data).__name__
            hint = ': results, perhaps, which name no pictures' * (kind == 'list')
            findings.add(
                'not COCO',
                path,
                f"expected an object with the lists 'images', 'annotations' and "
                f"'categories'; {part!r} is missing or no list (a {kind}{hint})",
            )
    return data


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(path, data, findings, labels, names):
    """Return {category id: label}, the names and the ids, both by label."""
    found = {}
    for n, category in enumerate(data['categories']):
        id = category.get('id') if isinstance(category, dict) else None
        name = category.get('name') if isinstance(category, dict) else None
        where = f'categories[{n}]'
        if not _is_int(id) or id < 0 or not isinstance(name, str) or not name:
            message = f'expected an id from 0 and a name; got {_short(category)}'
            findings.add('bad category', path, message, id=where)
        if id in found or name in found.values():
            message = f'the id {id} or the name {name!r} stands there twice'
            findings.add('duplicate category', path, message, id=where)
        found[id] = name
    if not found:
        findings.add('no categories', path, 'the list of categories is empty')
    found = dict(sorted(found.items()))
    if names is not None:
        return _by_name(path, findings, found, tuple(names))
    if labels == IDS:
        all_ids = range(max(found) + 1)
        every = tuple(found.get(id, f'class {id}') for id in all_ids)
        return {id: id for id in found}, every, tuple(all_ids)
    return {id: i for i, id in enumerate(found)}, tuple(found.values()), tuple(found)


def _by_name(path, findings, found, names):
    """Labels in a given order; classes that the file does not know get free ids."""
    for id, name in found.items():
        if name not in names:
            findings.add(
                'unknown class',
                path,
                f'the class {name!r} is none of {", ".join(names)}',
                id=f'category {id}',
            )
    of_name = {name: id for id, name in found.items()}
    free = max(found) + 1
    ids = tuple(of_name.get(name, free + i) for i, name in enumerate(names))
    return {id: names.index(n) for id, n in found.items() if n in names}, names, ids


def _records(path, data, findings):
    """Return {picture id: {'file_name', 'size'}}; size None if it cannot be used."""
    records, files = {}, {}
    if not data['images']:
        findings.add('no pictures', path, 'the list of images is empty')
    for n, image in enumerate(data['images']):
        where = f'images[{n}]'
        if not isinstance(image, dict):
            message = f'expected an object, got {_short(image)}'
            findings.add('bad record', path, message, id=where)
            continue
        missing = [k for k in ('id', 'file_name', 'width', 'height') if k not in image]
        if missing:
            message = f'a picture without {", ".join(missing)}'
            findings.add('missing field', path, message, id=where)
            if 'id' in missing:
                continue
        id, name = image['id'], image.get('file_name')
        if not _is_int(id):
            message = f'the picture has id {_short(id)}; expected an integer'
            findings.add('id not an integer', path, message, id=where)
            continue
        if not isinstance(name, str) or not name or '\0' in name:
            if 'file_name' in image:
                message = f'the file_name is {_short(name)}; expected text'
                findings.add('bad record', path, message, id=f'picture {id}')
            # known, so that its annotations are no problem of their own
            records.setdefault(id, {'file_name': None, 'size': None})
            continue
        if id in records:
            message = (
                f'a second picture ({name}) has the id of {records[id]["file_name"]}'
            )
            findings.add('duplicate picture id', path, message, id=f'picture {id}')
            continue
        if name in files:
            message = f'{name} is also picture {files[name]}'
            findings.add('duplicate picture', path, message, id=f'picture {id}')
            size = None
        else:
            size = _size(path, image, findings)
        files.setdefault(name, id)
        records[id] = {'file_name': name, 'size': size}
    return records


def _size(path, image, findings):
    if 'width' not in image or 'height' not in image:
        return None  # told already
    H, W = image['height'], image['width']
    if not (_is_int(H) and _is_int(W) and H > 0 and W > 0):
        message = (
            f'width {_short(W)} and height {_short(H)}; expected whole numbers above 0'
        )
        findings.add('bad picture size', path, message, id=f'picture {image["id"]}')
        return None
    return H, W


def _folder(path, records):
    """The folder that holds the first pictures: some layouts are customary."""
    up = path.parent.parent
    split = path.stem.removeprefix('instances_')
    here = path.parent
    places = [here, *(here / d for d in ('images', 'pictures', split))]
    places += [up / d for d in (split, 'images', f'images/{split}', 'pictures')] + [up]
    some = [r['file_name'] for r in records.values() if r['file_name']][:50]
    # the most, not all: a picture may be missing
    return max(places, key=lambda p: sum(os.path.isfile(p / name) for name in some))


def _annotations(path, data, findings, records, label_of):
    """Return {picture id: (boxes, labels, crowd, areas)}, boxes as x0, y0, x1, y1."""
    rows = {id: ([], [], [], []) for id in records}
    ids, seen = set(), {}
    for n, annotation in enumerate(data['annotations']):
        where, row = f'annotations[{n}]', None
        if not isinstance(annotation, dict):
            message = f'expected an object, got {_short(annotation)}'
            findings.add('bad record', path, message, id=where)
            continue
        if 'id' in annotation:
            where = f'annotation {_short(annotation["id"])}'

        def add(kind, message, where=where):
            findings.add(kind, path, message, id=where)

        row = _annotation(annotation, add, records, label_of, ids)
        if row is None:
            continue
        image, label, box, crowd, area = row
        key = (image, label, box, crowd)
        if key in seen:
            add('duplicate annotation', f'the same class and box as {seen[key]}')
        seen.setdefault(key, where)
        for column, value in zip(rows[image], (box, label, crowd, area)):
            column.append(value)
    return rows


def _annotation(annotation, add, records, label_of, ids):
    """Return (picture id, label, box, crowd, area), or None if it is left out."""
    missing = [k for k in ('image_id', 'category_id', 'bbox') if k not in annotation]
    if missing:
        add('missing field', f'an annotation without {", ".join(missing)}')
        return None
    good = True
    for key in ('id', 'image_id', 'category_id'):
        if key in annotation and not _is_int(annotation[key]):
            got = _short(annotation[key])
            add('id not an integer', f'{key} is {got}; expected an integer')
            good = False
    if not good:
        return None
    image, category = annotation['image_id'], annotation['category_id']
    if 'id' in annotation:
        if annotation['id'] in ids:
            add('duplicate id', 'another annotation has this id')
            good = False
        ids.add(annotation['id'])
    if image not in records:
        add('unknown picture', f'there is no picture with id {image}')
        good = False
    if category not in label_of:
        add('unknown category', f'there is no category with id {category} to read')
        good = False
    crowd = annotation.get('iscrowd', 0)
    if crowd not in (0, 1):
        add('bad crowd flag', f'iscrowd is {_short(crowd)}; expected 0 or 1')
        good = False
    box = _box(annotation['bbox'], add)
    if box is None or not good:
        return None
    size = records[image]['size']
    problem = box_problem(box, size or (math.inf, math.inf))
    if problem:
        add(*problem)
        if problem[0] != 'box reaches outside':
            return None
    return image, label_of[category], box, bool(crowd), _area(annotation, box, add)


def _box(bbox, add):
    """(x, y, w, h) → (x0, y0, x1, y1), or None."""
    numbers = isinstance(bbox, list) and len(bbox) == 4
    if not numbers or not all(_is_int(v) or isinstance(v, float) for v in bbox):
        got = _short(bbox)
        add('bad box', f'bbox is {got}; expected four numbers: x, y, width, height')
        return None
    try:
        x, y, w, h = map(float, bbox)
    except OverflowError:
        x, y, w, h = (math.inf,) * 4
    return x, y, x + w, y + h


def _area(annotation, box, add):
    own = (box[2] - box[0]) * (box[3] - box[1])
    area = annotation.get('area', own)
    if not (_is_int(area) or isinstance(area, float)) or not 0 <= area < math.inf:
        got = _short(area)
        add('bad area', f"area is {got}; expected 0 or more: the box's own is taken")
        return own
    return float(area)


def _short(value):
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f'{text[:57]}…'
