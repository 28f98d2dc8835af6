import json
import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from ddetr_np import InputError, Scenes, draw_scene, read_dataset, write_scenes
from ddetr_np.data.scenes import NAMES
from ddetr_np.data.scenes.draw import VISIBLE, _Drawn
from ddetr_np.data.scenes.figures import FIGURES, Patch


def patch(name, x=50.0, y=40.0, r=20.0, turn=0.0, stretch=1.0, size=(80, 100)):
    return Patch(FIGURES[name], x, y, r, turn, stretch, size)


def extent(p):
    rows, columns = np.nonzero(p.inside)
    top, left = p.place[0].start, p.place[1].start
    return (
        left + columns.min(), top + rows.min(),
        left + columns.max() + 1, top + rows.max() + 1,
    )


AREAS = {  # of r = 1, by geometry
    'disc': math.pi,
    'ring': math.pi * (1 - 0.45**2),
    'triangle': 3 * math.sqrt(3) / 4,
    'square': 1.6**2,
    # ten triangles between the centre, a point and a dent
    'star': 10 * 0.5 * 0.45 * math.sin(math.pi / 5),
    'cross': 2 * 2 * 0.64 - 0.64**2,
}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('turn', [0.0, 0.7])
def test_figures_have_the_areas_of_geometry(name, turn):
    p = patch(name, turn=turn, stretch=1.2)
    # whole pixels: a straight side may fall half a pixel off
    assert p.inside.sum() == pytest.approx(AREAS[name] * 400, rel=0.06)
    assert p.area == p.inside.sum()
    # the soft edge covers as much
    assert p.cover.sum() == pytest.approx(AREAS[name] * 400, rel=0.03)


def test_extents_by_hand():
    assert extent(patch('disc')) == (30, 20, 70, 60)
    assert extent(patch('square')) == (34, 24, 66, 56)
    assert extent(patch('cross')) == (30, 20, 70, 60)
    assert extent(patch('disc', stretch=1.21)) == (28, 22, 72, 58)
    # at the border: what is outside is not there, but counts in the area
    p = patch('disc', x=0.0)
    assert extent(p) == (0, 20, 20, 60)
    assert p.inside.sum() == pytest.approx(p.area / 2, rel=0.01)


def test_triangle_and_star_have_their_points():
    left, top, right, bottom = extent(patch('triangle'))
    assert bottom - top == pytest.approx(30, abs=1)  # 3/2 r
    assert right - left == pytest.approx(20 * math.sqrt(3), abs=1.5)
    left, top, right, bottom = extent(patch('star'))
    assert right - left == pytest.approx(40 * math.sin(math.radians(72)), abs=3)


def test_boxes_are_tight_on_what_is_seen():
    drawn = _Drawn(80, 100)
    drawn.add(patch('square'), 3)
    drawn.add(patch('square', x=66.0), 3)  # hides the right half of the first
    boxes, labels, areas = drawn.seen()
    assert_array_equal(boxes, [[34, 24, 50, 56], [50, 24, 82, 56]])
    assert_array_equal(labels, [3, 3])
    assert_array_equal(areas, [16 * 32, 32 * 32])


def test_too_much_is_never_hidden():
    drawn = _Drawn(80, 100)
    drawn.add(patch('square'), 3)
    assert not drawn.hides_too_much(patch('square', x=67.0))
    assert drawn.hides_too_much(patch('square', x=65.0))
    assert drawn.hides_too_much(patch('disc'))
    assert not drawn.hides_too_much(patch('disc', r=5.0))


def test_scenes_differ_in_their_boxes_only_by_what_they_show():
    labels, sizes, hidden = [], [], 0
    for seed in range(40):
        scene = draw_scene(seed, 96, 128)
        assert scene.picture.shape == (96, 128, 3)
        assert scene.picture.dtype == np.uint8
        assert len(scene.boxes) == len(scene.labels) == len(scene.areas)
        x0, y0, x1, y1 = scene.boxes.T
        assert (x0 >= 0).all()
        assert (y0 >= 0).all()
        assert (x1 <= 128).all()
        assert (y1 <= 96).all()
        assert (scene.areas <= (x1 - x0) * (y1 - y0)).all()
        assert (scene.areas > 0).all()
        labels += scene.labels.tolist()
        sizes += (x1 - x0).tolist()
        overlap = (x0[:, None] < x1) & (x1[:, None] > x0)
        overlap &= (y0[:, None] < y1) & (y1[:, None] > y0)
        hidden += overlap.sum() - len(x0)
    assert set(labels) == set(range(len(NAMES)))
    assert min(sizes) < 14
    assert max(sizes) > 40
    assert hidden > 10
    assert 0.4 <= VISIBLE <= 1


def test_a_figure_stands_out_where_its_box_is():
    """The picture itself shows an edge at the box, more than it does elsewhere."""
    steps, everywhere = [], []
    for seed in range(60):
        scene = draw_scene((7, seed), figures=(1, 1), radius=(30, 40))
        if not len(scene.boxes):
            continue
        pixels = scene.picture.astype(float)
        change = np.abs(pixels[:, 2:] - pixels[:, :-2]).sum(-1)  # across two columns
        x0, y0, x1, y1 = scene.boxes[0].astype(int)
        for x in (x0, x1):
            if 2 < x < 189:
                steps.append(change[y0:y1, x - 2 : x + 1].max())
        everywhere.append(np.median(change))
    assert np.median(steps) > 4 * np.median(everywhere)


def test_seeds():
    a, b = draw_scene((1, 2)), draw_scene((1, 2))
    assert_array_equal(a.picture, b.picture)
    assert_array_equal(a.boxes, b.boxes)
    assert not np.array_equal(a.picture, draw_scene((1, 3)).picture)


def test_data_set_of_scenes():
    scenes = Scenes(5, seed=4, H=64, W=80)
    assert len(scenes) == 5
    assert scenes.names == NAMES
    example = scenes[3]
    assert example.size == (64, 80)
    assert_array_equal(example.picture(), draw_scene((4, 3, 0), 64, 80).picture)
    assert len(list(scenes)) == 5
    with pytest.raises(IndexError):
        scenes[5]


@pytest.mark.parametrize('kind', ['png', 'jpg'])
def test_written_scenes_are_read_again(tmp_path, kind):
    path = write_scenes(tmp_path / 'new', 4, seed=6, H=64, W=80, kind=kind)
    assert json.loads(path.read_text())['info']['seed'] == 6
    written, scenes = read_dataset(tmp_path / 'new'), Scenes(4, seed=6, H=64, W=80)
    used = sorted({label for e in scenes for label in e.labels.tolist()})
    assert written.names == NAMES
    assert len(used) > 2
    for a, b in zip(written, scenes, strict=True):
        assert_array_equal(a.boxes, b.boxes)
        assert_array_equal(a.labels, b.labels)
        assert_array_equal(a.areas, b.areas)
        difference = np.abs(a.picture().astype(int) - b.picture())
        assert difference.mean() < (0.001 if kind == 'png' else 12)
    with Image.open(tmp_path / 'new' / 'pictures' / f'000000.{kind}') as image:
        assert image.size == (80, 64)


@pytest.mark.parametrize(
    'fields', [{'H': 20}, {'figures': (3, 2)}, {'radius': (2, 9)}, {'radius': (9, 8)}]
)
def test_draw_scene_refuses(fields):
    with pytest.raises(InputError, match='expected'):
        draw_scene(0, **fields)


def test_scenes_refuse(tmp_path):
    for count, seed in ((0, 0), (1, -1)):
        with pytest.raises(InputError, match='expected count'):
            Scenes(count, seed)
    with pytest.raises(InputError, match="kind is 'gif'"):
        write_scenes(tmp_path, 1, kind='gif')
