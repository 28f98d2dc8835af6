"""Training: optimisers and their schedules."""

from .optim import SGD, AdamW, GroupRule
from .schedule import Cosine, StepLR, Warmup

__all__ = ['SGD', 'AdamW', 'Cosine', 'GroupRule', 'StepLR', 'Warmup']
