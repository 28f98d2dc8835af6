"""Both serialisations of torch.save, from files built by hand."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddetr_np.errors import InputError
from ddetr_np.weights.files import read_tensors

DTYPES = ['float32', 'float64', 'float16', 'int64', 'int32', 'uint8', 'bool']


@pytest.mark.parametrize('order', ['little', 'big'])
def test_every_element_type_in_both_byte_orders(builder, tmp_path, rng, order):
    arrays = {
        dtype: (100 * rng.standard_normal((2, 3))).astype(dtype) for dtype in DTYPES
    }
    root = {name: builder.tensor(name, array) for name, array in arrays.items()}
    path = builder.write(tmp_path / 'a.pth', root, order=order)
    tensors, metadata = read_tensors(path)
    assert metadata == {}
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert_array_equal(tensors[name], array, strict=True)
        assert tensors[name].dtype.isnative


def test_legacy_storages_are_little_endian_whatever_the_system(Builder, tmp_path):
    # torch.save converts the elements on big-endian machines, but notes the machine
    builder = Builder(legacy=True)
    array = np.arange(3, dtype='float32')
    path = builder.write(tmp_path / 'a.pth', {'a': builder.tensor('0', array)})
    flagged = builder.dump('little_endian') + b'\x88'
    data = path.read_bytes()
    assert data.count(flagged) == 1
    path.write_bytes(data.replace(flagged, flagged[:-1] + b'\x89'))
    assert_array_equal(read_tensors(path)[0]['a'], array)


def test_zip_without_byteorder_is_little_endian(Builder, tmp_path):
    builder = Builder(legacy=False)
    array = np.arange(3, dtype='float32')
    root = {'a': builder.tensor('0', array)}
    path = builder.write(tmp_path / 'a.pth', root, mark=False)
    assert_array_equal(read_tensors(path)[0]['a'], array)


def test_files_at_the_archive_s_root(Builder, tmp_path):
    builder = Builder(legacy=False)
    root = {'a': builder.tensor('0', np.ones(2, 'float32'))}
    path = builder.write(tmp_path / 'a.pth', root)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / 'b.pth', 'w') as new:
        for name in old.namelist():  # repacked, and compressed on the way
            new.writestr(
                name.partition('/')[2], old.read(name), zipfile.ZIP_DEFLATED
            )
    assert_array_equal(read_tensors(tmp_path / 'b.pth')[0]['a'], [1, 1])


def test_bfloat16_is_widened(builder, View, tmp_path):
    # sign, exponent and 7 bits of 1, −2, 3.140625, 2⁻¹³³ (subnormal) and infinity
    bits = np.array([0x3F80, 0xC000, 0x4049, 0x0001, 0x7F80], 'uint16')
    builder.storage('0', bits, 'BFloat16Storage')
    path = builder.write(tmp_path / 'a.pth', {'a': View('0', (5,), (1,))})
    expected = np.array([1, -2, 3.140625, 2.0**-133, np.inf], 'float32')
    assert_array_equal(read_tensors(path)[0]['a'], expected, strict=True)


def test_views_of_one_storage(builder, View, tmp_path):
    base = np.arange(48, dtype='float32')
    builder.storage('0', base)
    root = {
        'transposed': View('0', (8, 6), (1, 8)),
        'window': View('0', (2, 3), (8, 1), offset=10),
        'every_other': View('0', (4,), (2,), offset=1),
        'repeated': View('0', (3, 2), (0, 1), offset=4),
        'scalar': View('0', (), (), offset=7),
        'empty': View('0', (0, 4), (4, 1)),
        'last': View('0', (1,), (10**9,), offset=47),
    }
    tensors, _ = read_tensors(builder.write(tmp_path / 'a.pth', root))
    grid = base.reshape(6, 8)
    assert_array_equal(tensors['transposed'], grid.T)
    assert_array_equal(tensors['window'], grid[1:3, 2:5])
    assert_array_equal(tensors['every_other'], [1, 3, 5, 7])
    assert_array_equal(tensors['repeated'], [[4, 5]] * 3)
    assert tensors['scalar'].shape == ()
    assert tensors['scalar'] == 7
    assert tensors['empty'].shape == (0, 4)
    assert_array_equal(tensors['last'], [47])
    assert all(t.flags.c_contiguous for t in tensors.values())


def test_legacy_storage_views(Builder, View, tmp_path):
    builder = Builder(legacy=True)
    builder.storage('root', np.arange(10, dtype='float64'))
    root = {
        'a': View('root', (2, 2), (2, 1), 1, window=('v', 3, 6)),
        'b': View('root', (3,), (1,)),
    }
    tensors, _ = read_tensors(builder.write(tmp_path / 'a.pth', root))
    assert_array_equal(tensors['a'], [[4, 5], [6, 7]])
    assert_array_equal(tensors['b'], [0, 1, 2])


@pytest.mark.parametrize(
    ('shape', 'strides', 'offset'),
    [
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2, 2), (3, 1), 0),
        ((1,), (1,), 4),
        ((2,), (10**12,), 0),
        ((10**6, 10**6), (0, 0), 0),
        ((2,), (-1,), 1),
        ((-1,), (1,), 0),
        ((2,), (1, 1), 0),
    ],
)
def test_view_that_leaves_its_storage(builder, View, tmp_path, shape, strides, offset):
    builder.storage('0', np.zeros(4, 'float32'))
    path = builder.write(tmp_path / 'a.pth', {'a': View('0', shape, strides, offset)})
    with pytest.raises(InputError, match=r'a\.pth is damaged or cut short'):
        read_tensors(path)


def test_legacy_view_outside_of_its_storage(Builder, View, tmp_path):
    builder = Builder(legacy=True)
    builder.storage('0', np.zeros(4, 'float32'))
    root = {'a': View('0', (2,), (1,), 0, window=('v', 2, 3))}
    with pytest.raises(InputError, match='leaves its storage'):
        read_tensors(builder.write(tmp_path / 'a.pth', root))


def test_the_authors_training_checkpoint(builder, Raw, tmp_path, rng):
    weight = rng.standard_normal((2, 3)).astype('float32')
    moment = builder.tensor('moment', np.zeros((2, 3), 'float32'))
    args = {'nheads': 4, 'lr': 2e-4, 'dilation': True, 'lr_backbone_names': ['a', 'b']}
    namespace = b'cargparse\nNamespace\n)\x81' + builder.dump(args) + b'b'
    milestones = b'ccollections\nCounter\n' + builder.dump(({40: 1},)) + b'R'
    groups = [{'lr': 1e-4, 'betas': (0.9, 0.999), 'params': [0, 1]}]
    ordered = b'ccollections\nOrderedDict\n)R('
    ordered += builder.dump('module.w') + builder.dump(builder.tensor('w', weight))
    ordered += b'u' + builder.dump({'_metadata': {'': {'version': 1}}}) + b'b'
    root = {
        'model': Raw(ordered),
        'optimizer': {'state': {0: {'exp_avg': moment}}, 'param_groups': groups},
        'lr_scheduler': {'milestones': Raw(milestones), 'last_epoch': 49},
        'epoch': 49,
        'args': Raw(namespace),
    }
    tensors, metadata = read_tensors(builder.write(tmp_path / 'a.pth', root))
    assert list(tensors) == ['w']
    assert_array_equal(tensors['w'], weight)
    assert metadata == {'args': args}


def test_only_the_picked_tensors_are_read(Builder, tmp_path):
    builder = Builder(legacy=False)
    root = {
        'model': {'a': builder.tensor('a', np.ones(3, 'float32'))},
        'optimizer': {'b': builder.tensor('b', np.ones(3, 'float32'))},
    }
    path = builder.write(tmp_path / 'a.pth', root)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo('any name/data/b')
    data[info.header_offset : info.header_offset + 4] = b'gone'
    path.write_bytes(data)
    assert_array_equal(read_tensors(path)[0]['a'], [1, 1, 1])


def test_numpy_values(builder, Raw, tmp_path):
    array = np.arange(6, dtype='>f4').reshape(2, 3)
    # each pickle numbers its memo from 0: harmless, as each puts before it gets
    values = {
        'a': Raw(pickle.dumps(array, 2)[2:-1]),
        'fortran': Raw(pickle.dumps(np.asfortranarray(array), 2)[2:-1]),
    }
    args = {'n': Raw(pickle.dumps(np.float64(2.5), 2)[2:-1])}
    namespace = b'cargparse\nNamespace\n)\x81' + builder.dump(args) + b'b'
    root = {'state_dict': values, 'args': Raw(namespace)}
    tensors, metadata = read_tensors(builder.write(tmp_path / 'a.pth', root))
    for name in values:
        assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == np.dtype('float32')
    assert metadata == {'args': {'n': 2.5}}


FOREIGN = {
    # name the message must give → opcodes
    'os.system': b'cos\nsystem\n(X\x04\x00\x00\x00truetR',
    'posix.system': b'X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93',
    'builtins.eval': b'c__builtin__\neval\n(X\x03\x00\x00\x001+1tR',
    'builtins.getattr': b'cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x08\x00\x00'
    b'\x00fromkeystR',
    'subprocess.Popen': b'(X\x04\x00\x00\x00trueisubprocess\nPopen\n',
    'nt.system': b'(cnt\nsystem\nX\x04\x00\x00\x00trueo',
    'functools.partial': b'cfunctools\npartial\n)\x81',
    'operator.attrgetter': b'coperator\nattrgetter\n)}\x92',
    'torch.storage._load_from_bytes': b'ctorch.storage\n_load_from_bytes\n)R',
    'models.detr.DeformableDETR': b'cmodels.detr\nDeformableDETR\n',
    'collections.OrderedDict.fromkeys': b'ccollections\nOrderedDict.fromkeys\n)R',
    'argparse.Namespace.__init__': b'X\x08\x00\x00\x00argparse'
    b'X\x12\x00\x00\x00Namespace.__init__\x93',
    'argparse.sys': b'cargparse\nsys\n',
    'a call of builtins.dict': b'cbuiltins\ndict\n)R',
    'a call of torch.FloatStorage': b'ctorch\nFloatStorage\n(K\x05tR',
    'a call of a str': b'X\x01\x00\x00\x00a)R',
    'a state given to a list': b']}b',
    'a state given to torch.float32': b'ctorch\nfloat32\n}b',
    "the pickle instruction 'EXT1'": b'\x82\x01',
    "the pickle instruction 'NEXT_BUFFER'": b'\x97',
    'an object of a class of its own': b'ccopyreg\n_reconstructor\n(cbuiltins\nobject\n'
    b'cbuiltins\nobject\nNtR',
    'an array of Python objects': b'cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR',
    'called with named arguments': b'ccollections\nOrderedDict\n)'
    b'}X\x01\x00\x00\x00aK\x01s\x92',
}


@pytest.mark.parametrize('name', FOREIGN)
@pytest.mark.parametrize('place', ['alone', 'beside', 'argument'])
def test_foreign_code_is_refused_by_name(
    builder, Raw, tmp_path, monkeypatch, name, place
):
    monkeypatch.setattr('os.system', lambda command: pytest.fail('it ran'))
    code = FOREIGN[name]
    good = builder.tensor('0', np.ones(2, 'float32'))
    root = {
        'alone': Raw(code),
        'beside': {'model': {'a': good}, 'epoch': Raw(code)},
        'argument': {'a': good, 'b': Raw(b'ctorch\nSize\n((' + code + b'ttR')},
    }[place]
    with pytest.raises(InputError) as caught:
        read_tensors(builder.write(tmp_path / 'a.pth', root))
    assert name in str(caught.value)
    assert 'nothing of it ran' in str(caught.value)
    assert 'a.pth' in str(caught.value)


@pytest.mark.parametrize(
    'code',
    [
        b'cbuiltins\nbytearray\n(\x8a\x06\x00\x00\x00\x00\x00\x10tR',  # 2**44 bytes
        b'cbuiltins\nset\n(](' + b')' * 3 + b'((((tttteetR',  # nested tuples as keys
        b'(](e' + b'1',
        b'((K\x01K\x02' + b't' + b'\x85' * 50_000 + b'K\x01d',
        b'\x8e\xff\xff\xff\xff\xff\xff\xff\x7f',  # BINBYTES8 of 2**63 − 1
        b'r\xff\xff\xff\xff',  # LONG_BINPUT on an empty stack
        b'N' + b'r\xff\xff\xff\xff' + b'0' * 9,
        b'\x8b\xff\xff\xff\x7f',  # LONG4 of 2**31 − 1 bytes
    ],
)
def test_pickles_that_reserve_or_nest_without_end(builder, Raw, tmp_path, code):
    with pytest.raises(InputError, match='damaged'):
        read_tensors(builder.write(tmp_path / 'a.pth', {'a': Raw(code)}))


def test_deep_nesting_is_read(builder, Raw, tmp_path):
    deep = Raw(b']' * 100_000 + b'a' * 99_999)
    root = {'model': {'a': builder.tensor('0', np.ones(2, 'float32'))}, 'epoch': deep}
    assert list(read_tensors(builder.write(tmp_path / 'a.pth', root))[0]) == ['a']


def test_no_state_dict(builder, tmp_path):
    path = builder.write(tmp_path / 'a.pth', {'epoch': 3, 'best': 0.5})
    with pytest.raises(InputError, match='no state dict.*found epoch, best'):
        read_tensors(path)
    path = builder.write(tmp_path / 'b.pth', [1, 2])
    with pytest.raises(InputError, match='no state dict'):
        read_tensors(path)


def test_storage_shorter_than_its_tensor(Builder, tmp_path):
    builder = Builder(legacy=False)
    path = builder.write(
        tmp_path / 'a.pth', {'a': builder.tensor('0', np.ones(8, 'float32'))}
    )
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / 'b.pth', 'w') as new:
        for name in old.namelist():
            cut = -4 if name.endswith('data/0') else None
            new.writestr(name, old.read(name)[:cut])
    with pytest.raises(InputError, match='reaches element 7 of a storage of 7'):
        read_tensors(tmp_path / 'b.pth')


def test_checksum(Builder, tmp_path):
    builder = Builder(legacy=False)
    array = np.full(8, 1.5, 'float32')
    path = builder.write(tmp_path / 'a.pth', {'a': builder.tensor('0', array)})
    data = path.read_bytes()
    flipped = array.copy()
    flipped[3] = -1.5
    path.write_bytes(data.replace(array.tobytes(), flipped.tobytes()))
    with pytest.raises(InputError, match='CRC'):
        read_tensors(path)
    # PyTorch can leave the checksums out: they are then zero
    with zipfile.ZipFile(path) as archive:
        crc = struct.pack('<I', archive.getinfo('any name/data/0').CRC)
    assert data.count(crc) == 2
    path.write_bytes(data.replace(crc, bytes(4)))
    assert_array_equal(read_tensors(path)[0]['a'], array)


def test_kinds_of_files_that_are_none(tmp_path):
    def message(data, name='a.pth'):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_tensors(tmp_path / name)
        assert name in str(caught.value)
        return str(caught.value)

    assert 'empty' in message(b'')
    assert 'web page' in message(b'\n<!DOCTYPE html><html>')
    assert 'git lfs pull' in message(b'version https://git-lfs.github.com/spec/v1\n')
    assert 'magic number' in message(pickle.dumps({'a': 1}))
    assert 'magic number' in message(b'hello')
    assert 'no weights file' in message(b'\x1f\x8b\x08' + bytes(30), 'a.tar.gz')
    with pytest.raises(InputError, match='does not exist'):
        read_tensors(tmp_path / 'absent.pth')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    with pytest.raises(InputError, match=r'without data\.pkl'):
        read_tensors(tmp_path / 'a.zip')
    with zipfile.ZipFile(tmp_path / 'a.pt', 'w') as archive:
        archive.writestr('m/data.pkl', b'\x80\x02N.')
        archive.writestr('m/constants.pkl', b'\x80\x02N.')
    with pytest.raises(InputError, match='TorchScript'):
        read_tensors(tmp_path / 'a.pt')
