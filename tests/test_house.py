"""What holds for the package as a whole."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import ddetr_np
from ddetr_np import ops
from ddetr_np.testing import CASES

PACKAGE = Path(__file__).parents[1] / 'ddetr_np'  # the checkout's, if installed
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob('*.py'))

RANKS = (  # a room may import from those before it, and from itself
    ('errors',),
    ('files', 'threads'),
    ('config', 'backend'),
    ('module',),
    ('ops',),
    ('fast', 'nn', 'loss', 'testing'),
    ('testing_model', 'weights', 'data'),
    ('evaluate',),
    ('train',),
    ('analysis',),
    ('views',),
    ('commands', 'cli', '__main__'),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def public_functions():
    for info in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f'{ops.__name__}.{info.name}')
        for name, function in vars(module).items():
            own = getattr(function, '__module__', None) == module.__name__
            if inspect.isfunction(function) and own and not name.startswith('_'):
                yield f'{info.name}.{name}', function


FUNCTIONS = dict(public_functions())


def test_every_backward_has_a_case():
    backwards = {n for n in FUNCTIONS if n.endswith('_backward')}
    assert {f'{name}_backward' for name in CASES} == backwards


def test_every_operation_with_a_backward_stands_above_it():
    for name, backward in FUNCTIONS.items():
        if name.endswith('_backward'):
            forward = inspect.unwrap(FUNCTIONS[name.removesuffix('_backward')])
            backward = inspect.unwrap(backward)
            above = forward.__code__.co_firstlineno
            assert above < backward.__code__.co_firstlineno, name


SHAPE = re.compile(
    r'\((\.\.\.|[A-Z]\w*[,·])[^()]*\)|\(\w+,\)( \w+)? array|of one shape'
)
NO_ARRAYS = {
    'conv.conv_size',
    'dropout.scale',
    'dropout.threshold',
    'ms_deform_attn.check_shapes',
}


@pytest.mark.parametrize('name', sorted(FUNCTIONS))
def test_docstrings_name_shapes(name):
    doc = inspect.getdoc(FUNCTIONS[name])
    assert doc, f'{name} has no docstring'
    if name in NO_ARRAYS:
        return
    # a backward's arrays are shaped as its forward's: it may leave that to it
    forward = FUNCTIONS.get(name.removesuffix('_backward'), FUNCTIONS[name])
    text = doc + inspect.getdoc(forward)
    assert SHAPE.search(text), f'{name}: its docstring names no shape'


def imports(path):
    """Yield (line, room or outside package) of everything a file imports, anywhere."""
    package = ('ddetr_np', *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else ()
            base = [*parts, *(node.module.split('.') if node.module else ())]
            names = ['.'.join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            yield node.lineno, name.split('.')


def room(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix('.py')


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = room(path)
    if own == '__init__':
        return
    assert own in RANK, f'{own} is a new room: give it a rank'
    for line, (package, *names) in imports(path):
        where = f'{path.relative_to(ROOT)}:{line}'
        assert package not in ('torch', 'torchvision', 'transformers'), where
        assert (package not in ('cupy', 'cupyx')) or own == 'backend', where
        if package != 'ddetr_np' or names[0].startswith('__version'):
            continue
        other = names[0]
        assert other in RANK, f'{where} imports {other}, which has no rank'
        assert other == own or RANK[other] < RANK[own] or same_floor(own, other), (
            f'{where}: {own} imports {other}'
        )
        if other == 'views':
            assert own in ('cli', 'commands', 'views'), where


def same_floor(own, other):
    """Rooms that a rank holds only for their place: which may see each other."""
    return {own, other} <= {'commands', 'cli', '__main__'}


def tracked():
    try:
        listed = subprocess.run(
            ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('needs a git checkout')
    return [ROOT / name for name in listed.split('\0') if name]


# folders that exist on one machine only
ELSEWHERE = re.compile(r'(?<![\w.~:/-])/(work|root|home/\w+|Users/\w+|tmp/dev)(/|\b)')


def test_no_file_names_a_folder_of_somebodys_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding='utf-8')
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or removed and not committed yet
        if path == Path(__file__).resolve():
            continue
        found += [
            f'{path.relative_to(ROOT)}:{n}: {line.strip()[:80]}'
            for n, line in enumerate(text.splitlines(), 1)
            if ELSEWHERE.search(line)
        ]
    assert not found, '\n'.join(found)


def test_public_names_exist():
    for name in ddetr_np.__all__:
        assert getattr(ddetr_np, name) is not None
    with pytest.raises(AttributeError, match='no_such_name'):
        _ = ddetr_np.no_such_name
