"""PyTorch's files (.pth, .pt, .bin) read without PyTorch, in both serialisations.

zip form (since 1.6)
    A folder of any name in an uncompressed zip: `data.pkl`, the pickled object, whose
    tensors refer to storages by key; `data/KEY`, their raw bytes; `byteorder`.
legacy form
    Pickles one after the other — magic number, protocol, system, object, list of
    storage keys — and then each storage: its number of elements (int64) and raw bytes.

Only the tensors that the caller picks are read; an optimiser's stay on the disk.
"""

import io
import math
import mmap
import struct
import warnings
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .makers import MAKERS, NumpyArray, Storage
from .pickles import ForeignError, Global, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
# what a damaged file raises in the standard library's readers and in ours
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # zipfile: encrypted or unknown method; also RecursionError
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
MOST_REPEATED = 1 << 24  # elements of an expanded tensor beyond its storage's


def read_torch_file(path, pick):
    """Read the tensors that `pick` chooses from what a PyTorch file holds.

    Parameters
    ----------
    path : Path
        Of either serialisation, which its first bytes tell.
    pick : callable
        Takes the pickled object — dicts, lists and plain values, `Tensor` for each
        tensor — and returns ({name: Tensor or NumpyArray}, metadata).

    Returns
    -------
    tensors : dict of str → array
        In native byte order, C-contiguous; bfloat16 widened to float32. They may share
        memory and be read-only.
    metadata : dict
        As `pick` returned it.

    Raises
    ------
    InputError
        The file is damaged, of another kind, or names code.
    """
    try:
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # of escapes in text
            head = file.read(4)
            file.seek(0)
            form = _read_zip if head == b'PK\x03\x04' else _read_legacy
            return form(path, file, pick)
    except InputError:
        raise
    except ForeignError as error:
        raise InputError(
            f'{path} asks for {error}, which no checkpoint of tensors and plain values '
            'needs: it was refused, and nothing of it ran. Ask whoever made the file '
            "for one that holds the model's state_dict() only"
        ) from None
    except DAMAGE as error:
        detail = str(error) or type(error).__name__
        raise InputError(
            f'{path} is damaged or cut short: expected a file of torch.save, found '
            f'{detail}; download or copy it again'
        ) from error


def _read_zip(path, file, pick):
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [n for n in names if n == 'data.pkl' or n.endswith('/data.pkl')]
        if not pickles:
            raise InputError(
                f'{path} is a zip archive without data.pkl: expected a file of '
                'torch.save; give the weights file itself'
            )
        prefix = min(pickles, key=len)[: -len('data.pkl')]
        if f'{prefix}constants.pkl' in names:
            raise InputError(
                f'{path} is a TorchScript program, not a checkpoint; save its '
                'state_dict() with torch.save and give that file'
            )

        def record(name):
            info = archive.getinfo(prefix + name)
            info.CRC = info.CRC or None  # PyTorch may leave checksums out, as zeros
            size = file.seek(0, io.SEEK_END)
            if info.compress_type == zipfile.ZIP_STORED:
                if max(info.compress_size, info.file_size) > size:
                    raise ValueError(f'{name} larger than the file')
            elif info.compress_type != zipfile.ZIP_DEFLATED:
                raise ValueError(f'{name} compressed in an unknown way')
            elif info.file_size > 1100 * size:  # deflate shrinks at most 1032-fold
                raise ValueError(f'{name} larger than the file can hold')
            data = archive.read(info)
            if len(data) != info.file_size:
                raise ValueError(f'{len(data)} of {info.file_size} bytes of {name}')
            return data

        order = 'little'
        if f'{prefix}byteorder' in names:
            order = record('byteorder').decode()
            if order not in ('little', 'big'):
                raise ValueError('an unknown byte order')
        root = read_pickle(io.BytesIO(record('data.pkl')), MAKERS, _storage)
        tensors, metadata = pick(root)
        return _arrays(tensors, lambda s: (record(f'data/{s.key}'), order)), metadata


class _Place(NamedTuple):
    start: int  # in bytes
    nbytes: int
    order: str


def _read_legacy(path, file, pick):
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise InputError(f'{path} is empty; download or copy it again')
    storages = {}

    def persistent(pid):
        storage = _storage(pid)
        storages.setdefault(storage.key, storage)  # the first gives the element's size
        return storage

    # a map, because its read(n) never reserves more than the file has
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            magic = read_pickle(data, {})
        except (ForeignError, *DAMAGE):
            magic = None
        if magic != MAGIC:
            raise InputError(
                f'{path} does not begin as a file of torch.save: neither a zip archive '
                "nor PyTorch's magic number; give a .pth, .safetensors or .npz file"
            )
        read_pickle(data, {})  # the protocol
        read_pickle(data, {})  # the system: says nothing that the storages do not
        root = read_pickle(data, MAKERS, persistent)
        places = {}
        for key in read_pickle(data, {}):
            at, storage = data.tell(), storages[key]
            order = _legacy_order(data.read(8), storage.count)
            nbytes = storage.count * storage.itemsize
            if at + 8 + nbytes > size:
                raise ValueError(f'{size - at - 8} of {nbytes} bytes of storage {key}')
            places[key] = _Place(at + 8, nbytes, order)
            data.seek(at + 8 + nbytes)
        tensors, metadata = pick(root)

        def read(storage):
            start, nbytes, order = places[storage.key]
            return data[start : start + nbytes], order

        return _arrays(tensors, read), metadata


def _legacy_order(count, expected):
    """Byte order of a legacy storage, read off the element count before it.

    PyTorch writes this form little-endian on every machine, whatever the file says of
    the system it comes from; big-endian counts mean another writer.
    """
    for order, code in ('little', '<q'), ('big', '>q'):
        if struct.unpack(code, count)[0] == expected:
            return order
    raise ValueError('a storage whose element count is not that of its tensors')


def _storage(pid):
    # ('storage', type, key, device, count) and in the legacy form a view or None:
    # (key of the view, first element, elements)
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != 'storage':
        raise ValueError('a reference to something other than a storage')
    kind, key, count = pid[1], pid[2], pid[4]
    view = pid[5] if len(pid) == 6 else None
    if not isinstance(kind, Global) or not kind.name.endswith('Storage'):
        raise ValueError('a storage without its type')
    if not isinstance(key, (str, int)) or type(count) is not int or count < 0:
        raise ValueError('a storage without its key or size')
    first, length = (0, count) if view is None else view[1:]
    if not 0 <= first <= first + length <= count:
        raise ValueError('a view that leaves its storage')
    return Storage(kind.name.rpartition('.')[2], key, count, first, length)


def _arrays(tensors, read):
    """Arrays of the tensors; `read(storage)` gives (bytes, byte order)."""
    found = {}  # key and type of a storage → its elements

    def elements(storage, dtype):
        if (storage.key, dtype) not in found:
            data, order = read(storage)
            whole = len(data) // dtype.itemsize * dtype.itemsize
            found[storage.key, dtype] = _decode(data[:whole], dtype, order)
        first = storage.first * storage.itemsize // dtype.itemsize
        length = storage.length * storage.itemsize // dtype.itemsize
        return found[storage.key, dtype][first : first + length]

    return {
        name: t.array if isinstance(t, NumpyArray) else _view(name, t, elements)
        for name, t in tensors.items()
    }


def _decode(data, dtype, order):
    if dtype.name == 'bool':
        return np.frombuffer(data, np.uint8) != 0
    stored = np.frombuffer(data, np.dtype(dtype.stored).newbyteorder(order))
    stored = stored.astype(dtype.stored, copy=False)  # to the native byte order
    if dtype.name == 'bfloat16':  # the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored


def _view(name, tensor, elements):
    flat = elements(tensor.storage, tensor.dtype)
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, flat.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    if last >= flat.size:
        raise ValueError(f'{name} reaches element {last} of a storage of {flat.size}')
    if count > flat.size + MOST_REPEATED:
        raise ValueError(f'{name} of {count} elements in a storage of {flat.size}')
    strides = [step * flat.itemsize if n > 1 else 0 for n, step in zip(shape, strides)]
    array = np.lib.stride_tricks.as_strided(
        flat[offset:], shape, strides, writeable=False
    )
    if count < flat.size:
        return array.copy(order='C')  # do not keep the whole storage for a part of it
    return np.ascontiguousarray(array).reshape(shape)  # 0-d stays 0-d
