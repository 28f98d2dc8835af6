"""Quicker twins of the operations in `ops`, registered when this is imported.

Same arguments, same results within rounding, same caches. For NumPy here; nothing is
compiled. See `docs/benchmarks.md` for what each brings.
"""

from . import encoder, ms_deform_attn

__all__ = ['encoder', 'ms_deform_attn']
