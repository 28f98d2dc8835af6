"""CuPy's own code on a stub of CUDA: what a pass asks of it, it takes.

See `cuda_stub`. Each scenario is a process of its own, in which CuPy is patched.
"""

import contextlib
import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

STUB = Path(__file__).with_name('cuda_stub')


@pytest.fixture(scope='module')
def modules():
    """The stub's modules, which the tests' processes find by their folder."""
    sys.path.insert(0, str(STUB))
    import cuda_stub
    import passes

    yield cuda_stub, passes
    sys.path.remove(str(STUB))


@pytest.fixture(scope='module')
def libraries(modules, tmp_path_factory):
    pytest.importorskip('cupy', '14', exc_type=ImportError)
    pytest.importorskip('ml_dtypes')
    if (sys.platform, platform.machine()) != ('linux', 'x86_64'):
        pytest.skip('the stub is written for Linux on x86-64')
    with contextlib.suppress(OSError):
        ctypes.CDLL('libcuda.so.1')
        pytest.skip('there is a driver: -m gpu tests with CUDA itself')
    folder = tmp_path_factory.mktemp('cuda')
    try:
        modules[0].build(folder)
    except modules[0].LackingError as error:
        pytest.skip(str(error))
    return folder


SCENARIOS = [
    'step, single_scale', 'step, single_scale_dc5', 'step, multi_scale',
    'step, refine', 'step, two_stage', 'step, half', 'step, double',
    'step, inputs kept', 'graph, single_scale', 'graph, single_scale_dc5',
    'graph, multi_scale', 'graph, refine', 'graph, two_stage', 'graph, half',
    'graph, double', 'graph, another GPU', 'graph, distinct proposals', 'memory',
    'core', 'detect', 'benchmark of the core', 'benchmark of the model',
]  # fmt: skip


@pytest.mark.parametrize('name', SCENARIOS)
def test_what_is_asked_of_cupy(name, libraries):
    command = sys.executable, str(STUB / 'passes.py'), str(libraries), name
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def test_every_scenario_is_run(modules):
    assert sorted(SCENARIOS) == sorted(modules[1].SCENARIOS)
