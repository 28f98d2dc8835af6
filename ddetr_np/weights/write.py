"""Writing weights files."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..errors import InputError
from ..files import replacing
from .files import NPZ_METADATA, SUFFIXES
from .torch_write import write_torch


def check_writable(path):
    """Return the Path of a weights file to write; refuse an unknown suffix or folder.

    Parameters
    ----------
    path : str or Path
        '~' stands for the home folder; the suffix counts in any case.

    Returns
    -------
    Path
        Nothing is written yet, and a file that is there stays.

    Raises
    ------
    InputError
        The path is a folder, its suffix is no format's, or its folder does not exist.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f'{path} is a folder; give the name of a file')
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f'{path} should end in one of {", ".join(SUFFIXES)}, which says the format'
        )
    if not path.parent.is_dir():
        raise InputError(f'the folder {path.parent} does not exist; make it first')
    return path


def write_tensors(path, tensors, metadata=None):
    """Write tensors to a file whose suffix says the format; all of it or nothing.

    Parameters
    ----------
    path : str or Path
        .safetensors, .npz, or .pth, .pt, .bin, which `torch.load(weights_only=True)`
        reads, with the tensors under 'model' as the authors' scripts expect.
    tensors : dict of str → array
        Published layouts. An array under several names is stored once where the format
        can (PyTorch's).
    metadata : dict, optional
        As `read_tensors` returns it; 'config' is kept.

    Raises
    ------
    InputError
        The suffix is unknown or the file cannot be written.
    """
    path = check_writable(path)
    config = (metadata or {}).get('config')
    arrays = _contiguous(tensors)
    try:
        with replacing(path) as part:
            if path.suffix.lower() == '.safetensors':
                # 'pt': the layouts are PyTorch's, and transformers asks for it
                extra = {} if config is None else {'config': json.dumps(config)}
                with open(part, 'wb') as file:
                    write_safetensors(file, arrays, {'format': 'pt', **extra})
            elif path.suffix.lower() == '.npz':
                if config is not None:
                    arrays[NPZ_METADATA] = np.array(json.dumps({'config': config}))
                np.savez(part, **arrays)
            else:
                root = {'model': arrays}
                if config is not None:
                    root['config'] = config
                with open(part, 'wb') as file:
                    write_torch(file, root)
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror}') from error
    except TypeError as error:
        raise InputError(f'{path} cannot be written: {error}; try .npz') from error


def write_safetensors(file, arrays, metadata):
    """Write safetensors, the same bytes for the same content.

    Parameters
    ----------
    file : binary file
        Open for writing; it stays open.
    arrays : dict of str → contiguous array
        Of a type that safetensors knows.
    metadata : dict of str → str
        Written sorted by key.
    """
    # not save_file: it would make a file that only its owner may read
    content = memoryview(save(arrays, metadata))
    end = 8 + int.from_bytes(content[:8], 'little')
    header = json.loads(bytes(content[8:end]))
    # the library puts the metadata in another order in each process
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # the arrays stay aligned
    file.write(len(text).to_bytes(8, 'little'))
    file.write(text)
    file.write(content[end:])


def _contiguous(tensors):
    done = {}  # id → (array, its copy): an alias stays one array

    def once(array):
        if id(array) not in done:
            done[id(array)] = array, np.asarray(array, order='C')
        return done[id(array)][1]

    return {name: once(array) for name, array in tensors.items()}
