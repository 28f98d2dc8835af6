"""Files of the real torch.save, and ours read by the real torch.load."""

import argparse
import collections
import pathlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddetr_np.errors import InputError
from ddetr_np.weights import read_tensors, write_tensors

pytestmark = pytest.mark.oracle
torch = pytest.importorskip('torch')


def tensors():
    torch.manual_seed(3)
    base = torch.randn(6, 8)
    return collections.OrderedDict(
        {
            'transposed': base.t(),
            'window': base[1:3, 2:5],
            'scalar': torch.tensor(3.0),
            'empty': torch.zeros(0, 4),
            'half': torch.randn(3).half(),
            'bfloat16': torch.randn(5).bfloat16(),
            'double': torch.randn(2).double(),
            'long': torch.arange(3),
            'int': torch.arange(3, dtype=torch.int32),
            'bool': torch.tensor([True, False]),
            'expanded': torch.randn(1, 3).expand(5, 3),
            'parameter': torch.nn.Parameter(torch.randn(2, 2)),
            'complex': torch.randn(2, dtype=torch.complex64),
        }
    )


def as_numpy(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize(
    ('zipped', 'protocol'),
    [(True, 2), (True, 3), (True, 5), (False, 1), (False, 2), (False, 4), (False, 5)],
)
def test_a_training_checkpoint(tmp_path, zipped, protocol):
    linear = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    model = tensors()
    args = argparse.Namespace(
        nheads=8,
        lr=1e-4,
        lr_drop=[40, 45],
        device=torch.device('cuda:0'),
        dtype=torch.float32,
        output=pathlib.Path('a/b'),
        best=np.float64(3),
        classes={1, 2},
        table=np.eye(2),
        seed=2**70,
        blob=bytearray(b'12'),
        resume=None,
    )
    checkpoint = {
        'model': model,
        'optimizer': optimizer.state_dict(),
        'lr_scheduler': schedule.state_dict(),
        'epoch': 49,
        'args': args,
    }
    torch.save(
        checkpoint,
        tmp_path / 'a.pth',
        _use_new_zipfile_serialization=zipped,
        pickle_protocol=protocol,
    )
    found, metadata = read_tensors(tmp_path / 'a.pth')
    assert list(found) == list(model)
    for name, tensor in model.items():
        assert_array_equal(found[name], as_numpy(tensor), strict=True)
    assert metadata['args']['nheads'] == 8
    assert metadata['args']['lr_drop'] == [40, 45]
    assert metadata['args']['best'] == 3


def test_element_types_without_a_storage_class(tmp_path):
    model = {'a': torch.arange(5).to(torch.uint16), 'b': np.arange(3.0)}
    torch.save(model, tmp_path / 'a.pth')
    found, _ = read_tensors(tmp_path / 'a.pth')
    assert_array_equal(found['a'], np.arange(5, dtype='uint16'), strict=True)
    assert_array_equal(found['b'], np.arange(3.0), strict=True)


def test_checksums_left_out(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.arange(3)}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert_array_equal(read_tensors(tmp_path / 'a.pth')[0]['a'], [0, 1, 2])


@pytest.mark.parametrize('zipped', [True, False])
def test_a_whole_module_and_a_call_are_refused(tmp_path, zipped):
    def message(value):
        torch.save(
            value, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped
        )
        with pytest.raises(InputError) as caught:
            read_tensors(tmp_path / 'a.pth')
        return str(caught.value)

    class Call:
        def __reduce__(self):
            import os

            return os.system, (f'touch {tmp_path / "ran"}',)

    assert 'torch.nn.modules.linear.Linear' in message(torch.nn.Linear(2, 2))
    refused = message({'model': {'a': torch.ones(2)}, 'epoch': Call()})
    assert 'posix.system' in refused or 'nt.system' in refused
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_torch_reads_what_is_written(tmp_path, suffix):
    model = {n: as_numpy(t) for n, t in tensors().items() if n != 'complex'}
    model['alias'] = model['double']
    config = {'C': 64, 'dropout': 0.1, 'refine': False, 'names': ['a'], 'x': -(2**40)}
    path = tmp_path / f'a{suffix}'
    write_tensors(path, model, {'config': config})
    if suffix == '.pth':
        found = torch.load(path, weights_only=True)
        assert found['config'] == config
        found = found['model']
        assert found['alias'].data_ptr() == found['double'].data_ptr()
    else:
        found = pytest.importorskip('safetensors.torch').load_file(path)
    assert set(found) == set(model)
    for name, array in model.items():
        assert_array_equal(found[name].numpy(), array, strict=True)
