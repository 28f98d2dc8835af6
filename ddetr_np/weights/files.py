"""What tensors a weights file or folder holds, whatever its format."""

import json
import math
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import safetensors

from ..errors import InputError
from .makers import NumpyArray, Tensor
from .pickles import Namespace
from .torch_file import DAMAGE, read_torch_file

TORCH_SUFFIXES = ('.pth', '.pt', '.bin')
SUFFIXES = ('.safetensors', '.npz', *TORCH_SUFFIXES)
FOLDER_FILES = (  # of a Hugging Face folder, the first that is there
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
OUTER_NAMES = ('model', 'state_dict', 'model_state_dict')  # of a training checkpoint
WRAPPERS = ('module.', '_orig_mod.')  # DataParallel, torch.compile
NPZ_METADATA = '__metadata__'
TRAINING = 'training/'  # what a checkpoint of our own training holds beside the weights
SAFETENSORS_KINDS = set(
    'F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL C64'.split()
)


def read_tensors(path):
    """Read every tensor of a weights file, or of a folder as the hub holds it.

    Parameters
    ----------
    path : str or Path
        .safetensors, .npz, or a file of torch.save (.pth, .pt, .bin), told apart by
        their content; or a folder with config.json and weights.

    Returns
    -------
    tensors : dict of str → array
        Names and layouts as in the file, less the prefixes that PyTorch's wrappers add.
        bfloat16 is widened to float32. Arrays may share memory and be read-only.
    metadata : dict
        What the file says of the model: 'config' (the fields of `Config`, if this
        package wrote it), 'transformers' (config.json), 'args' (of the authors'
        training script). Any may be absent.

    Raises
    ------
    InputError
        The file is absent, damaged, no weights file, or names code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
    reader = _reader(path)
    tensors, metadata = reader(path)
    if not tensors:
        raise InputError(f'{path} holds no tensors; give a file of weights')
    beside = path.parent / 'config.json'
    if path.name in FOLDER_FILES and beside.is_file():
        metadata.setdefault('transformers', _read_json(beside))
    return _unwrap(tensors), metadata


def _unwrap(tensors):
    for prefix in WRAPPERS * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
    return tensors


def _reader(path):
    try:
        with open(path, 'rb') as file:
            head = file.read(512)
    except FileNotFoundError:
        raise InputError(f'{path} does not exist; check the path') from None
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from error
    if not head:
        raise InputError(f'{path} is empty; download or copy it again')
    if head[8:9] == b'{':  # behind the header's length
        return _read_safetensors
    if head.startswith(b'version https://git-lfs'):
        raise InputError(
            f'{path} is only a pointer of Git LFS, not the weights; fetch them with '
            '"git lfs pull" in that folder'
        )
    if head.lstrip().lower().startswith((b'<!doctype', b'<html')):
        raise InputError(f'{path} is a web page, not weights; download the file itself')
    if head.startswith(b'PK'):
        return _read_npz if _is_npz(path) else _read_pth
    if path.suffix.lower() == '.safetensors':
        return _read_safetensors
    if head.startswith(b'\x80') or path.suffix.lower() in TORCH_SUFFIXES:
        return _read_pth
    raise InputError(
        f'{path} is no weights file: expected .safetensors, .npz or a file of '
        f'torch.save (.pth, .pt, .bin), found bytes {head[:8]!r}'
    )


def _is_npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE:  # the reader will say what is wrong
        return path.suffix.lower() == '.npz'
    if not names:
        return path.suffix.lower() == '.npz'
    return all(name.endswith('.npy') for name in names)


def _damaged(path, expected, error):
    detail = str(error) or type(error).__name__
    return InputError(
        f'{path} is damaged or cut short: expected {expected}, found {detail}; '
        'download or copy it again'
    )


def _json(text):
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _read_json(path):
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError('something other than an object')
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, 'a JSON object', error) from error
    return value


# PyTorch


def _read_pth(path):
    return read_torch_file(path, lambda root: _pick(path, root))


def _pick(path, root):
    """Find the state dict, and what is said of the model beside it."""
    outer = root if isinstance(root, dict) else {}
    inner = outer
    for name in OUTER_NAMES:
        if isinstance(outer.get(name), dict):
            inner = outer[name]
            break
    tensors = {
        name: value
        for name, value in inner.items()
        if isinstance(name, str) and isinstance(value, (Tensor, NumpyArray))
    }
    if not tensors:
        found = ', '.join(str(key)[:40] for key in list(outer)[:10]) or 'no dict'
        raise InputError(
            f'{path} holds no state dict: expected tensors by name, bare or under '
            f'{" or ".join(OUTER_NAMES)}, found {found}; save model.state_dict()'
        )
    metadata = {}
    if isinstance(outer.get('config'), dict):
        metadata['config'] = _plain(outer['config'])
    if isinstance(outer.get('args'), Namespace):
        metadata['args'] = _plain(outer['args'])
    return tensors, metadata


def _plain(fields):
    # only what a Config could hold: a pickle may nest lists to any depth
    def simple(value):
        return value is None or isinstance(value, (str, int, float))

    def kept(value):
        flat = isinstance(value, (list, tuple)) and all(map(simple, value))
        return flat or simple(value)

    return {n: v for n, v in fields.items() if isinstance(n, str) and kept(v)}


# safetensors


def _read_safetensors(path):
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            metadata = file.metadata() or {}
            names = [n for n in file.keys() if not n.startswith(TRAINING)]
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            widened = {name for name, kind in kinds.items() if kind == 'BF16'}
            strange = set(kinds.values()) - SAFETENSORS_KINDS
            if strange:
                raise InputError(
                    f'{path} holds tensors of type {", ".join(sorted(strange))}; '
                    'convert them to float32, float16 or bfloat16'
                )
            tensors = {n: file.get_tensor(n) for n in kinds if n not in widened}
        tensors |= _read_bfloat16(path, widened)
        metadata = {'config': _json(metadata['config'])} if 'config' in metadata else {}
        return {name: tensors[name] for name in kinds}, metadata  # in the file's order
    except InputError:
        raise
    except (safetensors.SafetensorError, *DAMAGE) as error:
        raise _damaged(path, 'safetensors', error) from error


def _read_bfloat16(path, names):
    # NumPy has no bfloat16; safe_open has checked the header and the offsets
    if not names:
        return {}
    tensors = {}
    with open(path, 'rb') as file:
        length = struct.unpack('<Q', file.read(8))[0]
        header = json.loads(file.read(length))
        for name in names:
            start, end = header[name]['data_offsets']
            file.seek(8 + length + start)
            upper = np.frombuffer(file.read(end - start), '<u2').astype(np.uint32)
            widened = (upper << 16).view(np.float32)
            tensors[name] = widened.reshape(header[name]['shape'])
    return tensors


# NumPy


def _read_npz(path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of odd headers; they are read or refused
            _check_npz(path)
            with np.load(path, allow_pickle=False) as file:
                tensors = {name: file[name] for name in file.files}
        metadata = tensors.pop(NPZ_METADATA, None)
        return tensors, {} if metadata is None else _json(str(metadata))
    except (SyntaxError, *DAMAGE) as error:
        raise _damaged(path, 'arrays of numpy.savez', error) from error


def _check_npz(path):
    """Refuse arrays that claim more bytes than they have; NumPy would reserve them."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > 1100 * size:  # deflate shrinks at most 1032-fold
                raise ValueError(f'{info.filename} larger than the file can hold')
            with archive.open(info) as file:
                read = np.lib.format.read_array_header_1_0
                if np.lib.format.read_magic(file) != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(f'{info.filename} larger than its place in the file')


# a folder of the hub


def _read_folder(folder):
    if not (folder / 'config.json').is_file():
        files = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
        way_out = f'; or name a weights file in it: {", ".join(files)}' if files else ''
        raise InputError(
            f'{folder} has no config.json: expected a folder as the Hugging Face hub '
            f'holds it, with config.json and {FOLDER_FILES[0]} or {FOLDER_FILES[2]}'
            f'{way_out}'
        )
    metadata = {'transformers': _read_json(folder / 'config.json')}
    name = next((n for n in FOLDER_FILES if (folder / n).is_file()), None)
    if name is None:
        raise InputError(
            f'{folder} has config.json but no weights: expected one of '
            f'{", ".join(FOLDER_FILES)}; download one of them into it'
        )
    if not name.endswith('.index.json'):
        return read_tensors(folder / name)[0], metadata
    shards = _read_json(folder / name).get('weight_map')
    if not isinstance(shards, dict) or not shards:
        raise InputError(f'{folder / name} has no weight_map; download it again')
    tensors = {}
    for shard in sorted(set(map(str, shards.values()))):
        if Path(shard).name != shard or '\\' in shard:
            raise InputError(
                f'{folder / name} names {shard!r}, which is outside of its folder; '
                'give a folder that holds all of its files'
            )
        tensors |= read_tensors(folder / shard)[0]
    return tensors, metadata
