"""Imports run one way, and each outside library has its place."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'ddetr_np'
# a room imports itself and rooms further up, never one beside it
ROOMS = [
    {'errors', 'files'},
    {'config', 'backend'},
    {'module', 'ops', 'threads'},
    {'fast', 'nn', 'loss'},
    {'data', 'testing'},
    {'weights'},
    {'train', 'evaluate'},
    {'analysis'},
    {'views'},
    {'commands'},
    {'cli'},
    {'__main__'},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
MODULES = sorted(PACKAGE.rglob('*.py'))


def room(name):
    """Return a module's room; testing has files beside it."""
    return 'testing' if name.startswith('testing') else name


def home(path):
    return room(path.relative_to(PACKAGE).with_suffix('').parts[0])


def imports(path):
    """Yield the dotted name of everything a module imports, wherever in it."""
    package = ('ddetr_np', *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = '.'.join((*base, *filter(None, [node.module])))
            # from . import x: x may be a room
            yield from (f'{module}.{alias.name}' for alias in node.names)


def named(path):
    return path.relative_to(PACKAGE).as_posix()


def test_every_room_has_a_level():
    rooms = {home(path) for path in MODULES}
    assert rooms - {'__init__'} <= set(LEVEL)
    assert len(MODULES) > 20


@pytest.mark.parametrize('path', MODULES, ids=named)
def test_imports_run_one_way(path):
    here = home(path)
    if here == '__init__':
        return
    for name in imports(path):
        if name.startswith('ddetr_np.'):
            there = room(name.split('.')[1])
            if there in LEVEL and there != here:
                assert LEVEL[there] < LEVEL[here], f'{here} imports {name}'


@pytest.mark.parametrize('path', MODULES, ids=named)
def test_outside_libraries(path):
    names = {name.split('.')[0] for name in imports(path)}
    assert not names & {'torch', 'torchvision', 'transformers', 'timm'}
    if named(path) not in ('backend.py', 'commands/doctor.py'):
        assert not names & {'cupy', 'cupyx'}
