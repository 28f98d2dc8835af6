"""Pascal VOC folders: ImageSets/Main, Annotations, JPEGImages."""

from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import TreeBuilder
from xml.parsers import expat

from .boxes import box_problem
from .dataset import Dataset, make_example
from .problems import picture_problem

ENDINGS = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG', '.bmp', '.webp', '.tif')
NAME_FILES = ('classes.txt', 'labels.txt')
EDGES = ('xmin', 'ymin', 'xmax', 'ymax')


def voc_splits(root):
    """Return the names of a VOC folder's lists, without those of single classes.

    Parameters
    ----------
    root : path
        The folder that holds ImageSets; it need not have lists.

    Returns
    -------
    list of str
        Sorted; 'train' for ImageSets/Main/train.txt.
    """
    lists = sorted((Path(root) / 'ImageSets' / 'Main').glob('*.txt'))
    return [p.stem for p in lists if not _of_one_class(p)]


def _of_one_class(path):
    """Such a list says 'id 1' or 'id -1'."""
    return any(len(line.split()) == 2 for line in _lines(path)[:3])


def scan_voc(root, findings, split=None, names=None):
    """Read a VOC folder; what is wrong goes into `findings`.

    Numbers are taken as they stand: x0, y0, x1, y1 in pixels, as the tools of today
    write them. (The files of 2007 to 2012 count pixels from 1, half a pixel aside.)
    Objects marked `difficult` become crowds: neither trained on nor counted.

    Parameters
    ----------
    root : path
        The folder that holds Annotations, ImageSets and JPEGImages.
    findings : Findings
        Its `add` raises InputError where nothing can be read.
    split : str or None
        A list in ImageSets/Main; None takes all annotations and all lists.
    names : sequence of str, optional
        The classes in order. Else the lines of classes.txt or labels.txt in the folder,
        else the names that occur in any annotation, sorted.

    Returns
    -------
    Dataset
        Of all that could be used.
    """
    root = Path(root)
    trees = {}  # parsed once, for the names and for the boxes
    annotations = root / 'Annotations'
    given = tuple(names) if names is not None else _listed_names(root)
    names = given or _used_names(annotations, trees)
    if not names:
        findings.add('no categories', annotations, 'no annotation names a class')
    ids = _picture_ids(root, split, findings)
    examples = []
    for id in ids:
        path = annotations / f'{id}.xml'
        example = _scan_file(root, path, id, names, trees, findings)
        if example:
            examples.append(example)
    where = root if split is None else root / 'ImageSets' / 'Main' / f'{split}.txt'
    return Dataset(examples, names, None, str(where))


def _lines(path):
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    return [line.strip() for line in text.splitlines()]


def _listed_names(root):
    for name in NAME_FILES:
        if (root / name).is_file():
            return tuple(line for line in _lines(root / name) if line)
    return None


def _used_names(annotations, trees):
    names = set()
    for path in sorted(annotations.glob('*.xml')):
        tree = _parse(path, trees)
        if not isinstance(tree, tuple):
            names |= {_text(o, 'name') for o in tree.findall('object')}
    return tuple(sorted(names - {''}))


def _picture_ids(root, split, findings):
    """Return the ids of a split; of all lists and all annotations if it is None."""
    found = {}
    splits = voc_splits(root) if split is None else [split]
    for name in splits:
        path = root / 'ImageSets' / 'Main' / f'{name}.txt'
        lines, seen = _lines(path), Counter()
        for n, line in enumerate(lines, 1):
            if not line:
                continue
            id = line.split()[0]
            seen[id] += 1
            if seen[id] == 2:
                message = f'{id} stands there a second time'
                findings.add('duplicate in list', path, message, line=n, id=id)
            xml = root / 'Annotations' / f'{id}.xml'
            if id not in found and not xml.is_file():
                message = f'{id} is listed, but there is no {xml}'
                findings.add('not annotated', path, message, line=n, id=id)
            found.setdefault(id, xml.is_file())
        if not seen:
            findings.add('empty list', path, 'the list names no pictures')
    if split is None:
        for path in sorted((root / 'Annotations').glob('*.xml')):
            found.setdefault(path.stem, True)
    if not found:
        findings.add('no pictures', root, 'there is no list and no annotation')
    return [id for id, annotated in found.items() if annotated]


def _parse(path, trees):
    """Return the root element, its lines in attributes 'line'; or (line, message)."""
    if path not in trees:
        trees[path] = _parse_file(path)
    return trees[path]


def _parse_file(path):
    parser, builder = expat.ParserCreate(), TreeBuilder()

    def start(tag, attributes):
        element = builder.start(tag, attributes)
        element.set('line', str(parser.CurrentLineNumber))

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        return error.lineno, f'broken XML, column {error.offset + 1}: {what}'
    except (ValueError, LookupError) as error:  # an unknown encoding
        return 1, f'broken XML: {error}'
    return builder.close()


def _text(element, tag):
    return (element.findtext(tag) or '').strip()


def _line(element):
    return int(element.get('line'))


def _scan_file(root, path, id, names, trees, findings):
    """Return the Example of one annotation file, or None."""
    tree = _parse(path, trees)
    if isinstance(tree, tuple):
        findings.add('broken XML', path, tree[1], line=tree[0])
        return None
    if tree.tag != 'annotation':
        message = f'expected <annotation>, got <{tree.tag}>'
        findings.add('not VOC', path, message, line=_line(tree))
        return None
    picture = _picture(root, tree, id)
    problem = picture_problem(picture)
    if problem:
        findings.add(problem[0], path, problem[1], id=id)
    size = _size(tree, path, findings)
    rows = _objects(tree, path, size, names, findings)
    if problem or not size:
        return None
    return make_example(id, picture, size, *rows)


def _picture(root, tree, id):
    folder = root / 'JPEGImages'
    for ending in ENDINGS:
        if (folder / f'{id}{ending}').is_file():
            return folder / f'{id}{ending}'
    name = Path(_text(tree, 'filename').replace('\\', '/')).name
    return folder / (name or f'{id}.jpg')


def _size(tree, path, findings):
    element = tree.find('size')
    if element is None:
        message = 'the annotation has no <size>'
        findings.add('missing field', path, message, line=_line(tree))
        return None
    H, W = _text(element, 'height'), _text(element, 'width')
    if not (H.isdecimal() and W.isdecimal() and int(H) and int(W)):
        message = f'width {W!r} and height {H!r}; expected whole numbers above 0'
        findings.add('bad picture size', path, message, line=_line(element))
        return None
    return int(H), int(W)


def _objects(tree, path, size, names, findings):
    """Return boxes, labels and crowds of an annotation's objects."""
    boxes, labels, crowd, seen = [], [], [], {}
    for n, element in enumerate(tree.findall('object')):
        line = _line(element)

        def add(kind, message, line=line, id=f'object {n}'):
            findings.add(kind, path, message, line=line, id=id)

        name, difficult = _text(element, 'name'), _text(element, 'difficult') or '0'
        box = _box(element, add)
        good = box is not None
        if not name:
            add('missing field', 'the object has no <name>')
            good = False
        elif name not in names:
            add('unknown class', f'the class {name!r} is none of {", ".join(names)}')
            good = False
        if difficult not in ('0', '1'):
            add('bad crowd flag', f'<difficult> is {difficult!r}; expected 0 or 1')
            good = False
        problem = box and box_problem(box, size or (float('inf'),) * 2)
        if problem:
            add(*problem)
            good &= problem[0] == 'box reaches outside'
        if not good:
            continue
        if (name, box) in seen:
            first = seen[name, box]
            add('duplicate annotation', f'the same class and box as in line {first}')
        seen.setdefault((name, box), line)
        boxes.append(box)
        labels.append(names.index(name))
        crowd.append(difficult == '1')
    return boxes, labels, crowd


def _box(element, add):
    box = element.find('bndbox')
    if box is None:
        add('missing field', 'the object has no <bndbox>')
        return None
    try:
        return tuple(float(_text(box, edge)) for edge in EDGES)
    except ValueError:
        got = ', '.join(f'{edge} {_text(box, edge)!r}' for edge in EDGES)
        add('bad box', f'the box is {got}; expected four numbers')
        return None
