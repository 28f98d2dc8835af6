"""What runs on a GPU, run on CuPy's double everywhere, and on CuPy with `-m gpu`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from ddetr_np import InputError, backend
from ddetr_np.fast import gpu_product


def _load(name):
    path = Path(__file__).with_name(f'{name}.py')
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cupy_double, cublas_double = _load('cupy_double'), _load('cublas_double')


def convert(function, thing):
    """Apply a function to the arrays in a thing, however deep."""
    if hasattr(thing, 'dtype'):
        return function(thing)
    if isinstance(thing, dict):
        return {k: convert(function, v) for k, v in thing.items()}
    if hasattr(thing, '_fields'):
        return type(thing)(*(convert(function, v) for v in thing))
    if isinstance(thing, (list, tuple)):
        return type(thing)(convert(function, v) for v in thing)
    return thing


def leaves(thing):
    """The arrays in a thing, however deep, and its numbers."""
    if isinstance(thing, dict):
        thing = tuple(thing.values())
    if isinstance(thing, (list, tuple)):
        return [leaf for part in thing for leaf in leaves(part)]
    return [] if thing is None else [thing]


class Gpu:
    """A GPU, and how near its results are to NumPy's.

    Parameters
    ----------
    traffic : Traffic or None
        What crossed, where the double counts it.
    """

    name = 'cuda:0'

    def __init__(self, traffic=None):
        self.traffic = traffic

    def put(self, thing):
        """Return a thing whose arrays are on the GPU."""
        return convert(lambda a: backend.to_device(a, self.name), thing)

    def fetch(self, thing):
        """Return a thing whose arrays are on the host."""
        return convert(backend.to_host, thing)

    def check(self, got, expected, tolerance):
        """Compare results: the double's to the bit, CuPy's within a tolerance."""
        got, expected = leaves(self.fetch(got)), leaves(expected)
        for a, b in zip(got, expected, strict=True):
            if self.traffic:
                np.testing.assert_array_equal(a, b)
            else:
                scale = np.nanmax(np.abs(b), initial=0)
                np.testing.assert_allclose(a, b, tolerance, tolerance * scale)


@pytest.fixture
def fake():
    """The double of the module `cupy`, which nobody has imported."""
    return cupy_double.module()


@pytest.fixture
def double(monkeypatch):
    """The GPU of the double, which is imported as `cupy`; no kernel runs on it."""
    monkeypatch.setitem(sys.modules, 'cupy', cupy_double.module())
    numpy_only = {k: f for k, f in backend.twins().items() if k[1] == 'numpy'}
    monkeypatch.setattr(backend, '_twins', numpy_only)
    with cupy_double.fresh() as traffic:
        yield Gpu(traffic)


@pytest.fixture
def machine(double):
    """The double's GPUs, to be made others."""
    return cupy_double.machine


@pytest.fixture
def cublas(double, monkeypatch):
    """The double of cuBLAS, and the twin that asks it for products to be recorded."""
    library = cublas_double.Cublas()
    monkeypatch.setattr(gpu_product, 'find_library', lambda cuda: library)
    monkeypatch.setitem(
        backend.twins(), ('product.matmul', 'cupy'), gpu_product.gpu_matmul
    )
    return library


@pytest.fixture
def recorder(gpu, request):
    """What lets products be recorded on either GPU."""
    return request.getfixturevalue('cublas') if gpu.traffic else None


@pytest.fixture
def real():
    """The GPU of CuPy; skip where there is none."""
    pytest.importorskip('cupy', exc_type=ImportError)
    try:
        backend.to_device(np.zeros(1), Gpu.name)
    except InputError as error:
        pytest.skip(str(error))
    return Gpu()


@pytest.fixture(params=['double', pytest.param('cupy', marks=pytest.mark.gpu)])
def gpu(request):
    """The double's GPU, and with `-m gpu` CuPy's."""
    return request.getfixturevalue('double' if request.param == 'double' else 'real')
