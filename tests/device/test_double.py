"""What CuPy's double refuses; and, where CuPy's wheel is, that it is CuPy's double."""

import copy
import inspect

import numpy as np
import pytest

HOST = np.ones(3)


@pytest.fixture
def xp(double):
    import cupy

    return cupy


REFUSED = {
    'a NumPy array on the right': lambda xp, a: a + HOST,
    'on the left': lambda xp, a: HOST + a,
    'in place': lambda xp, a: a.__iadd__(HOST),
    'into a NumPy array': lambda xp, a: HOST.copy().__iadd__(a),
    'compared': lambda xp, a: a == HOST,
    'of a product': lambda xp, a: a @ HOST,
    'as an argument': lambda xp, a: xp.maximum(a, HOST),
    'as out': lambda xp, a: xp.maximum(a, 0, out=HOST),
    'stacked': lambda xp, a: xp.stack([a, HOST]),
    'assigned': lambda xp, a: a.__setitem__(slice(None), HOST),
    'as an index': lambda xp, a: a[np.arange(2)],
    'a list as an index': lambda xp, a: a[[0, 1]],
    'a device number in a slice': lambda xp, a: a[: xp.arange(3)[2]],
    'a device number in a range': lambda xp, a: range(xp.arange(3)[2]),
    'device arrays in a list': lambda xp, a: xp.asarray([a, a]),
    'a NumPy function': lambda xp, a: np.exp(a),
    'a NumPy reduction': lambda xp, a: np.sum(a),
    'to NumPy unasked': lambda xp, a: np.asarray(a),
    'where=': lambda xp, a: xp.add(a, a, where=a > 0),
    'an unknown name': lambda xp, a: xp.errstate(),
    'an unknown method': lambda xp, a: a.partition(1),
    'objects': lambda xp, a: xp.asarray(np.array([None])),
    'an element assigned twice': lambda xp, a: a.__setitem__(
        xp.asarray(np.zeros(2, int)), a[:2]
    ),
    'NaN as an integer': lambda xp, a: (a * xp.nan).astype(int),
    'an integer added atomically': lambda xp, a: xp.add.at(
        xp.arange(3), xp.arange(3), 1
    ),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_is_refused(xp, what):
    a = xp.asarray(np.arange(3.0))
    with pytest.raises((TypeError, ValueError, IndexError, AttributeError)):
        REFUSED[what](xp, a)


def test_what_is_not_refused(xp, double):
    a = xp.asarray(np.arange(4, dtype='float32'))
    assert (np.float32(2) * a + 1).dtype == np.float32  # a NumPy number may
    assert a.sum().shape == ()  # no NumPy scalar
    assert len(a[a > 1]) == 2
    view = a[1:]
    view += 1
    view[xp.arange(2)] = 7
    np.testing.assert_array_equal(a.get(), [0, 7, 7, 4])
    assert np.isnan(xp.empty(2).get()).all()  # nobody has written it
    b = copy.deepcopy(a)
    b += 1
    assert (a == b - 1).all()


def test_what_is_read_is_counted(xp, double):
    traffic = double.traffic
    a = xp.asarray(np.arange(4.0))
    assert traffic.to_device == [32]
    a.get()
    assert (traffic.to_host, traffic.asked) == ([32], [])
    float(a[1])
    assert not (a > 9).any()
    assert (traffic.to_host, traffic.asked) == ([32, 8, 1], [8, 1])


@pytest.fixture
def wheel():
    """CuPy itself: importing it needs no GPU."""
    return pytest.importorskip('cupy', '14', exc_type=ImportError)


def parameters(function):
    return [
        (p.name, p.kind, None if p.default is p.empty else repr(p.default))
        for p in inspect.signature(function).parameters.values()
    ]


def test_it_has_only_what_cupy_has(wheel, fake):
    for name in (n for n in vars(fake) if not n.startswith('_')):
        own, theirs = getattr(fake, name), getattr(wheel, name)
        if inspect.isfunction(own):
            assert parameters(own) == parameters(theirs), name
        elif isinstance(own, (int, float, str, type(None))):
            assert own is theirs or own == theirs or own != own, name
    special = {'__slots__', '__module__', '__array_priority__'}
    for name in set(vars(fake.ndarray)) - special - {'_a', '_device', '_of'}:
        assert hasattr(wheel.ndarray, name), name
    own, theirs = fake.lib.stride_tricks, wheel.lib.stride_tricks
    for name, function in vars(own).items():
        assert parameters(function) == parameters(getattr(theirs, name)), name
    for name in ('getDeviceCount', 'getDeviceProperties', 'CUDARuntimeError'):
        assert hasattr(wheel.cuda.runtime, name)
    for name in ('use', 'id', 'compute_capability', 'synchronize'):
        assert hasattr(wheel.cuda.Device, name)
    assert not hasattr(wheel.ndarray, '__index__')
