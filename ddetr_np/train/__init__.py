"""Training: optimisers, schedules, the loop and its settings."""

from .ema import Ema
from .groups import GroupRule
from .optim import SGD, AdamW
from .schedule import Cosine, StepLR, Warmup
from .settings import Settings, read_settings

__all__ = [
    'SGD', 'AdamW', 'Cosine', 'Ema', 'GroupRule', 'Settings', 'StepLR', 'Warmup',
    'read_settings',
]
