import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from ddetr_np import InputError, read_dataset
from ddetr_np.data.augment import Plain
from ddetr_np.data.dataset import Dataset, make_example, training_target

# ---- COCO


def test_labels_are_numbered_by_id(coco_set):
    dataset = read_dataset(coco_set.path)
    assert len(dataset) == 3
    assert dataset.names == ('cat', 'dog')
    assert dataset.category_ids == (3, 7)
    first, second, third = dataset
    assert first.id == 10
    assert first.size == (40, 60)
    assert_array_equal(first.boxes, [[5, 6, 25, 16], [30, 10, 42, 24]])
    assert_array_equal(first.labels, [1, 0])
    assert_array_equal(first.areas, [150.5, 12 * 14])
    assert_array_equal(second.crowd, [True])
    assert second.target()['boxes'].shape == (0, 4)  # crowds are not trained on
    assert third.boxes.shape == (0, 4)
    assert first.picture().shape == (40, 60, 3)


def test_labels_are_the_ids(coco_set):
    dataset = read_dataset(coco_set.path, labels='ids')
    assert dataset.num_classes == 8
    assert_array_equal(dataset[0].labels, [7, 3])
    assert dataset.names[3] == 'cat'
    assert dataset.names[4] == 'class 4'
    categories = dataset.to_coco()['categories']
    assert categories == [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}]


def test_labels_by_name(coco_set):
    names = ('cow', 'dog', 'cat')
    dataset = read_dataset(coco_set.path, names=names)
    assert dataset.names == names
    assert_array_equal(dataset[0].labels, [1, 2])
    assert dataset.category_ids[1:] == (7, 3)
    assert dataset.category_ids[0] not in (3, 7)
    with pytest.raises(InputError, match="'cat' is none of dog"):
        read_dataset(coco_set.path, names=('dog',))


@pytest.mark.parametrize(
    'layout',
    ['{0}/annotations.json', '{0}/annotations/instances_train.json', '{0}/x/a.json'],
)
def test_pictures_are_found_beside_the_file(coco_set, layout, tmp_path):
    (tmp_path / 'set' / 'pictures').rename(tmp_path / 'set' / 'train')
    new = tmp_path / layout.format('set')
    new.parent.mkdir(exist_ok=True)
    coco_set.path.rename(new)
    pictures = None if 'instances' in layout else tmp_path / 'set' / 'train'
    assert len(read_dataset(new, pictures=pictures)) == 3


def test_a_folder_stands_for_its_file(coco_set):
    assert len(read_dataset(coco_set.folder)) == 3
    (coco_set.folder / 'other.json').write_text('{}')
    with pytest.raises(InputError, match=r'several JSON files.*other\.json'):
        read_dataset(coco_set.folder)


def test_to_coco_and_back(coco_set, tmp_path):
    dataset = read_dataset(coco_set.path)
    path = tmp_path / 'again.json'
    path.write_text(json.dumps(dataset.to_coco()))
    again = read_dataset(path, pictures=coco_set.folder / 'pictures')
    for a, b in zip(dataset, again):
        assert a.id == b.id
        for name in ('boxes', 'labels', 'crowd', 'areas', 'annotated'):
            assert_array_equal(getattr(a, name), getattr(b, name))


# ---- VOC


def test_voc(voc_set):
    dataset = read_dataset(voc_set.folder, 'train')
    assert [e.id for e in dataset] == ['a', 'b']
    assert dataset.names == ('cat', 'dog')
    assert_array_equal(dataset[0].boxes, [[5, 6, 25, 16], [30, 10, 42, 24]])
    assert_array_equal(dataset[0].labels, [1, 0])
    assert_array_equal(dataset[1].crowd, [True])  # difficult
    same = read_dataset(voc_set.folder / 'ImageSets' / 'Main' / 'train.txt')
    assert [e.id for e in same] == ['a', 'b']


def test_voc_classes_come_from_all_splits_or_a_file_or_the_caller(voc_set):
    assert read_dataset(voc_set.folder, 'test').names == ('cat', 'dog')
    (voc_set.folder / 'classes.txt').write_text('dog\ncow\ncat\n')
    assert read_dataset(voc_set.folder, 'test').names == ('dog', 'cow', 'cat')
    dataset = read_dataset(voc_set.folder, 'train', names=('dog', 'cat'))
    assert dataset[0].labels.tolist() == [0, 1]


def test_voc_wants_a_split(voc_set):
    with pytest.raises(InputError, match='splits test, train'):
        read_dataset(voc_set.folder)
    with pytest.raises(InputError, match="no split 'val'"):
        read_dataset(voc_set.folder, 'val')


def test_bccd(shared):
    folder = shared / 'data' / 'bccd'
    sizes = {'train': 205, 'val': 87, 'trainval': 292, 'test': 72}
    for split, n in sizes.items():
        dataset = read_dataset(folder, split)
        assert len(dataset) == n
        assert dataset.names == ('Platelets', 'RBC', 'WBC')
    assert dataset[0].picture().shape == (480, 640, 3)
    both = [read_dataset(folder, split).skipped for split in ('trainval', 'test')]
    assert sum(c['zero area'] for c in both) == 2


# ---- real pictures, against an independent computation


def independent_statistics(path):
    """Boxes after the 800 / 1333 resize and sums of areas, by plain loops."""
    data = json.loads(path.read_text())
    boxes, areas, sizes = {}, {}, {}
    for image in data['images']:
        w, h = image['width'], image['height']
        short, long = min(w, h), max(w, h)
        target = 800
        if long / short * target > 1333:
            target = int(round(1333 * short / long))
        sizes[image['id']] = (
            (int(target * h / w), target) if w < h else (target, int(target * w / h))
        )
        rows, total = [], 0.0
        for a in data['annotations']:
            if a['image_id'] != image['id']:
                continue
            total += a['area']
            x, y, bw, bh = a['bbox']
            if a.get('iscrowd'):
                continue
            x0, x1 = (min(max(v, 0), w) for v in (x, x + bw))
            y0, y1 = (min(max(v, 0), h) for v in (y, y + bh))
            if x1 > x0 and y1 > y0:
                H, W = sizes[image['id']]
                rows.append([x0 * W / w, y0 * H / h, x1 * W / w, y1 * H / h])
        boxes[image['id']], areas[image['id']] = rows, total
    return sizes, boxes, areas


def test_coco_mini(shared):
    path = shared / 'data' / 'coco_mini' / 'annotations' / 'instances_val2017.json'
    dataset = read_dataset(path, labels='ids')
    assert dataset.num_classes == 91
    sizes, boxes, areas = independent_statistics(path)
    assert sum(e.crowd.sum() for e in dataset) == 1
    assert sum(len(e.labels) for e in dataset) == 110
    for example in dataset:
        picture, target = Plain(800, 1333)(example.picture(), example.target())
        assert picture.shape[:2] == sizes[example.id]
        wanted = np.array(boxes[example.id]).reshape(-1, 4)
        assert_allclose(target['boxes'], wanted, rtol=1e-12)
        assert example.areas.sum() == pytest.approx(areas[example.id], rel=1e-12)
        H, W = example.size
        with Image.open(example.source) as image:
            assert image.size == (W, H)
        fractions = training_target(target, picture.shape[:2])['boxes']
        h, w = sizes[example.id]
        corners = fractions[:, :2] - fractions[:, 2:] / 2
        assert_allclose(corners * (w, h), wanted[:, :2], atol=1e-9)


# ---- examples


def test_boxes_are_clipped_and_dropped():
    boxes = [[-5, 4, 10, 50], [60, 0, 70, 10], [10, 10, 10, 20], [0, 0, 60, 40]]
    example = make_example(1, 'a.png', (40, 60), boxes, [0, 1, 2, 3], [0, 0, 0, 1])
    assert_array_equal(example.boxes, [[0, 4, 10, 40], [0, 0, 60, 40]])
    assert_array_equal(example.labels, [0, 3])
    assert_array_equal(example.crowd, [False, True])
    assert_array_equal(example.annotated, [boxes[0], boxes[3]])
    assert_array_equal(example.areas, [15 * 46, 2400])


def test_training_target_by_hand():
    target = {'boxes': np.array([[10.0, 5, 30, 25]]), 'labels': np.array([4])}
    got = training_target(target, (50, 100))
    assert_allclose(got['boxes'], [[0.2, 0.3, 0.2, 0.4]])
    assert got['labels'] == 4


@pytest.mark.parametrize(('annotated', 'turned'), [((40, 60), False), ((60, 40), True)])
def test_exif_follows_the_annotated_size(tmp_path, picture_file, annotated, turned):
    path = tmp_path / 'a.jpg'
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    picture_file(path, exif=exif)
    with Image.open(path) as image:
        stored = np.asarray(image)
    example = make_example(1, path, annotated, [], [])
    wanted = np.rot90(stored, -1) if turned else stored
    assert_array_equal(example.picture(), wanted)


def test_a_data_set_says_what_it_is(coco_set):
    text = repr(read_dataset(coco_set.path))
    assert '3 pictures, 2 classes' in text
    assert Dataset([], ('a',)).num_classes == 1


def test_not_a_data_set(tmp_path):
    with pytest.raises(InputError, match='no such file or folder'):
        read_dataset(tmp_path / 'gone')
    with pytest.raises(InputError, match='is no data set: expected a COCO'):
        read_dataset(tmp_path)
