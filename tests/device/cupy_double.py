"""A strict double of CuPy: NumPy underneath, CuPy's refusals on top.

Operations are written once for both libraries, and most of what goes wrong on a GPU
goes wrong before any kernel runs: a NumPy array among CuPy's, a NumPy function given a
CuPy array, a keyword or a name that CuPy lacks, an index that repeats where it may not.
The double refuses all that, on any machine. Where CuPy is lenient in a way that costs a
hidden copy (NumPy functions handed on to CuPy's, indices that are lists or NumPy
arrays) it is stricter than CuPy. What is read back is noted: each time is a wait for
the device.

Results are NumPy's, bit for bit. Signatures are those of CuPy 14; where its wheel is
installed, a test compares them.
"""

import contextlib
import math
import numbers
import types

import numpy as np

IMPLICIT = (
    'Implicit conversion to a NumPy array is not allowed. '
    'Please use `.get()` to construct a NumPy array explicitly.'
)


CUBLAS_HANDLE = 0x7FFF12345678


class Traffic:
    """What crossed the seam: bytes of each copy, in order.

    Parameters
    ----------
    to_host : list of int
        Arrays read by `get`, `item` and the like.
    asked : list of int
        Of these, numbers that Python asked for: `bool`, `int`, `float`, `item`.
    to_device : list of int
    """

    def __init__(self):
        self.clear()

    def clear(self):
        self.to_host, self.asked, self.to_device = [], [], []


traffic = Traffic()


class CUDARuntimeError(RuntimeError):
    pass


def _need_no_capture(what):
    """Refuse what CUDA refuses while a stream is captured into a graph."""
    if machine.capturing:
        raise CUDARuntimeError(
            f'operation not permitted when stream is capturing: {what}'
        )


def _need_recorded_products():
    """Refuse a product as CuPy does (to 14.2) before it calls cuBLAS."""
    if machine.capturing and not machine.records_products:
        raise NotImplementedError(
            'calling cuBLAS API during stream capture is currently unsupported'
        )


class Machine:
    """The GPUs there are; a test may set another number, an older card, or a fault."""

    error = CUDARuntimeError

    def reset(self):
        self.count, self.capability = 2, (8, 0)
        self.fault = None  # a CUDARuntimeError that every call to the driver raises
        self.current = 0
        self.capturing = False
        self.records_products = False  # as CuPy to 14.2; True is one to come
        self.launched = 0  # graphs
        self.streams = [Stream(null=True)]  # in use, the innermost last
        self.allocators = []  # in use, the innermost last


machine = Machine()  # reset below, where there are streams


class Device:
    def __init__(self, device=None):
        self.id = machine.current if device is None else int(device)
        self._before = []

    def use(self):
        machine.current = self.id

    def synchronize(self):
        _need_no_capture('synchronize')

    @property
    def compute_capability(self):
        return '{}{}'.format(*machine.capability)

    @property
    def cublas_handle(self):
        return CUBLAS_HANDLE

    def __enter__(self):
        self._before.append(machine.current)
        self.use()
        return self

    def __exit__(self, *error):
        machine.current = self._before.pop()

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None


def _get_device_count():
    if machine.fault:
        raise machine.fault
    return machine.count


def _get_device_properties(i):
    major, minor = machine.capability
    return {
        'name': b'Double', 'totalGlobalMem': 1 << 30, 'major': major, 'minor': minor
    }


SCALARS = (numbers.Number, np.generic)
NOT_THERE = object()


def _inside(x, what='operand'):
    """The NumPy array in one of ours; scalars as they are; all else is refused."""
    if isinstance(x, ndarray):
        if x._device != machine.current:
            raise RuntimeError(
                f'an array of device {x._device} where device {machine.current} is '
                'the current one'
            )
        return x._a
    if isinstance(x, SCALARS):
        return x
    raise TypeError(f'Unsupported type {type(x)} as {what}')


def _wrap(a):
    """One of our arrays around NumPy's; what NumPy makes a scalar is one of 0-d."""
    return ndarray._of(np.asarray(a))


class _Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = flags.owndata


class ndarray:
    __slots__ = ('_a', '_device')
    __hash__ = None
    __array_priority__ = 100

    def __init__(self, *args, **kwargs):
        raise TypeError('the double has no constructor; use empty')

    @classmethod
    def _of(cls, a):
        if a.dtype.kind not in 'biuf':
            raise ValueError(f'Unsupported dtype {a.dtype}')
        self = object.__new__(cls)
        self._a, self._device = a, machine.current
        return self

    # what NumPy asks

    def __array__(self, dtype=None, copy=None):
        raise TypeError(IMPLICIT)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        # a NumPy scalar on the left of an operator arrives here, and may
        others = [x for x in inputs if not isinstance(x, ndarray)]
        operator = method == '__call__' and not kwargs and len(inputs) == 2
        if not operator or not all(isinstance(x, np.generic) for x in others):
            raise TypeError(f'numpy.{ufunc.__name__} of a device array')
        return _wrap(ufunc(*map(_inside, inputs)))

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f'numpy.{func.__name__} of a device array')

    # what it is

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: _Flags(self._a.flags))
    device = property(lambda self: Device(self._device))
    T = property(lambda self: _wrap(_inside(self).T))

    @property
    def data(self):
        return types.SimpleNamespace(ptr=_inside(self).ctypes.data)

    @property
    def base(self):
        return None if self._a.base is None else _wrap(self._a.base)

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # the way to the host

    def get(self, stream=None, order='C', out=None, blocking=True):
        _need_no_capture('get')
        traffic.to_host.append(self.nbytes)
        return self._a.copy()

    def item(self):
        traffic.asked.append(self.nbytes)
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def __bool__(self):
        if self.size != 1:
            raise ValueError('The truth value of an array is ambiguous')
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __repr__(self):
        return repr(self._a)

    def __format__(self, spec):
        return format(self.get().item() if self.ndim == 0 else self.get(), spec)

    # copies and views

    def copy(self, order='C'):
        return _wrap(_inside(self).copy(order))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def astype(self, dtype, order='K', casting=None, subok=None, copy=True):
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        # what CUDA makes of these is not what a CPU does
        a = _inside(self)
        if a.dtype.kind == 'f' and np.dtype(dtype).kind in 'iu':
            inside = np.isfinite(a) & (np.abs(a) < 2.0**62)
            if not inside.all():
                raise ValueError('a float without an integer: CUDA leaves it undefined')
        return _wrap(a.astype(dtype, order))

    def reshape(self, *shape, order='C', copy=None):
        return _wrap(_inside(self).reshape(*shape, order=order))

    def transpose(self, *axes):
        return _wrap(_inside(self).transpose(*axes))

    def ravel(self, order='C'):
        return _wrap(_inside(self).ravel(order))

    def fill(self, value):
        _inside(self).fill(_scalar(value))

    # reductions

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return _reduced(np.sum, self, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return _reduced(np.mean, self, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis=None, dtype=None, out=None, keepdims=False):
        return _reduced(np.prod, self, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def max(self, axis=None, out=None, keepdims=False):
        return _reduced(np.max, self, out, axis=axis, keepdims=keepdims)

    def min(self, axis=None, out=None, keepdims=False):
        return _reduced(np.min, self, out, axis=axis, keepdims=keepdims)

    def all(self, axis=None, out=None, keepdims=False):
        return _reduced(np.all, self, out, axis=axis, keepdims=keepdims)

    def any(self, axis=None, out=None, keepdims=False):
        return _reduced(np.any, self, out, axis=axis, keepdims=keepdims)

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False):
        return _reduced(np.argmax, self, out, axis=axis, keepdims=keepdims)

    def argmin(self, axis=None, out=None, dtype=None, keepdims=False):
        return _reduced(np.argmin, self, out, axis=axis, keepdims=keepdims)

    def cumsum(self, axis=None, dtype=None, out=None):
        return _reduced(np.cumsum, self, out, axis=axis, dtype=dtype)

    # indices

    def __getitem__(self, slices):
        return _wrap(_inside(self)[_index(slices)])

    def __setitem__(self, slices, value):
        a, index, value = _inside(self), _index(slices), _inside(value, 'value')
        if np.ndim(value):
            _need_once(a, index)
        a[index] = value


def _reduced(function, a, out, **kwargs):
    result = function(_inside(a), **kwargs)
    if out is None:
        return _wrap(result)
    _inside(out)[...] = result
    return out


def _scalar(x):
    if not isinstance(x, SCALARS):
        raise TypeError(f'Unsupported type {type(x)}; expected a scalar')
    return x


def _index(slices):
    """The index in NumPy's arrays; host arrays and lists are refused."""
    parts = slices if isinstance(slices, tuple) else (slices,)
    masks = sum(isinstance(s, ndarray) and s.dtype == bool for s in parts)
    if masks > 1:
        raise IndexError('CuPy takes no more than one boolean array')
    found = []
    for s in parts:
        if isinstance(s, ndarray):
            if masks:  # CuPy counts what is chosen: a wait for the device
                _need_no_capture('a mask as an index')
                traffic.asked.append(8)
                traffic.to_host.append(8)
            s = _inside(s)
        elif isinstance(s, slice):
            for end in (s.start, s.stop, s.step):
                if end is not None and not isinstance(end, (int, np.integer)):
                    raise TypeError(f'a slice with {type(end)}')
        elif s is not None and s is not Ellipsis:
            if not isinstance(s, (int, np.integer)) or isinstance(s, bool):
                raise IndexError(f'Unsupported type {type(s)} as index')
        found.append(s)
    return tuple(found)


def _need_once(a, index):
    """Refuse an index that names an element twice: which value stays is undefined."""
    arrays = [s for s in index if isinstance(s, np.ndarray) and s.dtype != bool]
    if arrays:
        chosen = np.arange(a.size).reshape(a.shape)[index]
        if len(np.unique(chosen)) != chosen.size:
            raise IndexError('an element is assigned to twice: use scatter_add')


def _unary(function):
    return lambda self: _wrap(function(_inside(self)))


def _binary(function, swapped=False):
    def operate(self, other):
        if not isinstance(other, (ndarray, *SCALARS)):
            if isinstance(other, np.ndarray) or not hasattr(other, '__array_ufunc__'):
                raise TypeError(f'Unsupported type {type(other)}')
            return NotImplemented
        pair = (other, self) if swapped else (self, other)
        return _wrap(function(*map(_inside, pair)))

    return operate


def _in_place(function):
    def operate(self, other):
        function(_inside(self), _inside(other), out=_inside(self))
        return self

    return operate


def _power(a, b, out=None):
    # as of one's own arrays: before NumPy 2.1, numpy.power rounds differently from **
    result = a**b
    if out is None:
        return result
    np.copyto(out, result, 'same_kind')
    return out


_OPERATORS = {
    'add': np.add, 'sub': np.subtract, 'mul': np.multiply, 'truediv': np.true_divide,
    'floordiv': np.floor_divide, 'mod': np.remainder, 'pow': _power,
    'and': np.bitwise_and, 'or': np.bitwise_or, 'xor': np.bitwise_xor,
    'lshift': np.left_shift, 'rshift': np.right_shift,
}  # fmt: skip
for _name, _function in _OPERATORS.items():
    setattr(ndarray, f'__{_name}__', _binary(_function))
    setattr(ndarray, f'__r{_name}__', _binary(_function, swapped=True))
    setattr(ndarray, f'__i{_name}__', _in_place(_function))
for _name, _long in {
    'lt': 'less', 'le': 'less_equal', 'gt': 'greater', 'ge': 'greater_equal',
    'eq': 'equal', 'ne': 'not_equal',
}.items():  # fmt: skip
    setattr(ndarray, f'__{_name}__', _binary(getattr(np, _long)))


def _product(a, b, out=None):
    _need_recorded_products()
    return np.matmul(a, b, out=out)


ndarray.__matmul__ = _binary(_product)
for _name, _function in {
    'neg': np.negative, 'abs': np.abs, 'invert': np.invert
}.items():
    setattr(ndarray, f'__{_name}__', _unary(_function))


class ufunc:
    """Of CuPy: `out`, `dtype` and `casting`, and no `where`."""

    def __init__(self, function):
        self._function, self.__name__ = function, function.__name__

    def __call__(self, *args, out=None, dtype=None, casting='same_kind'):
        if len(args) > self._function.nin:
            raise TypeError('give the output as out=')
        kwargs = {'casting': casting} | ({} if dtype is None else {'dtype': dtype})
        arrays = [_inside(a) for a in args]
        if out is None:
            return _wrap(self._function(*arrays, **kwargs))
        self._function(*arrays, out=_inside(out, 'out'), **kwargs)
        return out

    def at(self, a, indices, b=NOT_THERE):
        if self._function is not np.add:
            raise NotImplementedError(self.__name__)
        if a.dtype.name not in ('int32', 'float16', 'float32', 'float64'):
            raise TypeError(f'CUDA adds no {a.dtype} atomically')
        np.add.at(_inside(a), _index(indices), _inside(b))


UFUNCS = (
    'abs add subtract multiply divide power maximum minimum negative sign square sqrt '
    'exp log log1p sin cos floor rint isfinite isnan'
)


def _uninitialised(shape, dtype, order):
    a = np.empty(shape, dtype, order)
    if a.dtype.kind == 'f':
        a.fill(math.nan)  # whoever reads what nobody wrote will see it
    return _wrap(a)


def empty(shape, dtype=float, order='C'):
    return _uninitialised(shape, dtype, order)


def zeros(shape, dtype=float, order='C'):
    return _wrap(np.zeros(shape, dtype, order))


def full(shape, fill_value, dtype=None, order='C'):
    return _wrap(np.full(shape, _scalar(fill_value), dtype, order))


def empty_like(prototype, dtype=None, order='K', subok=None, shape=None):
    a = _wrap(np.empty_like(_inside(prototype), dtype, order, shape=shape))
    if a.dtype.kind == 'f':
        a.fill(math.nan)
    return a


def zeros_like(a, dtype=None, order='K', subok=None, shape=None):
    return _wrap(np.zeros_like(_inside(a), dtype, order, shape=shape))


def full_like(a, fill_value, dtype=None, order='K', subok=None, shape=None):
    value = _scalar(fill_value)
    return _wrap(np.full_like(_inside(a), value, dtype, order, shape=shape))


def arange(start, stop=None, step=1, dtype=None):
    ends = (start,) if stop is None else (start, stop, step)
    return _wrap(np.arange(*map(_scalar, ends), dtype=dtype))


def array(
    obj, dtype=None, copy=True, order='K', subok=False, ndmin=0, *, blocking=False
):
    if isinstance(obj, ndarray):
        same = dtype is None or np.dtype(dtype) == obj.dtype
        if same and not copy and obj._device == machine.current:
            return obj
        return _wrap(obj._a.astype(dtype or obj.dtype))  # from whatever device
    if isinstance(obj, (list, tuple)):
        _need_numbers(obj)
    _need_no_capture('a copy from the host')
    a = _wrap(np.array(obj, dtype, order=order, ndmin=ndmin))
    traffic.to_device.append(a.nbytes)
    return a


def _need_numbers(things):
    for x in things:
        if isinstance(x, (list, tuple)):
            _need_numbers(x)
        elif not isinstance(x, SCALARS):
            raise TypeError(f'Unsupported type {type(x)} in a list: use stack')


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, bool(copy), order or 'K')


def where(condition, x=None, y=None):
    return _wrap(np.where(*map(_inside, (condition, x, y))))


def clip(a, a_min, a_max, out=None):
    return _reduced(np.clip, a, out, a_min=_inside(a_min), a_max=_inside(a_max))


def matmul(*args, axes=None, axis=None, keepdims=False, casting='same_kind',
           dtype=None, signature=None, order='K', out=None):  # fmt: skip
    a, b = map(_inside, args)
    if out is None:
        return _wrap(_product(a, b))
    _product(a, b, out=_inside(out))
    return out


def tensordot(a, b, axes=2):
    _need_recorded_products()
    return _wrap(np.tensordot(_inside(a), _inside(b), axes))


def nan_to_num(x, copy=True, nan=0.0, posinf=None, neginf=None):
    limits = {'nan': nan, 'posinf': posinf, 'neginf': neginf}
    return _wrap(np.nan_to_num(_inside(x), copy=copy, **limits))


def _need_few(tup):
    """Of more arrays CuPy copies the addresses from the host."""
    if len(tup) > 8:
        _need_no_capture('a copy from the host')


def concatenate(tup, axis=0, out=None, *, dtype=None, casting='same_kind'):
    _need_few(tup)
    return _wrap(np.concatenate([_inside(a) for a in tup], axis, dtype=dtype))


def stack(tup, axis=0, out=None, *, dtype=None, casting='same_kind'):
    _need_few(tup)
    return _wrap(np.stack([_inside(a) for a in tup], axis, dtype=dtype))


def pad(array, pad_width, mode='constant', **kwargs):
    return _wrap(np.pad(_inside(array), pad_width, mode, **kwargs))


def meshgrid(*xi, **kwargs):
    return [_wrap(a) for a in np.meshgrid(*map(_inside, xi), **kwargs)]


def argsort(a, axis=-1, kind=None):
    if kind not in (None, 'stable'):
        raise ValueError(f'Unsupported kind {kind!r}')
    _need_no_capture('argsort')  # Thrust waits for its stream
    return _wrap(np.argsort(_inside(a), axis, kind='stable'))


def copyto(dst, src, casting='same_kind', where=None):
    mask = True if where is None else _inside(where)
    np.copyto(_inside(dst), _inside(src), casting, where=mask)


def ascontiguousarray(a, dtype=None):
    return _wrap(np.ascontiguousarray(_inside(a), dtype))


def take_along_axis(a, indices, axis):
    return _wrap(np.take_along_axis(_inside(a), _inside(indices), axis))


def broadcast_to(array, shape):
    return _wrap(np.broadcast_to(_inside(array), shape))


FUNCTIONS = (
    empty, zeros, full, empty_like, zeros_like, full_like, arange, array, asarray,
    where, clip, matmul, tensordot, nan_to_num, concatenate, stack, pad, meshgrid,
    argsort, take_along_axis, ascontiguousarray, copyto, broadcast_to,
)  # fmt: skip
CONSTANTS = 'inf nan pi newaxis'
TYPES = 'bool_ uint8 int32 int64 intp float16 float32 float64'


# not sliding_window_view, whose sizes CuPy's sends to the device and reads back
def as_strided(x, shape=None, strides=None):
    return _wrap(np.lib.stride_tricks.as_strided(_inside(x), shape, strides))


class MemoryPool:
    def __init__(self):
        self.freed = 0

    def malloc(self, size):
        raise NotImplementedError  # of whom arrays are is noted, no memory

    def free_all_blocks(self):
        self.freed += 1

    def total_bytes(self):
        return 1 << 20


_default_pool = MemoryPool()


@contextlib.contextmanager
def using_allocator(allocator=None):
    machine.allocators.append(allocator)
    try:
        yield
    finally:
        machine.allocators.pop()


class Event:
    def record(self, stream=None):
        pass

    def synchronize(self):
        _need_no_capture('synchronize')


class Graph:
    """Work that was recorded. The double's has run already, and only counts."""

    def launch(self, stream=None):
        machine.launched += 1


class Stream:
    """All of the double's work is done at once, whatever the stream."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr, self.waited = id(self), []
        self.device_id = -1 if null else machine.current

    def __enter__(self):
        if self.device_id not in (-1, machine.current):
            raise RuntimeError(
                f'The device that the stream is created on ({self.device_id}) does not '
                f'match with the current device ({machine.current})'
            )
        machine.streams.append(self)
        return self

    def __exit__(self, *error):
        machine.streams.pop()

    def begin_capture(self, mode=None):
        if machine.streams[-1] is not self:
            raise CUDARuntimeError('captures a stream that is not the current one')
        machine.capturing = True

    def end_capture(self):
        machine.capturing = False
        return Graph()

    def is_capturing(self):
        return machine.capturing

    def record(self, event=None):
        return event or Event()

    def wait_event(self, event):
        self.waited.append(event)

    def synchronize(self):
        _need_no_capture('synchronize')


machine.reset()


def get_current_stream():
    return machine.streams[-1]


def get_default_memory_pool():
    return _default_pool


def module():
    """Return a module to stand as `cupy`; what it lacks raises AttributeError."""
    cupy = types.ModuleType('cupy', __doc__)
    cupy.ndarray = ndarray
    for name in (CONSTANTS + ' ' + TYPES).split():
        setattr(cupy, name, getattr(np, name))
    for name in UFUNCS.split():
        setattr(cupy, name, ufunc(getattr(np, name)))
    for function in FUNCTIONS:
        setattr(cupy, function.__name__, function)
    tricks = types.SimpleNamespace(as_strided=as_strided)
    cupy.lib = types.SimpleNamespace(stride_tricks=tricks)
    cupy.get_default_memory_pool = get_default_memory_pool
    runtime = types.SimpleNamespace(
        getDeviceCount=_get_device_count,
        getDeviceProperties=_get_device_properties,
        runtimeGetVersion=lambda: 12090,
        CUDARuntimeError=CUDARuntimeError,
    )
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        runtime=runtime,
        get_current_stream=get_current_stream,
        Stream=Stream,
        Event=Event,
        Graph=Graph,
        MemoryPool=MemoryPool,
        using_allocator=using_allocator,
    )
    return cupy


@contextlib.contextmanager
def fresh():
    """Begin with no traffic and the usual GPUs; leave so."""
    traffic.clear()
    machine.reset()
    try:
        yield traffic
    finally:
        machine.reset()
