"""Each kind of bad data has its own message, and skip_bad reads the rest."""

import json
import os

import pytest
from PIL import Image

from ddetr_np import InputError, check_dataset, read_dataset
from ddetr_np.data.problems import FATAL, KINDS, REFUSED

NAN, INF = float('nan'), float('inf')


def picture(coco, n=0):
    return coco.folder / 'pictures' / f'{n}.jpg'


def cut(path, n):
    path.write_bytes(path.read_bytes()[:n])


def text(content):
    return lambda coco: coco.path.write_text(content)


def change(part, n, **fields):
    def spoil(coco):
        coco.data[part][n] |= fields
        coco.write()

    return spoil


def drop(part, n, field):
    def spoil(coco):
        del coco.data[part][n][field]
        coco.write()

    return spoil


def put(part, value):
    def spoil(coco):
        coco.data[part] = value
        coco.write()

    return spoil


def append(part, value):
    def spoil(coco):
        coco.data[part].append(value)
        coco.write()

    return spoil


def box(*bbox):
    return change('annotations', 1, bbox=list(bbox))


def resave(n, size):
    return lambda coco: Image.new('RGB', size).save(picture(coco, n))


COCO = [  # what spoils it; kind; where; words of the message
    (lambda coco: coco.path.unlink(), None, '', 'no such file'),
    (text(''), 'empty file', 'annotations.json', 'is empty'),
    (text('{}'), 'empty file', 'annotations.json', 'empty object'),
    (text('{"images":\n [1,,2]}'), 'broken JSON', ':2', 'line 2, column 5'),
    (text('\xff\xfe'), 'broken JSON', 'annotations.json', 'Expecting value'),
    (text('[{"image_id": 1}]'), 'not COCO', 'annotations.json', 'results, perhaps'),
    (text('{"images": []}'), 'not COCO', 'annotations.json',
     "'annotations' is missing"),
    (put('images', []), 'no pictures', 'annotations.json', 'list of images is empty'),
    (put('categories', []), 'no categories', 'annotations.json', 'categories is empty'),
    (append('categories', {'id': '8'}), 'bad category', 'categories[2]', 'an id from'),
    (append('categories', {'id': 7, 'name': 'x'}), 'duplicate category',
     'categories[2]', 'twice'),
    (append('images', 3), 'bad record', 'images[3]', 'expected an object, got 3'),
    (append('annotations', None), 'bad record', 'annotations[3]', 'got null'),
    (change('images', 0, file_name=4), 'bad record', 'picture 10', 'file_name is 4'),
    (drop('images', 2, 'width'), 'missing field', 'images[2]', 'without width'),
    (drop('images', 2, 'id'), 'missing field', 'images[2]', 'without id'),
    (drop('images', 0, 'file_name'), 'missing field', 'images[0]',
     'without file_name'),
    (drop('annotations', 1, 'bbox'), 'missing field', 'annotation 2', 'without bbox'),
    (change('images', 2, id='12'), 'id not an integer', 'images[2]', 'id "12"'),
    (change('annotations', 1, id=2.5), 'id not an integer', 'annotation 2.5', 'is 2.5'),
    (change('annotations', 1, category_id='cat'), 'id not an integer', 'annotation 2',
     'category_id is "cat"'),
    (change('images', 2, id=10), 'duplicate picture id', 'picture 10', 'has the id of'),
    (change('images', 2, file_name='0.jpg'), 'duplicate picture', 'picture 12',
     'is also picture 10'),
    (change('images', 2, width=0), 'bad picture size', 'picture 12', 'above 0'),
    (lambda coco: picture(coco, 2).unlink(), 'missing picture', 'picture 12', '2.jpg'),
    (lambda coco: cut(picture(coco, 2), 0), 'empty picture', 'picture 12', '0 bytes'),
    (lambda coco: picture(coco, 2).write_text('hello'), 'not a picture', 'picture 12',
     'is not a picture'),
    (lambda coco: cut(picture(coco, 2), 900), 'damaged picture', 'picture 12',
     'truncated'),
    (resave(2, (60, 9)), 'unusable picture', 'picture 12', 'at least 16'),
    (resave(2, (61, 40)), 'wrong picture size', 'picture 12',
     'has 61 × 40 pixels, but is annotated as 60 × 40'),
    (change('annotations', 1, image_id=99), 'unknown picture', 'annotation 2', 'id 99'),
    (change('annotations', 1, category_id=9), 'unknown category', 'annotation 2',
     'id 9'),
    (change('annotations', 1, id=1), 'duplicate id', 'annotation 1', 'another'),
    (box(1, 2, 3), 'bad box', 'annotation 2', 'expected four numbers'),
    (box(1, 2, None, 4), 'bad box', 'annotation 2', '[1, 2, null, 4]'),
    (box(1, NAN, 3, 4), 'box not finite', 'annotation 2', 'NaN'),
    (box(1, 2, 10**400, 4), 'box not finite', 'annotation 2', 'infinite'),
    (box(20, 2, -3, 4), 'negative size', 'annotation 2', 'width -3 and height 4'),
    (box(20, 2, 0, 4), 'zero area', 'annotation 2', 'no area'),
    (box(60, 2, 5, 4), 'box outside', 'annotation 2', 'lies outside'),
    (box(50, 2, 15, 4), 'box reaches outside', 'annotation 2', '5 pixels outside'),
    (change('annotations', 1, iscrowd=2), 'bad crowd flag', 'annotation 2',
     'iscrowd is 2'),
    (change('annotations', 1, area=-4), 'bad area', 'annotation 2', 'area is -4'),
    (append('annotations', {'id': 4, 'image_id': 10, 'category_id': 3,
                            'bbox': [30, 10, 12, 14]}),
     'duplicate annotation', 'annotation 4', 'as annotation 2'),
]


def names(cases):
    return [f'{i} {case[1]}' for i, case in enumerate(cases)]


@pytest.mark.parametrize(('spoil', 'kind', 'where', 'words'), COCO, ids=names(COCO))
def test_coco(coco_set, spoil, kind, where, words):
    spoil(coco_set)
    if kind is None:
        with pytest.raises(InputError, match=words):
            check_dataset(coco_set.path)
        return
    problems, dataset = check_dataset(coco_set.path)
    assert [p.kind for p in problems] == [kind], problems
    (problem,) = problems
    assert where in problem.where
    assert words in problem.message
    assert (dataset is None) == (KINDS[kind] is FATAL)
    check_reading(coco_set.path, kind, words)


def check_reading(path, kind, words):
    """What reading does about the one problem in a set of three pictures."""
    if KINDS[kind] is FATAL:
        for skip_bad in (False, True):
            with pytest.raises(InputError) as error:
                read_dataset(path, skip_bad=skip_bad)
            assert words in str(error.value)
        return
    pixels = ('not a picture', 'damaged picture', 'unusable picture',
              'wrong picture size')
    if KINDS[kind] is REFUSED and kind not in pixels:
        with pytest.raises(InputError, match='1 bad entries') as error:
            read_dataset(path)
        assert words in str(error.value)
        assert 'data check' in str(error.value)
    dataset = read_dataset(path, skip_bad=True)
    assert 2 <= len(dataset) <= 3
    left_out = KINDS[kind] not in ('kept', 'clipped') and kind not in pixels
    assert sum(dataset.skipped.values()) == left_out
    if kind in pixels:
        with pytest.raises(InputError, match=words):
            dataset[2].picture()


def write(id, content):
    return lambda voc: voc.xml(id).write_text(content)


def swap(id, old, new):
    return lambda voc: voc.replace(id, old, new)


def edge(old, new):
    return swap('a', old, new)


SIZE = '  <size><width>60</width><height>40</height><depth>3</depth></size>'

VOC = [
    (lambda voc: voc.list('train', ''), 'empty list', 'train.txt', 'names no pictures'),
    (lambda voc: voc.list('train', 'a\nb\na\n'), 'duplicate in list', 'train.txt:3',
     'second time'),
    (lambda voc: voc.list('train', 'a\n\nx\n'), 'not annotated', 'train.txt:3',
     'x.xml'),
    (write('b', '<annotation>\n <size></annotation>'), 'broken XML', 'b.xml:2',
     'mismatched tag'),
    (write('b', ''), 'broken XML', 'b.xml:1', 'no element'),
    (write('b', '<kml/>'), 'not VOC', 'b.xml:1', '<kml>'),
    (lambda voc: (voc.folder / 'JPEGImages' / 'b.jpg').unlink(), 'missing picture', 'b',
     'b.jpg'),
    (lambda voc: cut(voc.folder / 'JPEGImages' / 'b.jpg', 700), 'damaged picture', 'b',
     'truncated'),
    (swap('b', '<width>60', '<width>61'), 'wrong picture size', 'picture b', '61 × 40'),
    (swap('b', '<width>60', '<width>?'), 'bad picture size', 'b.xml:3', "width '?'"),
    (swap('c', SIZE, ''),
     'missing field', 'c.xml:1', 'no <size>'),
    (swap('a', '<name>dog</name>', ''), 'missing field', 'a.xml:4, object 0', '<name>'),
    (swap('a', 'bndbox>', 'box>'), 'broken XML', 'a.xml:7', 'mismatched tag'),
    (edge('<xmin>30<', '<xmin>?<'), 'bad box', 'a.xml:9, object 1', "xmin '?'"),
    (edge('<xmin>30<', '<xmin>nan<'), 'box not finite', 'a.xml:9', 'NaN'),
    (edge('<xmin>30<', '<xmin>50<'), 'negative size', 'a.xml:9', 'width -8'),
    (edge('<xmin>30<', '<xmin>42<'), 'zero area', 'a.xml:9', 'no area'),
    (edge('<ymax>24<', '<ymax>54<'), 'box reaches outside', 'a.xml:9', '14 pixels'),
    (swap('a', '<difficult>0', '<difficult>2'), 'bad crowd flag', 'a.xml:4', "is '2'"),
]


@pytest.mark.parametrize(('spoil', 'kind', 'where', 'words'), VOC, ids=names(VOC))
def test_voc(voc_set, spoil, kind, where, words):
    spoil(voc_set)
    problems, _ = check_dataset(voc_set.folder)
    assert [p.kind for p in problems] == [kind], problems
    assert where in problems[0].where
    assert words in problems[0].message


def test_unknown_class(voc_set, coco_set):
    problems, _ = check_dataset(voc_set.folder, names=['cat'])
    assert [(p.kind, p.line) for p in problems] == [('unknown class', 4)]
    assert "'dog' is none of cat" in problems[0].message
    problems, _ = check_dataset(coco_set.path, names=['dog'])
    # the class, and each annotation of it
    assert [p.kind for p in problems] == ['unknown class'] + ['unknown category'] * 2


def test_every_problem_is_listed(coco_set):
    for spoil in (
        box(1, NAN, 3, 4), change('annotations', 0, category_id=9),
        resave(2, (61, 40)), lambda coco: cut(picture(coco, 1), 900),
    ):
        spoil(coco_set)
    problems, dataset = check_dataset(coco_set.path)
    assert sorted(p.kind for p in problems) == [
        'box not finite', 'damaged picture', 'unknown category', 'wrong picture size'
    ]
    assert [e.id for e in dataset] == [10]


def test_a_folder_of_pictures(tmp_path, picture_file):
    for name in 'abcd':
        picture_file(tmp_path / f'{name}.png')
    cut(tmp_path / 'b.png', 0)
    cut(tmp_path / 'c.png', 500)
    (tmp_path / 'd.png').write_text('text')
    (tmp_path / 'notes.txt').write_text('text')
    problems, dataset = check_dataset(tmp_path)
    found = {os.path.basename(p.file): p.kind for p in problems}
    assert found == {
        'b.png': 'empty picture', 'c.png': 'damaged picture', 'd.png': 'not a picture'
    }
    assert len(dataset) == 1


def test_every_kind_has_a_case():
    cases = {case[1] for case in COCO + VOC}
    assert set(KINDS) - cases == {'unknown class'}  # has a test of its own
    assert len(KINDS) >= 20


def test_problems_are_json(coco_set):
    box(1, NAN, 3, 4)(coco_set)
    problems, _ = check_dataset(coco_set.path)
    (row,) = json.loads(json.dumps([p._asdict() for p in problems]))
    assert row['id'] == 'annotation 2'
    assert row['kind'] == 'box not finite'
