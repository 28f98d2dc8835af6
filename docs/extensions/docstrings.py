"""Docstrings as they are written, for people at a terminal, made fit for Sphinx."""

import inspect
import re

# |a − b| is an absolute value, W* no emphasis: outside of backticks nothing is markup
CODE = re.compile(r'(``.*?``|`.*?`)')
MARKUP = re.compile(r'[|*]')
FIELD = re.compile(r'    (\w+): [\w. |]+(?:=.*?)?(?:# (.*))?$')
ARGUMENTS = re.compile(r'\*{1,2}\w+$')  # **fields, as numpydoc has it


def escape(line):
    """Return a line with what reStructuredText would take for markup made plain."""
    if ARGUMENTS.match(line):
        return line
    parts = CODE.split(line)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = MARKUP.sub(r'\\\g<0>', part)
            if i and re.match(r'\w', part):
                parts[i] = f'\\ {parts[i]}'
    return ''.join(parts)


def process(app, what, name, thing, options, lines):
    """Escape a docstring; tell the fields of a named tuple that has none."""
    if what == 'class' and (thing.__doc__ or '').startswith(f'{thing.__name__}('):
        lines[:] = fields(thing)
    lines[:] = [escape(line) for line in lines]


def fields(thing):
    """Return a docstring of a named tuple, of the comments beside its fields."""
    lines = ['Named tuple.', '', 'Parameters', '----------']
    try:
        source = inspect.getsource(thing)
    except OSError:  # made by a function
        return lines[:2]
    for line in source.splitlines():
        found = FIELD.match(line)
        if found:
            lines += [found[1], f'    {found[2] or ""}']
    return [*lines, '']


def skip(app, what, name, thing, skipped, options):
    """Leave out the fields of named tuples, which their docstrings list."""
    doc = getattr(thing, '__doc__', None) or ''
    return True if doc.startswith('Alias for field number') else None


def setup(app):
    """Tell Sphinx."""
    app.connect('autodoc-process-docstring', process, priority=100)  # before numpydoc
    app.connect('autodoc-skip-member', skip)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
