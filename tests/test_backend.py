import sys
import threading

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np import backend
from ddetr_np.backend import (
    get_xp,
    plain,
    replaceable,
    scatter_add,
    substitute,
    to_device,
    to_host,
    twin,
    twins,
)
from ddetr_np.errors import InputError


@pytest.fixture
def registry(monkeypatch):
    """An empty registry of twins; the real one is back afterwards."""
    monkeypatch.setattr(backend, '_twins', {})


def double(x, by=2):
    """Twice x."""
    return 'plain', x, by


def test_without_a_twin_the_operation_runs(registry):
    operation = replaceable(double)
    assert operation(1) == ('plain', 1, 2)
    assert operation.plain is double
    assert operation.__doc__ == 'Twice x.'
    assert operation.key.endswith('.double')


def test_a_twin_stands_in_until_told_not_to(registry):
    operation = replaceable(double)

    @twin(operation)
    def quick(x, by=2):
        return 'quick', x, by

    assert quick(3)[0] == 'quick'  # the decorator hands the function back
    assert operation(1, by=5) == ('quick', 1, 5)
    assert operation(x=1) == ('quick', 1, 2)
    with plain():
        assert operation(1) == ('plain', 1, 2)
        with plain():
            assert operation(1)[0] == 'plain'
        assert operation(1)[0] == 'plain'
    assert operation(1)[0] == 'quick'
    assert operation.plain(1)[0] == 'plain'
    assert twins() == {(operation.key, 'numpy'): quick}


def test_substitutes_stand_in_for_twins_within_the_block(registry):
    operation = replaceable(double)
    twin(operation)(lambda x, by=2: ('quick', x, by))
    others = {(operation.key, 'numpy'): lambda x, by=2: ('other', x, by)}
    with substitute(others):
        assert operation(1)[0] == 'other'
        with plain():
            assert operation(1)[0] == 'plain'
        with substitute({}):
            assert operation(1)[0] == 'plain'
    with plain(), substitute(others):
        assert operation(1)[0] == 'other'
    assert operation(1)[0] == 'quick'


def test_plain_ends_with_an_error_too(registry):
    operation = replaceable(double)
    twin(operation)(lambda x: 'quick')
    with pytest.raises(ZeroDivisionError), plain():
        1 / 0  # noqa: B018
    assert operation(1) == 'quick'


def test_plain_is_this_thread_s_own(registry):
    operation = replaceable(double)
    twin(operation)(lambda x: 'quick')
    ready, done, seen = threading.Event(), threading.Event(), []

    def other():
        ready.wait(10)
        seen.append(operation(1))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with plain():
        ready.set()
        done.wait(10)
        seen.append(operation(1)[0])
    thread.join()
    assert seen == ['quick', 'plain']


def test_a_twin_for_another_library_is_not_taken(registry):
    operation = replaceable(double)
    twin(operation, 'cupy')(lambda x: 'cuda')
    assert operation(np.ones(2))[0] == 'plain'


class FakeArray:
    """Stands in for CuPy's array where there is no GPU."""

    def get(self):
        return np.arange(3)


@pytest.fixture
def fake_cupy(monkeypatch):
    module = type(sys)('cupy')
    module.ndarray = FakeArray
    monkeypatch.setitem(sys.modules, 'cupy', module)
    return module


def test_the_library_is_that_of_any_argument(fake_cupy):
    assert get_xp() is np
    assert get_xp(np.ones(2), 3.0, None) is np
    assert get_xp(FakeArray()) is fake_cupy
    assert get_xp(np.ones(2), FakeArray()) is fake_cupy
    assert_array_equal(to_host(FakeArray()), [0, 1, 2])


def test_arrays_in_caches_and_keywords_choose_the_twin(registry, fake_cupy):
    operation = replaceable(double)
    twin(operation, 'cupy')(lambda *args, **kwargs: 'cuda')
    assert operation(FakeArray()) == 'cuda'
    assert operation((None, FakeArray())) == 'cuda'
    assert operation(x=FakeArray()) == 'cuda'
    assert operation(1)[0] == 'plain'


def test_without_cupy_all_is_numpy(monkeypatch):
    monkeypatch.delitem(sys.modules, 'cupy', raising=False)
    assert get_xp(np.ones(2), object()) is np
    a = np.ones(2)
    assert to_host(a) is a
    assert to_device(a) is a
    assert to_device(a, 'cpu') is a


@pytest.mark.parametrize('device', ['tpu', 'cuda:one', 'cuda:-1', '', 'cpu:0', 'gpu'])
def test_unknown_devices_are_refused(device):
    with pytest.raises(InputError, match="expected 'cpu', 'cuda:0'"):
        to_device(np.ones(2), device)


def test_a_gpu_without_cupy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cupy', None)  # import raises ImportError
    for device in ('cuda', 'cuda:0'):
        with pytest.raises(InputError, match=r'ddetr-np\[gpu12\]'):
            to_device(np.ones(2), device)


def test_scatter_add_counts_every_repeat():
    target = np.zeros((4, 2))
    scatter_add(target, np.array([1, 1, 3, 1]), np.array([[1, 2.0]] * 4))
    assert_array_equal(target, [[0, 0], [3, 6], [0, 0], [1, 2]])
    scatter_add(target, np.array([], int), np.zeros((0, 2)))
    assert_array_equal(target, [[0, 0], [3, 6], [0, 0], [1, 2]])


def test_scatter_add_by_several_indices():
    rng = np.random.default_rng(0)
    target = np.zeros((3, 4, 2))
    i, j = rng.integers(3, size=(5, 6)), rng.integers(4, size=(5, 6))
    values = rng.standard_normal((5, 6, 2))
    scatter_add(target, (i, j), values)
    expected = np.zeros_like(target)
    for index in np.ndindex(5, 6):
        expected[i[index], j[index]] += values[index]
    assert_allclose(target, expected, rtol=1e-13)
