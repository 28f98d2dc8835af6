"""What pages show of the package: put where they say `<!-- generated: NAME -->`."""

import importlib
import inspect
import re
from pathlib import Path

import click
import equation_map
from sphinx.errors import ExtensionError

import ddetr_np
from ddetr_np.cli import cli

DOCS = Path(equation_map.__file__).parent
PACKAGE = Path(ddetr_np.__file__).parent
# with what stands for it where the source is read
WHERE = re.compile(r'<!-- generated: (.*?) -->(?: \(.*?\)\.\)|$)?', re.M)
COLUMNS = 84


def read(app, docname, source):
    """Replace the marks of a page by what they stand for."""

    def make(match):
        name = match[1]
        if name not in MAKERS:
            raise ExtensionError(f'{docname}: nothing makes {name!r}')
        return MAKERS[name](app)

    source[0] = WHERE.sub(make, source[0])


def public_names(app):
    """A table of the names in `ddetr_np` itself."""
    rows = ['| name | what it is |', '|---|---|']
    for name in ddetr_np.__all__:
        thing = getattr(ddetr_np, name)
        first = inspect.getdoc(thing).split('\n\n')[0].replace('\n', ' ')
        first = first.replace('|', '\\|').replace('*', '\\*')
        home = f'{thing.__module__}.{thing.__qualname__}'
        rows.append(f'| {{py:obj}}`{name} <{home}>` | {first} |')
    return '\n'.join(rows)


def model_cards(app):
    """The cards of the detectors that come with the package."""
    parts = []
    for path in sorted((PACKAGE / 'pretrained').glob('*.md')):
        app.env.note_dependency(str(path))
        head, text = path.read_text(encoding='utf-8').split('\n', 1)
        text = re.sub('^#', '##', text, flags=re.M) if head else text
        parts.append(f'#{head}\n{_fences(text)}')
    return '\n'.join(parts)


def _fences(text):
    """Undo in fenced blocks, where # begins a comment, what was done to headings."""
    parts = re.split('(^```.*?^```$)', text, flags=re.M | re.S)
    parts[1::2] = [re.sub('^##', '#', part, flags=re.M) for part in parts[1::2]]
    return ''.join(parts)


def commands(app):
    """The help of each command."""
    parts = []
    for name, command in cli.commands.items():
        parts.append(f'## {name}\n\n{_help(command, name)}')
        for inner in getattr(command, 'commands', {}):
            text = _help(command.commands[inner], f'{name} {inner}')
            parts.append(f'### {name} {inner}\n\n{text}')
    return '\n\n'.join(parts)


def _help(command, name):
    settings = {**cli.context_settings, 'max_content_width': COLUMNS}
    settings['terminal_width'] = COLUMNS
    context = click.Context(command, info_name=f'ddetr-np {name}', **settings)
    return f'```text\n{command.get_help(context)}\n```'


def walkthroughs(app):
    """A table of contents of what was copied from `notebooks/`, if anything was."""
    found = sorted(app.srcdir.glob('walkthroughs/[0-9]*'))
    names = dict.fromkeys(
        path.stem for path in found if path.suffix in ('.md', '.ipynb')
    )
    if not names:
        return ''
    listed = '\n'.join(f'walkthroughs/{name}' for name in names)
    return f'```{{toctree}}\n:caption: Walkthroughs\n:maxdepth: 1\n\n{listed}\n```'


def the_map(app):
    """The equation map; what it names and does not exist ends the build."""
    try:
        entries = equation_map.load()
    except equation_map.MapError as error:
        raise ExtensionError(str(error)) from error
    app.env.note_dependency(str(equation_map.SOURCE))
    for module in equation_map.modules(entries):
        app.env.note_dependency(importlib.import_module(module).__file__)
    return equation_map.render(entries)


MAKERS = {
    'public names': public_names,
    'model cards': model_cards,
    'commands': commands,
    'walkthroughs': walkthroughs,
    'equation map': the_map,
}


def setup(app):
    """Tell Sphinx."""
    app.connect('source-read', read)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
