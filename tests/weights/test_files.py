"""safetensors, .npz, folders of the hub; and writing."""

import json
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file

from ddetr_np.errors import InputError
from ddetr_np.weights import read_tensors, write_tensors

SUFFIXES = ['.safetensors', '.npz', '.pth', '.pt', '.bin']


@pytest.fixture
def tensors(rng):
    shared = rng.standard_normal(3).astype('float32')
    return {
        'a.weight': rng.standard_normal((2, 3)).astype('float32'),
        'b': rng.standard_normal((4, 2)),
        'half': rng.standard_normal((2, 2)).astype('float16'),
        'scalar': np.float32(3).reshape(()),
        'empty': np.zeros((0, 4), 'float32'),
        'steps': np.arange(3),
        'alias.0': shared,
        'alias.1': shared,
    }


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_written_tensors_come_back(tmp_path, tensors, suffix):
    path = tmp_path / f'a{suffix}'
    config = {'C': 64, 'dropout': 0.5, 'refine': True, 'names': ['cat', 'dög']}
    tensors['turned'] = np.arange(6.0).reshape(2, 3).T
    write_tensors(path, tensors, {'config': config})
    found, metadata = read_tensors(path)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert_array_equal(found[name], array, strict=True)
    assert metadata == {'config': config}
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_written_files_are_the_same_each_time(tmp_path, tensors, suffix):
    for name in 'ab':
        write_tensors(tmp_path / f'{name}{suffix}', tensors)
    a, b = ((tmp_path / f'{n}{suffix}').read_bytes() for n in 'ab')
    assert a == b


def test_content_decides_not_the_suffix(tmp_path, tensors):
    for suffix in SUFFIXES[:3]:
        write_tensors(tmp_path / f'a{suffix}', tensors)
        (tmp_path / f'a{suffix}').rename(tmp_path / 'b.weights')
        assert set(read_tensors(tmp_path / 'b.weights')[0]) == set(tensors)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_failed_writing_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    path.write_bytes(b'before')

    class Torn:
        shape = (2,)

        def __array__(self, *args, **kwargs):
            raise RuntimeError('torn')

    with pytest.raises(RuntimeError, match='torn'):
        write_tensors(path, {'a': np.ones(3), 'b': Torn()})
    assert path.read_bytes() == b'before'
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_unwritable_places(tmp_path):
    with pytest.raises(InputError, match=r'should end in one of \.safetensors'):
        write_tensors(tmp_path / 'a.onnx', {'a': np.ones(3)})
    with pytest.raises(InputError, match='does not exist; make it first'):
        write_tensors(tmp_path / 'b' / 'a.npz', {'a': np.ones(3)})
    with pytest.raises(InputError, match='is a folder'):
        write_tensors(tmp_path, {'a': np.ones(3)})
    with pytest.raises(InputError, match=r'no tensors of uint16; try \.npz'):
        write_tensors(tmp_path / 'a.pth', {'a': np.ones(3, 'uint16')})
    assert not list(tmp_path.iterdir())


def test_safetensors_bfloat16(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x4049], '<u2')
    header = {
        '__metadata__': {'format': 'pt'},
        'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]},
        'b': {'dtype': 'BF16', 'shape': [3, 1], 'data_offsets': [4, 10]},
    }
    text = json.dumps(header).encode()
    data = np.float32([7]).tobytes() + bits.tobytes()
    path = tmp_path / 'a.safetensors'
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data)
    tensors, metadata = read_tensors(path)
    assert list(tensors) == ['a', 'b']
    assert_array_equal(tensors['a'], np.float32([7]), strict=True)
    assert_array_equal(tensors['b'], np.float32([[1], [-2], [3.140625]]), strict=True)
    assert metadata == {}


def test_safetensors_of_unknown_elements(tmp_path):
    header = {'a': {'dtype': 'F8_E4M3', 'shape': [2], 'data_offsets': [0, 2]}}
    text = json.dumps(header).encode()
    path = tmp_path / 'a.safetensors'
    path.write_bytes(len(text).to_bytes(8, 'little') + text + b'ab')
    with pytest.raises(InputError, match='F8_E4M3; convert them'):
        read_tensors(path)


def test_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / 'a.npz', a=np.array([{}, None], object))
    with pytest.raises(InputError, match='damaged'):
        read_tensors(tmp_path / 'a.npz')


def test_npz_that_claims_too_much(tmp_path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    member = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode()
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('a.npy', member)
    with pytest.raises(InputError, match='larger than its place'):
        read_tensors(tmp_path / 'a.npz')


def test_compressed_npz(tmp_path):
    np.savez_compressed(tmp_path / 'a.npz', a=np.zeros(100_000, 'float32'))
    assert_array_equal(read_tensors(tmp_path / 'a.npz')[0]['a'], np.zeros(100_000))


def test_wrappers_names(tmp_path):
    arrays = {f'module._orig_mod.{name}': np.ones(2, 'float32') for name in 'ab'}
    save_file(arrays, tmp_path / 'a.safetensors')
    assert set(read_tensors(tmp_path / 'a.safetensors')[0]) == {'a', 'b'}


# folders


def test_folder_prefers_safetensors(tmp_path, Builder):
    (tmp_path / 'config.json').write_text('{"model_type": "deformable_detr"}')
    builder = Builder(legacy=False)
    root = {'a': builder.tensor('0', np.zeros(2, 'float32'))}
    builder.write(tmp_path / 'pytorch_model.bin', root)
    tensors, metadata = read_tensors(tmp_path)
    assert_array_equal(tensors['a'], [0, 0])
    assert metadata == {'transformers': {'model_type': 'deformable_detr'}}
    save_file({'a': np.ones(2, 'float32')}, tmp_path / 'model.safetensors')
    assert_array_equal(read_tensors(tmp_path)[0]['a'], [1, 1])
    # the file alone takes its config.json along
    assert read_tensors(tmp_path / 'model.safetensors')[1] == metadata


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
def test_sharded_folder(tmp_path, Builder, kind):
    (tmp_path / 'config.json').write_text('{}')
    stem = 'model' if kind == 'safetensors' else 'pytorch_model'
    shards = [f'{stem}-0000{i}-of-00002.{kind}' for i in (1, 2)]
    for shard, name in zip(shards, 'ab'):
        if kind == 'safetensors':
            save_file({name: np.ones(2, 'float32')}, tmp_path / shard)
        else:
            builder = Builder(legacy=False)
            root = {name: builder.tensor('0', np.ones(2, 'float32'))}
            builder.write(tmp_path / shard, root)
    index = tmp_path / f'{stem}.{kind}.index.json'
    index.write_text(json.dumps({'weight_map': dict(zip('ab', shards))}))
    assert set(read_tensors(tmp_path)[0]) == {'a', 'b'}
    (tmp_path / shards[1]).unlink()
    with pytest.raises(InputError, match=f'{shards[1]} does not exist'):
        read_tensors(tmp_path)
    index.write_text(json.dumps({'weight_map': {'a': '../secret.bin'}}))
    with pytest.raises(InputError, match='outside of its folder'):
        read_tensors(tmp_path)


def test_folder_without_its_files(tmp_path):
    with pytest.raises(InputError, match=r'no config\.json'):
        read_tensors(tmp_path)
    save_file({'a': np.ones(2, 'float32')}, tmp_path / 'best.safetensors')
    with pytest.raises(InputError, match=r'name a weights file in it: best\.safet'):
        read_tensors(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type"')
    with pytest.raises(InputError, match=r'config\.json is damaged'):
        read_tensors(tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(InputError, match=r'no weights: expected one of model\.safet'):
        read_tensors(tmp_path)
