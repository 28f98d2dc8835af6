"""Every operation on device arrays: what NumPy computes, and nothing read back."""

import numpy as np
import pytest

from ddetr_np.backend import get_xp, plain
from ddetr_np.testing import CASES, cases, operation, run_backward, run_forward

EVERY_CASE = [
    pytest.param(name, case, id=f'{name}: {case.label}')
    for name in CASES
    for case in cases(name)
]
TOLERANCE = {'float64': 1e-10, 'float32': 1e-5}


def cast(case, dtype):
    """The case with its floating arrays in another precision."""

    def turn(a):
        return a.astype(dtype) if getattr(a, 'dtype', None) == 'float64' else a

    return case._replace(
        inputs={k: turn(a) for k, a in case.inputs.items()},
        settings={k: turn(a) for k, a in case.settings.items()},
    )


def run(name, case, put=lambda a: a):
    forward, backward = operation(name)
    y, cache = run_forward(forward, case)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
    return y, run_backward(backward, case, put(dy), cache)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize(('name', 'case'), EVERY_CASE)
def test_forward_and_backward(gpu, name, case, dtype):
    case = cast(case, dtype)
    with plain():
        expected = run(name, case)
    got = run(name, gpu.put(case), gpu.put)
    if gpu.traffic:
        assert gpu.traffic.to_host == []
    for a in (got[0], *got[1].values()):
        assert get_xp(a) is not np
        assert a.dtype == dtype
    gpu.check(got, expected, TOLERANCE[dtype])
