"""Files cut short and with flipped bits: an InputError or a result, nothing else."""

import json

import numpy as np
import pytest

from ddetr_np.errors import InputError
from ddetr_np.weights import read_tensors, write_tensors


@pytest.fixture(params=['zip', 'legacy', 'safetensors', 'npz', 'written'])
def sound(request, Builder, Raw, tmp_path):
    """A small sound file of each kind, as bytes, and the path to put variants at."""
    kind = request.param
    arrays = {'a': np.arange(6, dtype='float32').reshape(2, 3), 'b': np.ones(2)}
    if kind in ('zip', 'legacy'):
        builder = Builder(kind == 'legacy')
        tensors = {name: builder.tensor(name, array) for name, array in arrays.items()}
        args = Raw(b'cargparse\nNamespace\n)\x81' + builder.dump({'nheads': 8}) + b'b')
        root = {'model': tensors, 'epoch': 3, 'lr': [1e-4, None], 'args': args}
        path = builder.write(tmp_path / 'a.pth', root)
    else:
        suffix = {'written': 'pth'}.get(kind, kind)
        path = tmp_path / f'a.{suffix}'
        write_tensors(path, arrays, {'config': {'C': 16}})
    read_tensors(path)
    return path.read_bytes(), path


def attempt(path, data):
    path.write_bytes(data)
    try:
        tensors, _ = read_tensors(path)
    except InputError as error:
        if str(path) not in str(error):
            raise AssertionError('a message without the file') from error
        return False
    assert sum(array.nbytes for array in tensors.values()) < 1 << 28
    return True


def test_cut_short(sound):
    data, path = sound
    for end in range(0, len(data), max(1, len(data) // 200)):
        assert not attempt(path, data[:end])


def test_flipped_bits(sound, rng):
    data, path = sound
    read = 0
    for _ in range(500):
        torn = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            torn[rng.integers(len(torn))] ^= 1 << rng.integers(8)
        read += attempt(path, torn)
    assert read < 500  # some damage was seen


def test_pieces_moved(sound, rng):
    data, path = sound
    for _ in range(200):
        start, end, to = sorted(rng.integers(len(data), size=3))
        attempt(path, data[:start] + data[end:to] + data[start:end] + data[to:])


def test_safetensors_headers(tmp_path):
    path = tmp_path / 'a.safetensors'
    tensor = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}
    for change in (
        {'shape': [1 << 40]},
        {'shape': [-1]},
        {'data_offsets': [0, 1 << 40]},
        {'data_offsets': [4, 0]},
        {'dtype': 'F99'},
        {'shape': 'x'},
    ):
        text = json.dumps({'a': tensor | change}).encode()
        assert not attempt(path, len(text).to_bytes(8, 'little') + text + bytes(4))
    assert not attempt(path, (1 << 62).to_bytes(8, 'little') + b'{}')
    assert not attempt(path, (2).to_bytes(8, 'little') + b'{}')
