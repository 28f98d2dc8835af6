import json

import numpy as np
import pytest
from PIL import Image


def write_picture(path, H=40, W=60, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


class CocoSet:
    """A good data set of three pictures, for tests to spoil."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / 'annotations.json'
        for i in range(3):
            write_picture(folder / 'pictures' / f'{i}.jpg', seed=i)
        self.data = {
            'images': [
                {'id': 10 + i, 'file_name': f'{i}.jpg', 'width': 60, 'height': 40}
                for i in range(3)
            ],
            'annotations': [
                self.annotation(1, 10, 7, [5, 6, 20, 10], area=150.5),
                self.annotation(2, 10, 3, [30, 10, 12, 14]),
                self.annotation(3, 11, 3, [0, 0, 60, 40], iscrowd=1),
            ],
            'categories': [{'id': 7, 'name': 'dog'}, {'id': 3, 'name': 'cat'}],
        }
        self.write()

    @staticmethod
    def annotation(id, image, category, bbox, **more):
        keys = 'id', 'image_id', 'category_id', 'bbox'
        return dict(zip(keys, (id, image, category, bbox))) | more

    def write(self):
        self.path.write_text(json.dumps(self.data))


@pytest.fixture
def coco_set(tmp_path):
    return CocoSet(tmp_path / 'set')


XML = """<annotation>
  <filename>{id}.jpg</filename>
  <size><width>60</width><height>40</height><depth>3</depth></size>
{objects}</annotation>
"""
OBJECT = """  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
  </object>
"""


class VocSet:
    """The same in Pascal's form."""

    def __init__(self, folder):
        self.folder = folder
        for i, name in enumerate('abc'):
            write_picture(folder / 'JPEGImages' / f'{name}.jpg', seed=i)
        two = [('dog', (5, 6, 25, 16)), ('cat', (30, 10, 42, 24))]
        self.annotate('a', two)
        self.annotate('b', [('cat', (0, 0, 60, 40))], difficult=1)
        self.annotate('c', [])
        self.list('train', 'a\nb\n')
        self.list('test', 'c\n')

    def xml(self, id):
        return self.folder / 'Annotations' / f'{id}.xml'

    def annotate(self, id, objects, difficult=0):
        text = ''.join(
            OBJECT.format(*box, name=name, difficult=difficult) for name, box in objects
        )
        self.xml(id).parent.mkdir(exist_ok=True)
        self.xml(id).write_text(XML.format(id=id, objects=text))

    def list(self, split, text):
        folder = self.folder / 'ImageSets' / 'Main'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{split}.txt').write_text(text)

    def replace(self, id, old, new):
        text = self.xml(id).read_text()
        assert old in text
        self.xml(id).write_text(text.replace(old, new, 1))


@pytest.fixture
def voc_set(tmp_path):
    return VocSet(tmp_path / 'voc')


@pytest.fixture
def picture_file():
    return write_picture
