"""What a checkpoint's pickle may name, and what is built of it."""

import math
import re
from typing import NamedTuple

import numpy as np

from .pickles import ForeignError, Global, Namespace, Stateful, check_key


class DType(NamedTuple):
    """A PyTorch element type.

    Parameters
    ----------
    name : str
        PyTorch's, without 'torch.'.
    stored : str
        The NumPy type that holds its bits: uint16 for bfloat16, else the same.
    """

    name: str
    stored: str

    @property
    def itemsize(self):
        return np.dtype(self.stored).itemsize


DTYPES = {
    name: DType(name, 'uint16' if name == 'bfloat16' else name)
    for name in (
        'float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 '
        'complex128 uint16 uint32 uint64'
    ).split()
}
STORAGES = {
    'DoubleStorage': 'float64',
    'FloatStorage': 'float32',
    'HalfStorage': 'float16',
    'BFloat16Storage': 'bfloat16',
    'LongStorage': 'int64',
    'IntStorage': 'int32',
    'ShortStorage': 'int16',
    'CharStorage': 'int8',
    'ByteStorage': 'uint8',
    'BoolStorage': 'bool',
    'ComplexFloatStorage': 'complex64',
    'ComplexDoubleStorage': 'complex128',
    'UntypedStorage': 'uint8',
}


class Storage(NamedTuple):
    """Where a tensor's elements lie in the file: `length` elements from `first`.

    Parameters
    ----------
    kind : str
        A key of `STORAGES`, which says the element type.
    key : str or int
        The storage's name in the file.
    count : int
        Elements of the whole storage.
    first, length : int
        The part that is meant, in elements; all of it but for a legacy file's views.
    """

    kind: str
    key: str
    count: int
    first: int
    length: int

    @property
    def dtype(self):
        return DTYPES[STORAGES[self.kind]]

    @property
    def itemsize(self):
        return self.dtype.itemsize


class Tensor(Stateful):
    """A tensor not read yet: a strided view of a storage, counted in elements.

    Parameters
    ----------
    storage : Storage
        Where its elements lie.
    offset : int
        The first element's place in the storage.
    shape, strides : tuple of int
        One number an axis, none negative, at most 32 axes.
    dtype : DType, optional
        The storage's if not given, which an untyped one does not know.

    Raises
    ------
    ValueError
        No tensor can be of these numbers, or there is no storage.
    """

    def __init__(self, storage, offset, shape, strides, dtype=None):
        numbers = (offset, *shape, *strides)
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError('a tensor of impossible shape or strides')
        if len(shape) != len(strides) or len(shape) > 32:
            raise ValueError('a tensor of impossible rank')
        if 0 not in shape and math.prod(shape) >= 1 << 62:
            raise ValueError('a tensor of impossible size')
        if not isinstance(storage, Storage):
            raise ValueError('a tensor without a storage')
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.dtype = dtype or storage.dtype

    def set_state(self, state):
        """Attributes that a script hung on the tensor mean nothing here.

        Parameters
        ----------
        state : object
            Not looked at.
        """


def _tensor_v2(storage, offset, shape, strides, grad=False, hooks=None, bits=None):
    if bits:
        raise ValueError('a tensor saved as a conjugate or negative view')
    return Tensor(storage, offset, shape, strides)


def _tensor_v3(storage, offset, shape, strides, grad, hooks, dtype, bits=None):
    if not isinstance(dtype, Global) or dtype.name not in MAKERS:
        raise ValueError('a tensor without an element type')
    name = dtype.name.removeprefix('torch.')
    if name not in DTYPES:
        raise ValueError('a tensor of an unknown element type')
    return Tensor(storage, offset, shape, strides, DTYPES[name])


def _parameter(data, *grad_hooks_state):
    return data


def _from_type(func, kind, args, state):
    # a tensor with attributes or a Parameter class: the tensor is what counts
    names = {f'torch._utils.{n}' for n in ('_rebuild_tensor_v2', '_rebuild_parameter')}
    if not isinstance(func, Global) or func.name not in names:
        raise ForeignError('a tensor of a class of its own')
    return MAKERS[func.name](*args)


class NumpyType(Stateful):
    """A NumPy dtype; its state brings the byte order.

    Parameters
    ----------
    code : str
        Kind and size, as 'f4': of numbers, bools, bytes or text.
    align, copy : bool
        As pickles give them; not used.

    Raises
    ------
    ForeignError
        The type is another, such as Python objects.
    """

    def __init__(self, code, align=False, copy=False):
        if not isinstance(code, str) or not re.fullmatch(r'[biufcSU]\d{0,4}', code):
            raise ForeignError('an array of Python objects')
        self.dtype = np.dtype(code)

    def set_state(self, state):
        if state[1] in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(state[1])


def _elements(kind, data):
    if not isinstance(kind, NumpyType):
        raise ValueError('an array without an element type')
    if isinstance(data, str):  # Python 2 wrote bytes as text
        data = data.encode('latin1')
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError('an array without its bytes')
    flat = np.frombuffer(data, kind.dtype)
    return flat.astype(kind.dtype.newbyteorder('='), copy=False)


class NumpyArray(Stateful):
    """A NumPy array inside a pickle.

    Parameters
    ----------
    *args
        As pickles give them; not used, since the state has all.
    """

    def __init__(self, *args):
        self.array = np.zeros(0)  # the state brings shape, type and bytes

    def set_state(self, state):
        _, shape, kind, fortran, data = state
        flat = _elements(kind, data)
        self.array = flat.reshape(_ints(shape), order='F' if fortran else 'C')


def _frombuffer(data, kind, shape, order='C'):
    result = NumpyArray()
    result.array = _elements(kind, data).reshape(_ints(shape), order=order)
    return result


def _ints(shape):
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError('an array of impossible shape')
    return tuple(shape)


def _scalar(kind, data):
    return _elements(kind, data).reshape(()).item()


def _encode(text, encoding):
    if encoding not in ('latin1', 'latin-1'):
        raise ValueError('bytes in an unknown encoding')
    return text.encode('latin1')


def _ordered_dict(items=()):
    pairs = items.items() if isinstance(items, dict) else items
    return {check_key(key): value for key, value in pairs}


def _default_dict(factory=None):
    return {}


def _set(items=()):
    return {check_key(item) for item in items}


def _complex(real, imaginary):
    return complex(float(real), float(imaginary))


def _bytes(data=b'', encoding=None):
    if encoding is not None:
        return _encode(data, encoding)
    if not isinstance(data, (bytes, bytearray)):  # bytes(10**12) would reserve them
        raise ValueError('bytes made of something else')
    return bytes(data)


def _reconstructor(kind, base, state):
    # protocol 0 and 1's way to make an object
    if not isinstance(kind, Global) or kind.name not in NAMESPACES:
        raise ForeignError('an object of a class of its own')
    return Namespace()


def _text(*parts):
    return ':'.join(str(p) for p in parts if isinstance(p, (str, int)))


def _path(*parts):
    return '/'.join(str(check_key(p)) for p in parts)


FACTORIES = ('object', 'dict', 'list', 'tuple', 'int', 'float', 'bool', 'str')
NAMESPACES = ('argparse.Namespace', 'types.SimpleNamespace')

# name → what builds its value; None: it may be mentioned, as the factory of a
# defaultdict or the type of a storage are, but not called
MAKERS = {
    **{f'torch.{name}': None for name in (*DTYPES, *STORAGES, 'Tensor')},
    **{f'torch.cuda.{name}': None for name in STORAGES},
    **{f'torch.{alias}': None for alias in ('half', 'float', 'double', 'long', 'int')},
    'torch.storage.UntypedStorage': None,
    'torch.nn.parameter.Parameter': None,
    'torch._utils._rebuild_tensor': _tensor_v2,
    'torch._utils._rebuild_tensor_v2': _tensor_v2,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _from_type,
    'torch.Size': lambda shape=(): tuple(shape),
    'torch.device': _text,
    'torch.serialization._get_layout': _text,
    'collections.OrderedDict': _ordered_dict,
    'collections.defaultdict': _default_dict,
    'collections.Counter': _ordered_dict,
    **{name: lambda: Namespace() for name in NAMESPACES},
    'copyreg._reconstructor': _reconstructor,
    **{f'builtins.{name}': None for name in FACTORIES},
    'builtins.set': _set,
    'builtins.frozenset': _set,
    'builtins.complex': _complex,
    'builtins.bytearray': _bytes,
    'builtins.bytes': _bytes,
    '_codecs.encode': _encode,
    'pathlib.PosixPath': _path,
    'pathlib.WindowsPath': _path,
    'pathlib.PurePosixPath': _path,
    'pathlib._local.PosixPath': _path,
    'pathlib._local.WindowsPath': _path,
    'numpy.dtype': NumpyType,
    'numpy.ndarray': None,
    **{
        f'numpy.{core}.{name}': maker
        for core in ('core', '_core')  # NumPy 1 and 2
        for name, maker in {
            'multiarray._reconstruct': NumpyArray,
            'multiarray.scalar': _scalar,
            'numeric._frombuffer': _frombuffer,
        }.items()
    },
}
