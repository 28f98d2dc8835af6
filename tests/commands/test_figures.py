import os

import numpy as np
import pytest
from PIL import Image

import ddetr_np
from ddetr_np.views import animation, sampling

SMALL = ['--short', '64', '--long', '96', '--threshold', '0']


@pytest.fixture
def figures(run, weights, monkeypatch):
    monkeypatch.setattr(sampling, 'LONG', 2.4)  # inches: quickly drawn

    def figures(*arguments):
        return run('figures', '--weights', weights, *SMALL, *arguments)

    return figures


def pairs(*names):
    return sorted(f'{name}.{ending}' for name in names for ending in ('png', 'svg'))


def test_every_figure(figures, picture, here):
    result = figures(picture('a.b.png'), '--out', 'new/out')
    assert result.exit_code == 0, result.output
    written = sorted(os.listdir(here / 'new' / 'out'))
    assert written == pairs('a.b-encoder', 'a.b-decoder', 'a.b-gradients')
    for name in written:
        path = here / 'new' / 'out' / name
        assert str(path.relative_to(here)) in result.stdout
        if path.suffix == '.png':
            with Image.open(path) as image:
                assert min(image.size) > 200
        else:
            assert b'<svg' in path.read_bytes()


def drawn(monkeypatch):
    """What is drawn by `draw_sampling`: reads, and options."""
    calls = []
    draw = sampling.draw_sampling

    def spy(reads, *rest, **options):
        calls.append((reads, options))
        return draw(reads, *rest, **options)

    monkeypatch.setattr(sampling, 'draw_sampling', spy)
    return calls


def test_the_chosen_detection(figures, picture, weights, monkeypatch):
    calls = drawn(monkeypatch)
    result = figures(
        picture('a.png'), '--detection', 2, '--no-gradients', '--head', 1, '--zoom', 2
    )
    assert result.exit_code == 0, result.output
    model = ddetr_np.load_model(weights)
    found = ddetr_np.detect(model, 'a.png', threshold=0, top=3, short=64, long=96)
    (encoder, options), (decoder, _) = calls
    assert options == {'head': 1, 'zoom': 2}
    np.testing.assert_allclose(decoder.box, found.boxes[2], rtol=1e-3)
    assert decoder.label == f'{found.names[2]} {found.scores[2]:.2f}'
    x0, y0, x1, y1 = np.clip(found.boxes[2], 0, [40, 50, 40, 50])
    apart = np.abs(encoder.reference - [(x0 + x1) / 2, (y0 + y1) / 2])
    assert (apart < 5).all()  # its map has 8 × 10 tokens
    assert found.names[2] in result.stdout


def test_a_query_and_a_place(figures, picture, here, monkeypatch):
    calls = drawn(monkeypatch)
    name = picture('a.png')
    options = ['--no-gradients', '--layer', 0, '--part']
    assert figures(name, '--query', 3, *options, 'decoder').exit_code == 0
    assert figures(name, '--at', 11, 49, *options, 'encoder').exit_code == 0
    written = pairs('a-decoder', 'a-encoder')
    assert sorted(os.listdir(here)) == sorted(['a.png', *written])
    (query, _), (token, _) = calls
    assert query.title == 'decoder layer 0, query 3'
    np.testing.assert_allclose(token.reference, [12.5, 47.5], rtol=1e-5)


def test_panels_and_animation(figures, picture, here, monkeypatch):
    monkeypatch.setattr(animation, 'has_ffmpeg', lambda: False)
    result = figures(
        picture('a.png'), '--no-gradients', '--part', 'decoder', '--panels',
        '--animation',
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = pairs('a-decoder', 'a-decoder-levels', 'a-decoder-heads')
    assert sorted(os.listdir(here)) == sorted(['a.png', 'a-decoder.gif', *names])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--detection', '9999'], 'no detection 9999; those that score 0 or more'),
        (['--threshold', '0.99'], 'scores 0.99 or more; the best is'),
        (['--threshold', '2'], 'threshold is 2'),
        (['--query', '10'], 'no query 10; this model has 0 to 9'),
        (['--at', '41', '5'], 'x from 0 to 40 and y from 0 to 50'),
        (['--at', '5'], '--at'),
        (['--at', '5', '5', '--query', '1'], 'choose one of'),
        (['--layer', '1'], 'no encoder layer 1; this model has 0 to 0'),
        (['--layer', '3', '--part', 'decoder'], 'no decoder layer 3'),
        (['--head', '2'], 'no head 2; this model has 0 to 1'),
        (['--zoom', '0'], 'zoom is 0'),
        (['--out', 'a.png'], 'is a file; expected a folder'),
        (['--short', '900', '--long', '800'], 'short is 900'),
        (['--device', 'gpu'], "device is 'gpu'"),
        (['--weights', 'gone.pth'], 'gone.pth'),
    ],
)
def test_refused(figures, picture, here, arguments, message):
    result = figures(picture('a.png'), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert 'Traceback' not in result.output
    assert os.listdir(here) == ['a.png']


def test_no_picture(figures, here):
    result = figures('gone.png')
    assert result.exit_code == 2
    assert 'gone.png' in result.stderr
    assert not os.listdir(here)
