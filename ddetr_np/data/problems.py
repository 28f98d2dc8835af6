"""What can be wrong with a data set, and what reading does about each."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError

FATAL, REFUSED, LEFT_OUT, CLIPPED, KEPT = (
    'nothing can be read', 'refused, or left out with skip_bad', 'left out', 'clipped',
    'kept',
)
KINDS = {  # kind: what reading does; the published reader drops and clips in silence
    'empty file': FATAL,
    'broken JSON': FATAL,
    'not COCO': FATAL,
    'no pictures': FATAL,
    'no categories': FATAL,
    'bad category': FATAL,
    'duplicate category': FATAL,
    'unknown class': REFUSED,
    'bad record': REFUSED,
    'missing field': REFUSED,
    'id not an integer': REFUSED,
    'duplicate picture id': REFUSED,
    'duplicate picture': REFUSED,
    'bad picture size': REFUSED,
    'missing picture': REFUSED,
    'empty picture': REFUSED,
    'not a picture': REFUSED,
    'damaged picture': REFUSED,
    'unusable picture': REFUSED,
    'wrong picture size': REFUSED,
    'unknown picture': REFUSED,
    'unknown category': REFUSED,
    'duplicate id': REFUSED,
    'bad box': REFUSED,
    'box not finite': REFUSED,
    'negative size': REFUSED,
    'bad crowd flag': REFUSED,
    'zero area': LEFT_OUT,
    'box outside': LEFT_OUT,
    'box reaches outside': CLIPPED,
    'duplicate annotation': KEPT,
    'bad area': KEPT,
    'broken XML': REFUSED,
    'not VOC': REFUSED,
    'not annotated': REFUSED,
    'empty list': FATAL,
    'duplicate in list': KEPT,
}
SHOWN = 5  # problems in an error's message


class Problem(NamedTuple):
    """One thing that is wrong.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    file : str
        The path of what was read: annotations, a list, a picture, a folder.
    line : int or None
        In the file, from 1.
    id : str or None
        What within the file, as in 'annotation 12'.
    message : str
        What was expected, what is there.
    """

    kind: str
    file: str
    line: int | None
    id: str | None
    message: str

    @property
    def where(self):
        """File, line and id, as far as known."""
        line = f':{self.line}' if self.line else ''
        return f'{self.file}{line}' + (f', {self.id}' if self.id else '')

    def __str__(self):
        return f'{self.where}: {self.message} [{self.kind}]'


class Findings:
    """Collects the problems of one data set while it is read."""

    def __init__(self):
        self.problems = []

    def add(self, kind, file, message, line=None, id=None):
        """Note a problem; if nothing can be read with it, raise InputError.

        Parameters
        ----------
        kind : str
            A key of `KINDS`.
        file : path
            Where it is.
        message : str
            What was expected, what is there.
        line : int, optional
            In the file, from 1.
        id : str, optional
            What within the file, as in 'annotation 12'.
        """
        found = Problem(kind, str(file), line, id, message)
        self.problems.append(found)
        if KINDS[kind] is FATAL:
            raise InputError(f'{found.where}: {message}')

    def counts(self):
        """Return a Counter of the kinds that made reading leave something out.

        Returns
        -------
        Counter
            Kind → number of problems; those only clipped or kept are not in it.
        """
        out = (REFUSED, LEFT_OUT)
        return Counter(p.kind for p in self.problems if KINDS[p.kind] in out)

    def refuse(self, path):
        """Raise InputError if a problem was found that must not be passed over.

        Parameters
        ----------
        path : path
            The data set's, for the message.
        """
        bad = [p for p in self.problems if KINDS[p.kind] is REFUSED]
        if not bad:
            return
        more = len(bad) - SHOWN
        lines = [f'{path} has {len(bad)} bad entries:', *map(str, bad[:SHOWN])]
        if more > 0:
            lines.append(f'… and {more} more')
        lines.append(
            f'`ddetr-np data check {path}` lists all; skip_bad (--skip-bad) reads the '
            'rest'
        )
        raise InputError('\n  '.join(lines))


def picture_problem(path):
    """Return what keeps a picture file from being read, or None; not its pixels.

    Parameters
    ----------
    path : path
        Of the picture.

    Returns
    -------
    (str, str) or None
        A key of `KINDS`, 'missing picture' or 'empty picture', and a sentence.
    """
    path = Path(path)
    if not path.is_file():
        return 'missing picture', f'there is no picture {path}'
    if path.stat().st_size == 0:
        return 'empty picture', f'the picture {path} is empty (0 bytes)'
    return None
