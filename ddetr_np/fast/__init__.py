"""Quicker twins of the operations in `ops`, registered when this is imported.

Same arguments, same results within rounding, same caches. For NumPy nothing is
compiled; those for CuPy are named `gpu_…`. See `docs/benchmarks.md` for what each
brings.
"""

from . import (
    activation,
    add,
    add_norm,
    conv,
    dropout,
    encoder,
    feed_forward,
    few_queries,
    gpu_conv,
    gpu_dropout,
    gpu_ms_deform_attn,
    gpu_norm,
    gpu_product,
    gpu_top,
    gpu_update,
    linear,
    locations,
    losses,
    ms_deform_attn,
    norm,
    pool,
    position,
    stem,
    update,
)

__all__ = [
    'activation',
    'add',
    'add_norm',
    'conv',
    'dropout',
    'encoder',
    'feed_forward',
    'few_queries',
    'gpu_conv',
    'gpu_dropout',
    'gpu_ms_deform_attn',
    'gpu_norm',
    'gpu_product',
    'gpu_top',
    'gpu_update',
    'linear',
    'locations',
    'losses',
    'ms_deform_attn',
    'norm',
    'pool',
    'position',
    'stem',
    'update',
]
