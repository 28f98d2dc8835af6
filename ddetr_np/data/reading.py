"""Open a data set, or look for all that is wrong with it."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from .coco_file import scan_coco
from .dataset import Dataset, make_example
from .pictures import read_picture
from .problems import Findings, picture_problem
from .voc import scan_voc, voc_splits


def read_dataset(
    path, split=None, *, pictures=None, labels='contiguous', names=None, skip_bad=False
):
    """Open a data set; its pictures are read when they are asked for.

    Parameters
    ----------
    path : path
        A COCO annotation file or the folder that holds one; a Pascal VOC folder or one
        of the lists in its ImageSets/Main; or a folder of pictures, without boxes.
    split : str, optional
        Of a VOC folder: the list in ImageSets/Main.
    pictures : path, optional
        The pictures' folder of a COCO file; looked for beside it if not given.
    labels : {'contiguous', 'ids'}
        How COCO's categories become labels: numbered from 0 in the order of their ids,
        or the ids themselves, as published (num_classes 91).
    names : sequence of str, optional
        The classes by label, where a trained model has an order of its own.
    skip_bad : bool
        Leave out what is bad and count it in `skipped`, rather than refuse. Boxes
        without area or outside their pictures are left out in either case, as
        published, and boxes that reach outside are clipped.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        There is no data set, or bad entries are in it and `skip_bad` is not set.
    """
    findings = Findings()
    dataset = _scan(Path(path), findings, split, pictures, labels, names, True)
    if not skip_bad:
        findings.refuse(path)
    dataset.skipped += findings.counts()
    if not len(dataset):
        raise InputError(f'{path}: no picture is left; see `ddetr-np data check`')
    return dataset


def check_dataset(
    path, split=None, *, pictures=None, names=None, decode=True, progress=None
):
    """Return everything that is wrong with a data set.

    Parameters
    ----------
    path, split, pictures, names
        As for `read_dataset`; without a split all of a VOC folder is looked at.
    decode : bool
        Read the pixels too, which finds damaged files and wrong sizes.
    progress : callable, optional
        Called with each example before its pixels are read, and with their number.

    Returns
    -------
    problems : list of Problem
    dataset : Dataset or None
        Of what is usable; None if nothing could be read.
    """
    findings = Findings()
    path = Path(path)
    try:
        dataset = _scan(path, findings, split, pictures, 'contiguous', names, False)
    except InputError:
        if not findings.problems:  # no data set at all
            raise
        return findings.problems, None
    if not decode:
        return findings.problems, dataset
    good = []
    for example in dataset:
        if progress:
            progress(example, len(dataset))
        try:
            example.picture()
        except InputError as error:
            kind = picture_kind(example)
            findings.add(kind, example.source, str(error), id=f'picture {example.id}')
        else:
            good.append(example)
    dataset.examples = good
    return findings.problems, dataset


def picture_kind(example):
    """Return the kind of problem that keeps a picture from being read.

    Parameters
    ----------
    example : Example
        One whose `picture` raised; its `source` is a path.

    Returns
    -------
    str
        A key of `problems.KINDS`.
    """
    problem = picture_problem(example.source)
    if problem:
        return problem[0]
    try:
        read_picture(example.source)
        return 'wrong picture size'
    except InputError:
        pass
    try:
        with Image.open(example.source) as picture:
            picture.load()
        return 'unusable picture'  # it is whole, but too small, too large, too long
    except UnidentifiedImageError:
        return 'not a picture'
    except Exception as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        return 'unusable picture' if bomb else 'damaged picture'


def _scan(path, findings, split, pictures, labels, names, need_split):
    kind, path = _find(path)
    if kind == 'list':
        split, path, kind = path.stem, path.parents[2], 'voc'
    if kind == 'coco':
        if split is not None:
            raise InputError(f'{path} is a COCO file, which has no split {split!r}')
        return scan_coco(path, findings, pictures, labels, names)
    if kind == 'voc':
        splits = voc_splits(path)
        if split is not None and split not in splits:
            raise InputError(
                f'{path} has no split {split!r}; it has {", ".join(splits) or "none"}'
            )
        if split is None and splits and need_split:
            raise InputError(
                f'{path} has the splits {", ".join(splits)}; give the list of one '
                f'instead of the folder: {path}/ImageSets/Main/{splits[-1]}.txt'
            )
        return scan_voc(path, findings, split, names)
    return _scan_folder(path, findings)


def _find(path):
    """Return ('coco' | 'voc' | 'list' | 'pictures', file or folder)."""
    if not path.exists():
        raise InputError(f'{path}: there is no such file or folder')
    if path.is_file():
        if path.suffix == '.txt' and path.parts[-3:-1] == ('ImageSets', 'Main'):
            return 'list', path
        return 'coco', path
    if (path / 'Annotations').is_dir():
        return 'voc', path
    for folder in (path, path / 'annotations'):
        files = sorted(folder.glob('*.json'))
        if len(files) == 1:
            return 'coco', files[0]
        if files:
            names = ', '.join(file.name for file in files)
            raise InputError(f'{folder} holds several JSON files, give one: {names}')
    return 'pictures', path


def _scan_folder(path, findings):
    """A folder of pictures: a data set without boxes."""
    endings = Image.registered_extensions()
    examples = []
    for file in sorted(path.iterdir()):
        if file.suffix.lower() not in endings or file.name.startswith('.'):
            continue
        problem = picture_problem(file)
        if problem:
            findings.add(problem[0], file, problem[1])
            continue
        size = _header_size(file)
        examples.append(make_example(file.name, file, size, [], []))
    if not examples and not findings.problems:
        raise InputError(
            f'{path} is no data set: expected a COCO JSON file in it or in its '
            'annotations/, the VOC folders Annotations, ImageSets and JPEGImages, or '
            'pictures'
        )
    return Dataset(examples, (), None, str(path))


def _header_size(file):
    try:
        with Image.open(file) as picture:
            return picture.height, picture.width
    except Exception:  # reading its pixels will say what is wrong
        return 1, 1
