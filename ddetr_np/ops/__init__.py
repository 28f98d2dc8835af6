"""The paper's equations as pairs of functions: forward, and backward below it."""

from . import (
    activation,
    attention,
    bilinear,
    boxes,
    conv,
    dropout,
    linear,
    ms_deform_attn,
    norm,
    pool,
    position,
)

__all__ = [
    'activation',
    'attention',
    'bilinear',
    'boxes',
    'conv',
    'dropout',
    'linear',
    'ms_deform_attn',
    'norm',
    'pool',
    'position',
]
