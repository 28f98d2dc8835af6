import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture(here):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 70, 3), np.uint8)
    Image.fromarray(pixels).save('a.png')
    return 'a.png'


@pytest.fixture
def explore(run, weights):
    def call(*arguments):
        sizes = ('--short', 64, '--long', 96)
        return run('explore', *arguments, '--weights', weights, *sizes)

    return call


def test_a_page(explore, picture, here):
    result = explore(picture, '--threshold', 0)
    assert result.exit_code == 0, result.output
    page = here / 'a-explorer.html'
    assert page.name in result.stdout
    text = page.read_text(encoding='utf-8')
    assert text.startswith('<!doctype html>')
    assert text.count('data:image/png') == 5  # the best detection's maps
    result = explore(picture, '--threshold', 0, '--maps', 0, '--out', 'new/b.html')
    assert result.exit_code == 0, result.output
    assert 'data:image/png' not in (here / 'new' / 'b.html').read_text(encoding='utf-8')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('a.png', '--threshold', 1), 'no detection scores 1 or more; the best has'),
        (('a.png', '--threshold', 2), 'expected 0 (all) to 1'),
        (('a.png', '--maps', -1), '--maps is -1'),
        (('a.png', '--out', '.'), 'is a folder'),
        (('gone.png',), 'gone.png'),
    ],
)
def test_refuses(explore, picture, here, arguments, message):
    result = explore(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in here.iterdir()] == ['a.png']
