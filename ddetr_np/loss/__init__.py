"""The set loss: Hungarian matching and the losses of what was matched."""

from .criterion import Criterion, Weights
from .matcher import Matches

__all__ = ['Criterion', 'Matches', 'Weights']
