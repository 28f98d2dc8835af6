"""Where each equation, section and symbol of the appendix stands in the code.

`equations.toml` is the map, written and reviewed by hand. Here every place it names is
looked up: dotted names by import, with file and line; tests by parsing; pages and
figures by their files. What does not exist is an error that names the entry.

    python docs/equation_map.py        # checks, and prints what it found
"""

import ast
import functools
import importlib
import inspect
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SOURCE = DOCS / 'equations.toml'

KINDS = ('section', 'equation', 'symbol')
KEYS = {
    'id', 'kind', 'section', 'name', 'title', 'math', 'text', 'code', 'tests',
    'walkthroughs', 'figures', 'pages',
}
SECTIONS = {
    'main': 'Attention: Eqs. 1, 2 and 3',
    'A.1': 'A.1 What deformable attention costs',
    'A.2': 'A.2 Multi-scale feature maps',
    'A.3': 'A.3 Boxes from reference points',
    'A.4': 'A.4 Refinement, two stages, initialisation',
    'A.5': 'A.5 What the detector looks at',
    'A.6': 'A.6 Where it samples',
    'A.7': 'A.7 Notation (Table 4)',
}


class MapError(Exception):
    """The map names something that does not exist, or says too little."""


class Place(NamedTuple):
    """A place in the code or the tests."""

    name: str  # as the map has it
    file: str  # from the root of the repository
    line: int
    target: str  # what the API reference calls the nearest thing that it documents


class Entry(NamedTuple):
    """One line of the map."""

    id: str
    kind: str
    section: str
    name: str
    title: str
    math: str
    text: str
    code: list  # of Place
    tests: list  # of Place
    walkthroughs: list  # of paths from the root
    figures: list  # of paths from docs/
    pages: list  # of paths from docs/


def load(source=SOURCE):
    """Return the entries of a map, every place looked up.

    Parameters
    ----------
    source : path

    Returns
    -------
    list of Entry

    Raises
    ------
    MapError
        Lists everything that is wrong, each with its entry.
    """
    try:
        tables = tomllib.loads(Path(source).read_text(encoding='utf-8'))
    except tomllib.TOMLDecodeError as error:
        raise MapError(f'{source}: {error}') from error
    problems, entries, seen = [], [], set()
    for table in tables.get('entry', []):
        name = table.get('id', '?')
        found = _check(table)
        if name in seen:
            found.append('this id is taken')
        seen.add(name)
        if not found:
            entry, found = _resolve(table)
            entries.append(entry)
        problems += [f'{name}: {problem}' for problem in found]
    if not entries and not problems:
        problems.append('there are no entries')
    if problems:
        raise MapError(f'{source.name}:\n  ' + '\n  '.join(problems))
    return entries


def _check(table):
    """Return what is wrong with a table by itself."""
    problems = [f'there is no key {key!r}' for key in table.keys() - KEYS]
    for key in ('id', 'kind', 'section', 'name', 'text', 'code', 'tests'):
        if not table.get(key):
            problems.append(f'{key} is missing')
    if table.get('kind') not in KINDS:
        problems.append(f'kind is not one of {", ".join(KINDS)}')
    if table.get('section') not in SECTIONS:
        problems.append(f'section is not one of {", ".join(SECTIONS)}')
    return problems


def _resolve(table):
    """Return the Entry and what in it points nowhere."""
    problems = []

    def all_of(key, look_up):
        found = []
        for name in table.get(key, []):
            try:
                found.append(look_up(name))
            except MapError as error:
                problems.append(str(error))
        return found

    entry = Entry(
        *(table[key] for key in ('id', 'kind', 'section', 'name')),
        table.get('title', ''),
        table.get('math', ''),
        table['text'],
        all_of('code', find_code),
        all_of('tests', find_test),
        all_of('walkthroughs', functools.partial(_file, ROOT)),
        all_of('figures', functools.partial(_file, DOCS)),
        all_of('pages', functools.partial(_file, DOCS)),
    )
    return entry, problems


def _file(folder, name):
    if not (folder / name).is_file():
        raise MapError(f'there is no file {name}')
    return name


def find_code(name):
    """Return the Place of `module.thing`, `module.Class.attribute` or `….f(parameter)`.

    Attributes that only instances have count where a method assigns to them.

    Raises
    ------
    MapError
        There is no such thing.
    """
    dotted, _, parameter = name.removesuffix(')').partition('(')
    parts = dotted.split('.')
    module, rest = _module(parts, name)
    if not rest:
        return Place(name, _relative(module.__file__), 1, dotted)
    thing, owner = module, module
    for i, part in enumerate(rest):
        owner = thing
        if hasattr(thing, part) and not _is_field(thing, part):
            thing = getattr(thing, part)
            continue
        line = _attribute_line(owner, part) if i == len(rest) - 1 else None
        if line is None or parameter:
            raise MapError(f'there is no {name}: {_called(owner)} has no {part!r}')
        file = _relative(inspect.getsourcefile(owner))
        return Place(name, file, line, dotted.rpartition('.')[0])
    file, line, target = _place(thing, dotted, module, rest)
    if parameter and parameter not in inspect.signature(thing).parameters:
        raise MapError(f'there is no {name}: {dotted} has no such parameter')
    return Place(name, file, line, target)


def _module(parts, name):
    """Import the longest part of a dotted name that is a module."""
    for n in range(len(parts), 0, -1):
        dotted = '.'.join(parts[:n])
        try:
            return importlib.import_module(dotted), parts[n:]
        except ModuleNotFoundError as error:
            if error.name is None or not f'{dotted}.'.startswith(f'{error.name}.'):
                raise
    raise MapError(f'there is no {name}: there is no module {parts[0]}')


def _called(thing):
    return getattr(thing, '__qualname__', None) or thing.__name__


def _is_field(owner, part):
    """Whether it is a field of a dataclass or named tuple, or the like: no function."""
    return inspect.isclass(owner) and not (
        inspect.isroutine(getattr(owner, part))
        or isinstance(inspect.getattr_static(owner, part), property)
    )


def _place(thing, dotted, module, rest):
    """Return file, line and the name in the API reference of something importable."""
    if isinstance(thing, property):
        thing = thing.fget
    inner = inspect.unwrap(thing) if callable(thing) else thing
    try:
        file = inspect.getsourcefile(inner)
        line = inspect.getsourcelines(inner)[1]
    except TypeError:  # a constant
        line = _assignment(ast.parse(Path(module.__file__).read_text('utf-8')), rest[0])
        if line is None:
            raise MapError(f'there is no {dotted}: it has no line') from None
        return _relative(module.__file__), line, module.__name__
    home = f'{inner.__module__}.{inner.__qualname__}'
    if home != dotted:
        raise MapError(f'{dotted} is {home}: name it where it stands')
    lines = Path(file).read_text('utf-8').splitlines()
    while lines[line - 1].lstrip().startswith('@'):  # the definition, not its decorator
        line += 1
    hidden = any(part.startswith('_') for part in dotted.split('.'))
    return _relative(file), line, module.__name__ if hidden else dotted


def _attribute_line(owner, name):
    """Return the line in a class where a field or an instance's attribute begins."""
    if not inspect.isclass(owner):
        return None
    source, start = inspect.getsourcelines(owner)
    body = ast.parse(textwrap.dedent(''.join(source))).body[0]
    line = _assignment(body, name)
    for node in ast.walk(body):
        if line is None and isinstance(node, ast.Attribute):
            stored = isinstance(node.ctx, ast.Store)
            if stored and node.attr == name and getattr(node.value, 'id', '') == 'self':
                line = node.lineno
    return None if line is None else start + line - 1


def _assignment(node, name):
    """Return the line where a class or module gives a name a value or a type."""
    for child in node.body:
        targets = getattr(child, 'targets', [getattr(child, 'target', None)])
        for target in targets:
            names = ast.walk(target) if target else ()
            if any(getattr(node, 'id', '') == name for node in names):
                return child.lineno
    return None


def _relative(file):
    package = Path(importlib.import_module('ddetr_np').__file__).resolve().parent
    return Path(file).resolve().relative_to(package.parent).as_posix()


@functools.cache
def _tests(file):
    """Return {name: line} of a file's tests, or None if there is no such file."""
    path = ROOT / file
    if not path.is_file():
        return None
    found = {}
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node.lineno
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found[f'{node.name}::{inner.name}'] = inner.lineno
    return {name: line for name, line in found.items() if 'test' in name.lower()}


def find_test(node):
    """Return the Place of a test, given as pytest names it.

    Raises
    ------
    MapError
        There is no such file or test.
    """
    file, _, name = node.partition('::')
    tests = _tests(file)
    if tests is None:
        raise MapError(f'there is no file {file}')
    if name not in tests:
        raise MapError(f'there is no test {name!r} in {file}')
    return Place(node, file, tests[name], '')


def modules(entries):
    """Return the modules that the entries' code stands in."""
    return sorted(
        {place.file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
         for entry in entries for place in entry.code if place.file.endswith('.py')}
    )


# The page


def render(entries):
    """Return the map as MyST Markdown."""
    parts = []
    for section, title in SECTIONS.items():
        chosen = [entry for entry in entries if entry.section == section]
        if not chosen:
            continue
        parts.append(f'## {title}')
        symbols = [entry for entry in chosen if entry.kind == 'symbol']
        parts += [_block(entry) for entry in chosen if entry.kind != 'symbol']
        if symbols:
            if len(symbols) < len(chosen):
                parts.append('### Symbols')
            parts.append(_table(symbols))
    return '\n\n'.join(parts)


def _block(entry):
    """A section or an equation: its formula, and a list of where it is."""
    title = f'{entry.name}: {entry.title}' if entry.title else entry.name
    lines = [f'(map-{entry.id})=', f'### {title}', '']
    for formula in entry.math.strip().split('\n\n'):
        if formula:
            lines += ['```{math}', formula, '```', '']
    lines += [entry.text.strip(), '']
    for word, links in _links(entry):
        lines += [f'{word}', f': {"<br>".join(links)}', '']
    return '\n'.join(lines)


def _links(entry):
    """Yield (word, links) of an entry."""
    yield 'Code', [_code_link(place) for place in entry.code]
    yield 'Tests', [_test_link(place) for place in entry.tests]
    if entry.walkthroughs:
        yield 'Walkthrough', [_page_link(path) for path in entry.walkthroughs]
    if entry.pages:
        yield 'Explained', [f'<project:{path}>' for path in entry.pages]
    if entry.figures:
        pictures = [f'![{entry.name}]({path})' for path in entry.figures]
        yield 'Figure', pictures


def _code_link(place):
    short = place.name.removeprefix('ddetr_np.')
    return f'{{py:obj}}`{short} <{place.target}>` {_line(place)}'


def _test_link(place):
    return f'`{place.name.partition("::")[2]}` {_line(place)}'


def _line(place):
    file = place.file.replace('/', '/<wbr>')  # where a narrow column breaks it
    return f'<span class="line">{file}:{place.line}</span>'


def _page_link(path):
    stem = Path(path).stem
    return f'{{doc}}`/walkthroughs/{stem}`'


def _table(entries):
    """Symbols: what each is, and where."""
    rows = ['| symbol | what it is | code | tests |', '|---|---|---|---|']
    for entry in entries:
        symbol = f'{{math}}`{entry.math.strip()}`' if entry.math else entry.name
        links = dict(_links(entry))
        more = [*links.pop('Tests'), *links.get('Walkthrough', [])]
        more += links.get('Explained', [])
        text = re.sub(r'\s+', ' ', entry.text).strip()
        cells = [f'<span id="map-{entry.id}"></span>{symbol}', text]
        cells += ['<br>'.join(links['Code']), '<br>'.join(more)]
        cells = [cell.replace('|', r'\|') for cell in cells]
        rows.append(f'| {" | ".join(cells)} |')
    return '\n'.join(rows)


def main():
    """Check the map and print its places."""
    try:
        entries = load()
    except MapError as error:
        print(error, file=sys.stderr)
        return 1
    for entry in entries:
        print(entry.name)
        for place in [*entry.code, *entry.tests]:
            print(f'    {place.file}:{place.line}  {place.name}')
    print(f'{len(entries)} entries, all found')
    return 0


if __name__ == '__main__':
    sys.exit(main())
