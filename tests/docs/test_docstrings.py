"""Docstrings of everything public, by numpydoc's checks."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import textwrap
from pathlib import Path

import pytest

import ddetr_np

ROOT = Path(__file__).parents[2]

OFF = {  # checks that this project's style does not ask for, and why
    'SA01': 'no See Also: the equation or section that is named is the pointer',
    'EX01': 'no Examples: the walkthroughs and how-to pages have them, and are run',
    'ES01': 'one sentence may be all there is to say',
    'SS02': 'an equation may open a docstring, and equations begin with small letters',
    'SS05': 'taken for a third person: nouns in s, and equations (ds = …)',
    'PR04': '`cache`, or arguments that are said to be those of another function',
    'PR08': 'a description may begin with the names x, y of what the axis holds',
    'PR09': 'a description may end with … or an equation',
    'RT02': 'values are named in the equation, so single ones too',
    'RT03': 'the type of a named value may say all: logits : (N, n, classes) array',
    'RT04': 'as PR08',
}
IN_PAIRS = {'train.sections.SceneSettings'}  # count, val_count: the order is by meaning
ROOMS = [
    info.name
    for info in pkgutil.iter_modules(ddetr_np.__path__)
    if not info.name.startswith('_') and info.name not in ('commands', 'cli')
]


def modules(room):
    """Yield a room's public modules."""
    module = importlib.import_module(f'ddetr_np.{room}')
    yield module
    inside = getattr(module, '__path__', [])
    for info in pkgutil.walk_packages(inside, f'{module.__name__}.'):
        if not any(part.startswith('_') for part in info.name.split('.')):
            yield importlib.import_module(info.name)


def public(room):
    """Yield (name, thing) of a room's public functions, classes and methods."""
    for module in modules(room):
        for name, thing in vars(module).items():
            own = getattr(thing, '__module__', None) == module.__name__
            if name.startswith('_') or not own:
                continue
            dotted = f'{module.__name__}.{name}'.removeprefix('ddetr_np.')
            if inspect.isroutine(thing):
                yield dotted, thing
            elif inspect.isclass(thing):
                yield dotted, thing
                for inner, method in vars(thing).items():
                    if inspect.isfunction(method) and not inner.startswith('_'):
                        yield f'{dotted}.{inner}', method


def says_nothing(thing):
    """Whether it is a named tuple without a docstring: its comments tell the shapes."""
    doc = thing.__doc__ or ''
    return inspect.isclass(thing) and doc.startswith(f'{thing.__name__}(')


def documented(name, thing):
    """Whether a method has a docstring, its own or that of the method it overrides."""
    if thing.__doc__:
        return True
    module, owner, method = f'ddetr_np.{name}'.rsplit('.', 2)
    owner = getattr(importlib.import_module(module), owner, None)
    return bool(inspect.getdoc(getattr(owner, method, None)))


def is_twin(thing):
    """Whether it stands in for an operation, and is documented there."""
    return (inspect.getdoc(thing) or '').startswith('See `ops.')


@pytest.mark.parametrize('room', ROOMS)
def test_numpydoc(room):
    validate = pytest.importorskip('numpydoc.validate', reason='needs numpydoc')
    problems = []
    for name, thing in public(room):
        if says_nothing(thing):
            continue
        for code, message in validate.validate(f'ddetr_np.{name}')['errors']:
            if code in ('PR01', 'RT01') and is_twin(thing):
                continue
            elif code == 'PR03' and name in IN_PAIRS:
                continue
            elif code == 'GL08' and documented(name, thing):
                continue
            elif code not in OFF:
                problems.append(f'{name}: {code} {message}')
    assert not problems, '\n'.join(problems)


def raised(function):
    """Names of the errors that a function's own body raises."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            names.add(getattr(node.exc.func, 'id', ''))
    return names & {'InputError', 'ValueError', 'NotFiniteError'}


@pytest.mark.parametrize('room', ROOMS)
def test_errors_are_told(room):
    untold = []
    for name, thing in public(room):
        if inspect.isclass(thing):
            continue
        doc = inspect.getdoc(thing) or ''
        untold += [f'{name}: {error}' for error in raised(thing) if error not in doc]
    assert not untold, '\n'.join(untold)


EXAMPLES = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in sorted((ROOT / 'ddetr_np').rglob('*.py'))
    if '>>> ' in path.read_text(encoding='utf-8')
]


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples(name):
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted
    assert not done.failed


def test_off_are_checks_that_exist():
    validate = pytest.importorskip('numpydoc.validate', reason='needs numpydoc')
    assert set(OFF) <= set(validate.ERROR_MSGS)
