"""The paper's equations as pairs of functions: forward, and backward below it."""

from . import (
    activation,
    attention,
    bilinear,
    boxes,
    conv,
    dropout,
    feed_forward,
    linear,
    losses,
    mixed,
    ms_deform_attn,
    norm,
    pool,
    position,
    top,
    update,
)

__all__ = [
    'activation',
    'attention',
    'bilinear',
    'boxes',
    'conv',
    'dropout',
    'feed_forward',
    'linear',
    'losses',
    'mixed',
    'ms_deform_attn',
    'norm',
    'pool',
    'position',
    'top',
    'update',
]
