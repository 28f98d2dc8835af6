"""Files of torch.save built by hand, so that the plain tests need no PyTorch."""

import struct
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    'float32': 'FloatStorage',
    'float64': 'DoubleStorage',
    'float16': 'HalfStorage',
    'int64': 'LongStorage',
    'int32': 'IntStorage',
    'uint8': 'ByteStorage',
    'bool': 'BoolStorage',
}


class View(NamedTuple):
    """A tensor: a strided view, in elements, of a storage."""

    key: str
    shape: tuple
    strides: tuple
    offset: int = 0
    window: tuple | None = None  # legacy: (key of the view, first, length)


class Raw(bytes):
    """Opcodes put into the pickle as they are."""


class Builder:
    """Storages, and the pickle that refers to them, in either serialisation."""

    def __init__(self, legacy):
        self.legacy = legacy
        self.storages = {}  # key → (kind, array)

    def storage(self, key, array, kind=None):
        self.storages[key] = (kind or KINDS[array.dtype.name], array)

    def tensor(self, key, array):
        self.storage(key, array.ravel())
        steps = [s // array.itemsize for s in array.strides]
        return View(key, array.shape, tuple(steps))

    def pickle(self, value):
        return b'\x80\x02' + self.dump(value) + b'.'

    def dump(self, value):
        if isinstance(value, Raw):
            return bytes(value)
        if isinstance(value, View):
            kind, array = self.storages[value.key]
            window = (value.window,) if self.legacy else ()
            pid = ('storage', Raw(f'ctorch\n{kind}\n'.encode()), value.key, 'cpu')
            return (
                b'ctorch._utils\n_rebuild_tensor_v2\n('
                + (self.dump((*pid, array.size, *window)) + b'Q')
                + self.dump(value.offset)
                + self.dump(value.shape)
                + self.dump(value.strides)
                + b'\x89ccollections\nOrderedDict\n)RtR'
            )
        if value is None or isinstance(value, bool):
            return {None: b'N', True: b'\x88', False: b'\x89'}[value]
        if isinstance(value, int):
            data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
            return b'\x8a' + bytes([len(data)]) + data
        if isinstance(value, float):
            return b'G' + struct.pack('>d', value)
        if isinstance(value, str):
            return b'X' + struct.pack('<I', len(value.encode())) + value.encode()
        if isinstance(value, dict):
            items = b''.join(self.dump(k) + self.dump(v) for k, v in value.items())
            return b'}(' + items + b'u'
        if isinstance(value, (tuple, list)):
            start, end = (b'(', b't') if isinstance(value, tuple) else (b'](', b'e')
            return start + b''.join(map(self.dump, value)) + end
        raise TypeError(value)

    def write(self, path, root, order='little', mark=True, folder='any name'):
        code = {'little': '<', 'big': '>'}[order]
        raw = {
            key: array.astype(array.dtype.newbyteorder(code)).tobytes()
            for key, (_, array) in self.storages.items()
        }
        if self.legacy:
            system = {
                'protocol_version': 1001,
                'little_endian': order == 'little',
                'type_sizes': {'short': 2, 'int': 4, 'long': 4},
            }
            with open(path, 'wb') as file:
                for value in MAGIC, 1001, system, root, sorted(raw):
                    file.write(self.pickle(value))
                for key in sorted(raw):
                    count = self.storages[key][1].size
                    file.write(struct.pack(code + 'q', count) + raw[key])
            return path
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
            archive.writestr(f'{folder}/data.pkl', self.pickle(root))
            if mark:
                archive.writestr(f'{folder}/byteorder', order)
            for key, data in raw.items():
                archive.writestr(f'{folder}/data/{key}', data)
            archive.writestr(f'{folder}/version', '3\n')
        return path


@pytest.fixture(params=['zip', 'legacy'])
def builder(request):
    """A builder of each serialisation."""
    return Builder(request.param == 'legacy')


@pytest.fixture(name='Builder')
def _builder_class():
    return Builder


@pytest.fixture(name='View')
def _view_class():
    return View


@pytest.fixture(name='Raw')
def _raw_class():
    return Raw


@pytest.fixture
def rng():
    return np.random.default_rng(7)
