"""AdamW on a GPU: a parameter's whole step is one launch, with the host's bits."""

import functools
import math
from pathlib import Path

import numpy as np

from ..backend import get_xp, twin
from ..ops.update import adamw_update

NAMES = {'float32': 'adamw<float>', 'float64': 'adamw<double>'}
THREADS = 256


@functools.cache
def _module(xp):
    code = Path(__file__).with_suffix('.cu').read_text(encoding='utf-8')
    # a fused multiply-add rounds once where the host rounds twice
    options = '-std=c++17', '-fmad=false'
    return xp.RawModule(code=code, options=options, name_expressions=[*NAMES.values()])


@twin(adamw_update, 'cupy')
def gpu_adamw_update(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    step,
    grad_scale=1.0,
):
    """See `ops.update`."""
    arrays = param, grad, exp_avg, exp_avg_sq
    name = NAMES.get(param.dtype.name)
    if name is None or param.size == 0 or not all(
        a.flags.c_contiguous and a.dtype == param.dtype for a in arrays
    ):
        adamw_update.plain(
            *arrays, lr, beta1, beta2, eps, weight_decay, step, grad_scale
        )
        return
    numbers = constants(lr, beta1, beta2, eps, weight_decay, step, grad_scale)
    # a kernel's arguments are taken as they come: their types are those of the source
    arguments = *arrays, np.int64(param.size), *map(param.dtype.type, numbers)
    kernel = _module(get_xp(param)).get_function(name)
    kernel((-(-param.size // THREADS),), (THREADS,), arguments)


def constants(lr, beta1, beta2, eps, weight_decay, step, grad_scale):
    """Return the kernel's numbers: beta1, beta2, to_m, to_v, eps, rate, kept."""
    root = math.sqrt(1 - beta2**step)
    return (
        beta1,
        beta2,
        (1 - beta1) * grad_scale,
        math.sqrt(1 - beta2) * grad_scale,
        eps * root,
        lr * root / (1 - beta1**step),
        1 - lr * weight_decay,
    )
