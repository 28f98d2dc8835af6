"""Where each operation is checked: inputs away from kinks, one builder an operation.

To add an operation, write a builder that yields `Case`s in the file it belongs to and
decorate it with the operation's name; a test asks for one for every `*_backward` in
`ops`.
"""

from . import attention, boxes, layers
from .table import CASES, SMALL, cases

__all__ = ['CASES', 'SMALL', 'attention', 'boxes', 'cases', 'layers']
