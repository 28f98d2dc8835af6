"""Gradient checks that need nothing but the package itself.

`check_direction` and `check_gradients` judge anything with a forward and a backward;
`check_operations` runs them over all of `ops`, at cases that keep away from kinks.
"""

from . import attention_cases, box_cases, layer_cases
from .directions import (
    STEP,
    TOLERANCE,
    GradientCheck,
    check_direction,
    check_gradients,
)
from .exercises import exercise
from .operations import (
    check_case,
    check_operations,
    operation,
    run_backward,
    run_forward,
)
from .table import CASES, SMALL, Case, cases

__all__ = [
    'CASES',
    'SMALL',
    'STEP',
    'TOLERANCE',
    'Case',
    'GradientCheck',
    'attention_cases',
    'box_cases',
    'cases',
    'check_case',
    'check_direction',
    'check_gradients',
    'check_operations',
    'exercise',
    'layer_cases',
    'operation',
    'run_backward',
    'run_forward',
]
