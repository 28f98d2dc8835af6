from pathlib import Path

import pytest

from ddetr_np.commands.inputs import drawn_paths, find_pictures, image_ids
from ddetr_np.errors import InputError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('b.jpg', 'a.PNG', 'notes.txt', '._b.jpg', 'sub/c.jpg', 'x[1].jpg'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / 'none').mkdir()
    (tmp_path / 'odd.jpg').mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ('arguments', 'wanted'),
    [
        (['b.jpg'], ['b.jpg']),
        (['.'], ['a.PNG', 'b.jpg', 'x[1].jpg']),
        (['*.jpg'], ['b.jpg', 'x[1].jpg']),
        (['**/*.jpg'], ['b.jpg', 'sub/c.jpg', 'x[1].jpg']),
        (['x[1].jpg'], ['x[1].jpg']),  # a name first, only then a pattern
        (['sub', 'b.jpg'], ['sub/c.jpg', 'b.jpg']),
        (['b.jpg', './b.jpg', 'b*'], ['b.jpg']),
        (['gone.jpg'], ['gone.jpg']),  # for the reader to refuse
        (['notes.txt'], ['notes.txt']),
    ],
)
def test_found(tree, arguments, wanted):
    files, problems = find_pictures(arguments)
    assert [file.as_posix() for file in files] == wanted
    assert problems == []


@pytest.mark.parametrize(
    ('argument', 'reason'),
    [('none', 'no pictures'), ('*.gif', 'no file matches'), ('', 'empty')],
)
def test_not_found(tree, argument, reason):
    files, problems = find_pictures([argument, 'b.jpg'])
    assert files == [Path('b.jpg')]
    assert problems[0][0] == argument
    assert reason in problems[0][1]


def test_image_ids():
    clear = ['000000039769.jpg', 'in/cat.jpg']
    alike = ['a/7.png', 'b/007.png', 'a/x.jpg', 'b/x.jpg']
    ids = image_ids([Path(name) for name in clear + alike])
    assert ids == [39769, 'cat.jpg', *alike]


@pytest.mark.parametrize(
    ('files', 'wanted'),
    [
        (['a.jpg', 'b/c.png'], ['a', 'c']),
        (['a/x.jpg', 'b/x.jpg'], ['a_x', 'b_x']),
        (['a/x.jpg', 'a/x.png'], ['x.jpg', 'x.png']),
        (['a/X.jpg', 'b/x.jpg'], ['a_X', 'b_x']),
        (['a_x.jpg', 'a/x.jpg', 'b/x.jpg'], ['a_x.jpg', 'a_x.jpg_2', 'b_x']),
    ],
)
def test_drawn_paths(files, wanted):
    paths = drawn_paths([Path(file) for file in files], Path('out'))
    assert paths == [Path('out') / f'{name}.png' for name in wanted]


def test_a_picture_is_never_overwritten(tmp_path):
    file = tmp_path / 'a.png'
    file.touch()
    with pytest.raises(InputError, match='overwritten'):
        drawn_paths([file], tmp_path)
    drawn_paths([file], tmp_path / 'out')
