"""Checkpoints without PyTorch: reading, naming, writing them; models from them."""

from . import packaged
from .files import read_tensors
from .load import convert, load_backbone, load_model, save_model
from .names import to_published
from .write import write_tensors

__all__ = [
    'convert',
    'load_backbone',
    'load_model',
    'packaged',
    'read_tensors',
    'save_model',
    'to_published',
    'write_tensors',
]
