"""Settings as text: TOML files, and NAME=VALUE of a command line."""

import ast
import json
import tomllib
from pathlib import Path

from ..errors import InputError


def read_toml(path):
    """Return the tables of a TOML file as a dict.

    Parameters
    ----------
    path : path
        The file: UTF-8.

    Returns
    -------
    dict
        What stands above the tables is at its top, each table a dict in it.

    Raises
    ------
    InputError
        There is no such file, or it is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise InputError(f'{path} does not exist; check the path') from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f'{path} is no TOML file: {error}') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from error


def parse_setting(text):
    """Return ('lr', 1e-3) of 'lr=1e-3'; values as TOML or Python write them, or a word.

    Parameters
    ----------
    text : str
        NAME=VALUE; spaces about both are left out.

    Returns
    -------
    name : str
        Dotted for what is in a table.
    value : object
        The text itself if it is neither TOML nor Python.

    Raises
    ------
    InputError
        There is no '='.
    """
    name, equals, value = (part.strip() for part in text.partition('='))
    if not equals or not name:
        raise InputError(f'{text!r}: expected NAME=VALUE, as in lr=1e-3 or model.C=128')
    try:
        return name, tomllib.loads(f'x = {value}')['x']
    except tomllib.TOMLDecodeError:
        pass
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def to_toml(settings):
    """Return the text of a TOML file.

    Parameters
    ----------
    settings : dict
        Words, numbers, lists of them, and dicts of these, which become tables.

    Returns
    -------
    str
        The tables come last.
    """
    top, tables = [], []
    for name, value in settings.items():
        if isinstance(value, dict):
            lines = [f'{key} = {_toml(v)}' for key, v in value.items()]
            tables += ['', f'[{name}]', *lines]
        else:
            top.append(f'{name} = {_toml(value)}')
    return '\n'.join([*top, *tables]) + '\n'


def _toml(value):
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace('\x7f', '\\u007f')
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(map(_toml, value)) + ']'
    return repr(value)
