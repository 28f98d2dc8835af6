import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

import ddetr_np
from ddetr_np import InputError
from ddetr_np.analysis.look import look
from ddetr_np.analysis.reads import Reads, all_layers, decoder_reads, encoder_reads
from ddetr_np.views import animation
from ddetr_np.views.animation import save_animation
from ddetr_np.views.sampling import (
    GREEN,
    draw_heads,
    draw_levels,
    draw_sampling,
    save_figure,
)
from ddetr_np.views.sliders import explore_sampling

H, W = 60, 90


def some(size=(H, W), M=2, L=3, K=2, seed=0, **fields):
    """Reads at random, all inside the picture."""
    rng = np.random.default_rng(seed)
    A = rng.random((M, L, K))
    A /= A.sum((1, 2), keepdims=True)
    picture = rng.integers(0, 256, (*size, 3), np.uint8)
    loc = rng.random((M, L, K, 2)) * size[::-1]
    centre = np.array(size[::-1]) / 2
    shapes = ((8, 12), (4, 6), (2, 3), (1, 2))[:L]
    return Reads(picture, centre, loc, A, shapes, **fields)


@pytest.fixture(scope='module')
def seen(tiny):
    model = ddetr_np.build_model(
        'refine', backbone='resnet18', names=('dog', 'cat', 'hen', 'x' * 99), seed=1,
        **tiny,
    )  # fmt: skip
    picture = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    return look(model, picture, short=120, long=200)


def circles(axes):
    """The points drawn, with their weights."""
    (points,) = axes.collections
    return points.get_offsets().data, points.get_array().data


def test_all_points_are_drawn_with_their_weights():
    reads = some()
    axes = draw_sampling(reads)
    loc, A = circles(axes)
    order = np.argsort(reads.A, axis=None)
    np.testing.assert_array_equal(A, reads.A.ravel()[order])  # the heaviest on top
    np.testing.assert_array_equal(loc, reads.loc.reshape(-1, 2)[order])
    (points,) = axes.collections
    assert points.get_clim() == (0, reads.A.max())
    (cross,) = axes.lines
    assert cross.get_marker() == '+'
    assert cross.get_color() == GREEN
    np.testing.assert_array_equal(cross.get_xydata(), [reads.reference])
    assert not axes.patches
    assert axes.get_xlabel() == ''


def test_the_picture_lies_where_its_pixels_are():
    axes = draw_sampling(some())
    (image,) = axes.images
    assert image.get_extent() == [0, W, H, 0]
    assert axes.get_xlim() == (0, W)
    assert axes.get_ylim() == (H, 0)
    assert axes.get_aspect() == 1


@pytest.mark.parametrize(('head', 'level'), [(1, None), (None, 2), (0, 1), (-1, -1)])
def test_one_head_or_level(head, level):
    reads = some()
    axes = draw_sampling(reads, head=head, level=level)
    heads = slice(None) if head is None else [head]
    A = reads.A[heads][:, slice(None) if level is None else [level]]
    np.testing.assert_array_equal(circles(axes)[1], np.sort(A, axis=None))
    assert 'all 2 heads' in axes.get_title() or f'head {head % 2}' in axes.get_title()


def test_into_axes_of_ones_own():
    axes = Figure().add_subplot()
    assert draw_sampling(some(), axes, bar=False) is axes
    assert len(axes.figure.axes) == 1


def test_the_decoders_box_and_label():
    box = np.array([20, 30, 60, 50.0])
    reference = np.array([40, 40, 30, 9])
    reads = some(box=box, label='cat 0.87')._replace(reference=reference)
    axes = draw_sampling(reads)
    dotted, solid = axes.patches
    assert dotted.get_linestyle() == ':'
    assert dotted.get_bbox().extents.tolist() == [25, 35.5, 55, 44.5]
    assert solid.get_bbox().extents.tolist() == box.tolist()
    assert solid.get_edgecolor() == to_rgba(GREEN)
    (text,) = axes.texts
    assert text.get_text() == 'cat 0.87'
    assert text.xy == (20, 30)
    assert text.get_verticalalignment() == 'bottom'  # above the box


@pytest.mark.parametrize(
    'box', [(0, 0, 90, 60), (70, 1, 95, 20), (-9, -9, 5, 5), (85, 40, 99, 70)]
)
def test_the_label_stays_in_the_figure(box):
    reads = some(box=np.array(box, float), label='leukocyte, large 0.87')
    axes = draw_sampling(reads)
    axes.figure.canvas.draw()
    (text,) = axes.texts
    place, frame = text.get_window_extent(), axes.get_window_extent()
    assert frame.x0 <= place.x0 < place.x1 <= frame.x1
    assert frame.y0 <= place.y0 < place.y1 <= frame.y1


def test_points_outside_are_shown_or_counted():
    reads = some()
    reads.loc[0, 0, 0] = 95, 30  # within a tenth of the width
    reads.loc[0, 0, 1] = 500, 30
    reads.loc[1, 0, 1] = 30, -400
    axes = draw_sampling(reads)
    assert axes.get_xlim() == (0, 95 + 0.015 * W)
    assert axes.get_ylim() == (H, 0)
    assert axes.get_xlabel() == '2 of 12 points lie farther out'


def test_no_point_in_sight():
    reads = some()
    reads.loc[...] = 1e6
    assert draw_sampling(reads).get_xlim() == (0, W)


def test_zoom():
    reads = some()._replace(reference=np.array([80.0, 30]))
    axes = draw_sampling(reads, zoom=3)  # 30 × 20 pixels, moved to inside the picture
    assert axes.get_xlim() == (60, 90)
    assert axes.get_ylim() == (40, 20)
    axes = draw_sampling(reads, zoom=(10, 20, 30, 40))
    assert axes.get_xlim() == (10, 30)
    for zoom in (0.5, float('nan'), float('inf')):
        with pytest.raises(InputError, match=r'expected 1 \(the whole picture\)'):
            draw_sampling(reads, zoom=zoom)
    with pytest.raises(InputError, match='x0 < x1'):
        draw_sampling(reads, zoom=(30, 0, 10, 9))


def test_what_is_not_there():
    with pytest.raises(InputError, match='no head 2; this model has 0 to 1'):
        draw_sampling(some(), head=2)
    with pytest.raises(InputError, match='no level 3; this model has 0 to 2'):
        draw_sampling(some(), level=3)
    with pytest.raises(InputError, match='no head 5'):
        draw_levels(some(), head=5)


def test_panels():
    reads = some(M=4)
    for figure, n in ((draw_levels(reads), 3), (draw_heads(reads), 4)):
        *panels, _ = figure.axes
        drawn = [circles(axes)[1] for axes in panels if axes.collections]
        assert len(drawn) == n
        np.testing.assert_array_equal(
            np.sort(np.concatenate(drawn)), np.sort(reads.A, axis=None)
        )
        scales = {axes.collections[0].get_clim() for axes in panels[:n]}
        assert scales == {(0, reads.A.max())}
    level = draw_levels(reads).axes[1].get_title()
    share = reads.A[:, 1].sum() / 4
    assert level == f'level 1: 6 × 4 tokens, {share:.0%} of the weight'


@pytest.mark.parametrize('size', [(16, 16), (600, 20), (20, 600)])
def test_any_picture(tmp_path, size):
    """No warning of axes without room, at any shape."""
    reads = some(size, L=2, box=np.array([1.0, 1, 9, 9]), label='cat 0.87')
    for figure in (draw_sampling(reads).figure, draw_levels(reads)):
        save_figure(tmp_path / 'a.png', figure)
        with Image.open(tmp_path / 'a.png') as image:
            assert min(image.size) > 200


def test_encoder_reads(seen):
    token = 15 * 23 + 3 * 12 + 5
    reads = encoder_reads(seen, token, 0)
    assert reads.title == 'encoder layer 0, token 5, 3 of level 1'
    np.testing.assert_allclose(reads.reference, [5.5 / 12 * W, 3.5 / 8 * H], rtol=1e-5)
    np.testing.assert_allclose(reads.A.sum((1, 2)), 1, rtol=1e-5)
    assert reads.box is None
    assert encoder_reads(seen, -1).title.endswith('token 2, 1 of level 3')
    with pytest.raises(InputError, match='no token 471; this model has 0 to 470'):
        encoder_reads(seen, 471)


def test_decoder_reads(seen):
    reads = decoder_reads(seen, 4, layer=-1, label=1)
    assert reads.title == 'decoder layer 2, query 4'
    cx, cy, w, h = seen.out.boxes[-1, 0, 4] * [W, H, W, H]
    corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    np.testing.assert_allclose(reads.box, corners, rtol=1e-5)
    np.testing.assert_allclose(
        reads.reference, seen.out.boxes[1, 0, 4] * [W, H, W, H], rtol=1e-5
    )
    score = 1 / (1 + np.exp(-seen.out.logits[-1, 0, 4, 1]))
    assert reads.label == f'cat {score:.2f}'
    i = seen.best.queries.tolist().index(4)  # of the query's classes the best
    assert decoder_reads(seen, 4).label.endswith(f'{seen.best.scores[i]:.2f}')
    assert len(decoder_reads(seen, 4, label=3).label) < 40
    with pytest.raises(InputError, match='no query 6; this model has 0 to 5'):
        decoder_reads(seen, 6)
    with pytest.raises(InputError, match='no class 4; this model has 0 to 3'):
        decoder_reads(seen, 0, label=4)
    with pytest.raises(InputError, match='no decoder layer 3; this model has 0 to 2'):
        decoder_reads(seen, 0, layer=3)


def test_animation(seen, tmp_path):
    frames = all_layers(seen, 'decoder', 2)
    assert [f.title[:15] for f in frames] == [f'decoder layer {d}' for d in range(3)]
    save_animation(tmp_path / 'a.gif', frames, head=1, seconds=0.5)
    with Image.open(tmp_path / 'a.gif') as image:
        assert image.n_frames == 3
        assert image.info['duration'] == 500
        seconds = [np.array(image.convert('RGB'))]
        image.seek(2)
        seconds.append(np.array(image.convert('RGB')))
    assert (seconds[0] != seconds[1]).any()
    # the box's green survives the few colours of a GIF
    assert (seconds[0] == (0, 224, 0)).all(-1).any()
    assert len(all_layers(seen, 'encoder', 2)) == 2


def test_animation_formats(seen, tmp_path, monkeypatch):
    frames = all_layers(seen, 'encoder', 0)
    with pytest.raises(InputError, match='expected .gif or .mp4'):
        save_animation(tmp_path / 'a.avi', frames)
    monkeypatch.setattr(animation.shutil, 'which', lambda name: None)
    with pytest.raises(InputError, match=r'needs the program ffmpeg.*choose .gif'):
        save_animation(tmp_path / 'a.mp4', frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not animation.has_ffmpeg(), reason='needs the program ffmpeg')
def test_mp4(seen, tmp_path):
    save_animation(tmp_path / 'a.mp4', all_layers(seen, 'encoder', 0))
    assert (tmp_path / 'a.mp4').read_bytes()[4:8] == b'ftyp'


@pytest.mark.parametrize('ending', ['png', 'svg'])
def test_the_same_figure_has_the_same_bytes(tmp_path, ending):
    paths = [tmp_path / f'{i}.{ending}' for i in (0, 1)]
    for path in paths:
        save_figure(path, draw_sampling(some()).figure)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_sliders_without_ipywidgets(seen, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(InputError, match=r"pip install 'ddetr-np\[notebook\]'"):
        explore_sampling(seen)


def test_sliders(seen):
    pytest.importorskip('ipywidgets')
    controls = {w.description: w for w in explore_sampling(seen).children[:-1]}
    assert controls['decoder_layer'].max == 2
    assert controls['encoder_layer'].value == 1
    assert [value for _, value in controls['head'].options] == [None, 0, 1]
