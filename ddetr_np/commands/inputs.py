"""Which pictures a command line names, and what their results are called."""

import glob
import os
from collections import Counter
from pathlib import Path

from ..errors import InputError


def find_pictures(arguments):
    """Return the picture files that files, folders and globs name.

    A folder stands for the pictures directly in it, known by their ending; hidden
    files are passed over. A glob ('shots/**/*.png') is expanded here, so that it works
    quoted and on every system; `**` goes through subfolders.

    Parameters
    ----------
    arguments : sequence of str

    Returns
    -------
    files : list of Path
        In the order given, folders and globs sorted; each once.
    problems : list of (str, str)
        Arguments that name no file, and why.
    """
    files, problems = {}, []
    for argument in arguments:
        path = Path(argument).expanduser()
        if argument and path.is_dir():
            found = _folder(path)
            reason = 'the folder holds no pictures (subfolders are not searched)'
        elif argument and not os.path.lexists(path) and glob.has_magic(argument):
            matches = sorted(glob.glob(str(path), recursive=True))
            found = [Path(match) for match in matches if not os.path.isdir(match)]
            reason = 'no file matches'
        else:
            # what is missing or is no picture, the reader says
            found = [path] if argument else []
            reason = 'an empty name'
        if not found:
            problems.append((argument, reason))
        for file in found:
            files.setdefault(os.path.abspath(file), file)
    return list(files.values()), problems


def _folder(path):
    from PIL import Image

    endings = Image.registered_extensions()
    return sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in endings
        and not file.name.startswith('.')
        and file.is_file()
    )


def image_ids(files):
    """Return an id for each file in COCO results.

    '000000039769.jpg' is 39769, as in COCO; other files go by their names. Where two
    would be the same, both go by their paths.
    """
    ids = [_image_id(file) for file in files]
    count = Counter(ids)
    return [
        i if count[i] == 1 else file.as_posix() for i, file in zip(ids, files)
    ]


def _image_id(file):
    stem = file.stem
    return int(stem) if stem.isascii() and stem.isdecimal() else file.name


def drawn_paths(files, folder):
    """Return where each file's drawn picture goes: 'NAME.png', all different.

    Pictures of the same name get their folders' names in front.

    Raises
    ------
    InputError
        A drawn picture would overwrite one of the files.
    """
    paths = [folder / f'{name}.png' for name in _distinct(files)]
    sources = {os.path.normcase(os.path.realpath(file)) for file in files}
    for path in paths:
        if os.path.normcase(os.path.realpath(path)) in sources:
            raise InputError(
                f'{path} is one of the pictures and would be overwritten; '
                'choose another folder for --out'
            )
    return paths


def _distinct(files):
    """Names without endings; upper and lower case count as the same."""
    files = [Path(os.path.abspath(file)) for file in files]
    top = Path(os.path.commonpath([file.parent for file in files])) if files else None
    names = [file.stem for file in files]
    for longer in (
        lambda file: '_'.join(file.relative_to(top).with_suffix('').parts),
        lambda file: '_'.join(file.relative_to(top).parts),
    ):
        count = Counter(name.casefold() for name in names)
        names = [
            longer(file) if count[name.casefold()] > 1 else name
            for name, file in zip(names, files)
        ]
    used = set()
    for i, name in enumerate(names):
        number = 2
        while names[i].casefold() in used:
            names[i] = f'{name}_{number}'
            number += 1
        used.add(names[i].casefold())
    return names
