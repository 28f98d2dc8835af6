"""Training: optimisers and their schedules."""

from .groups import GroupRule
from .optim import SGD, AdamW
from .schedule import Cosine, StepLR, Warmup

__all__ = ['SGD', 'AdamW', 'Cosine', 'GroupRule', 'StepLR', 'Warmup']
