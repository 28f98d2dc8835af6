"""A checkpoint written in PyTorch's zip form, for `torch.load(weights_only=True)`."""

import struct
import zipfile

import numpy as np

from .makers import STORAGES

KINDS = {dtype: kind for kind, dtype in STORAGES.items() if kind != 'UntypedStorage'}


def write_torch(file, root, name='checkpoint'):
    """Write a tree of dicts, lists, tuples, plain values and arrays.

    Parameters
    ----------
    file : binary file
        Open for writing; it stays open.
    root : dict
        Arrays become CPU tensors; one array met twice becomes tensors that share their
        storage, as aliases in a state dict do.
    name : str
        Folder inside the archive.

    Raises
    ------
    TypeError
        A value has no place in a checkpoint.
    """
    pickler = _Pickler()
    pickle = b'\x80\x02' + pickler.dump(root) + b'.'
    # no compression and fixed dates: the same weights give the same bytes
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:

        def record(key, data):
            archive.writestr(zipfile.ZipInfo(f'{name}/{key}'), data)

        record('data.pkl', pickle)
        record('byteorder', b'little')
        for key, array in pickler.storages():
            little = array.astype(array.dtype.newbyteorder('<'), copy=False)
            record(f'data/{key}', little.tobytes())
        record('version', b'3\n')


class _Pickler:
    """Protocol 2, by hand: the library's pickler would have to import torch."""

    def __init__(self):
        self.keys = {}  # id of an array → (key of its storage, array)

    def storages(self):
        return self.keys.values()

    def dump(self, value):
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, np.generic):
            value = value.item()
        if value is None:
            return b'N'
        if isinstance(value, bool):
            return b'\x88' if value else b'\x89'
        if isinstance(value, int):
            if -(1 << 31) <= value < 1 << 31:
                return b'J' + struct.pack('<i', value)
            data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
            return b'\x8a' + struct.pack('<B', len(data)) + data
        if isinstance(value, float):
            return b'G' + struct.pack('>d', value)
        if isinstance(value, str):
            data = value.encode()
            return b'X' + struct.pack('<I', len(data)) + data
        if isinstance(value, dict):
            items = b''.join(self.dump(k) + self.dump(v) for k, v in value.items())
            return b'}(' + items + b'u'
        if isinstance(value, list):
            return b'](' + b''.join(map(self.dump, value)) + b'e'
        if isinstance(value, tuple):
            return b'(' + b''.join(map(self.dump, value)) + b't'
        raise TypeError(f'a {type(value).__name__} has no place in a checkpoint')

    def tensor(self, array):
        if array.dtype.name not in KINDS:
            raise TypeError(f'PyTorch has no tensors of {array.dtype}')
        key, _ = self.keys.setdefault(id(array), (str(len(self.keys)), array))
        kind = f'ctorch\n{KINDS[array.dtype.name]}\n'.encode()
        pid = b'(' + self.dump('storage') + kind
        pid += self.dump(key) + self.dump('cpu') + self.dump(array.size) + b'tQ'
        steps = np.cumprod((1, *array.shape[:0:-1]))[::-1] if array.ndim else ()
        shape, strides = array.shape, tuple(int(s) for s in steps)
        return (
            b'ctorch._utils\n_rebuild_tensor_v2\n('
            + pid
            + b''.join(map(self.dump, (0, shape, strides, False)))
            + b'ccollections\nOrderedDict\n)RtR'  # no backward hooks
        )
