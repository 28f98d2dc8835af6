"""Names of the hub, with a client that is absent, offline or replaced."""

import sys
import types

import pytest

from ddetr_np.errors import InputError
from ddetr_np.weights import hub, load_model


@pytest.fixture
def client(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub: `client.files` is what the hub has."""
    module = types.ModuleType('huggingface_hub')
    errors = types.ModuleType('huggingface_hub.errors')
    errors.EntryNotFoundError = type('EntryNotFoundError', (Exception,), {})
    errors.LocalEntryNotFoundError = type(
        'LocalEntryNotFoundError', (errors.EntryNotFoundError,), {}
    )
    module.errors, module.files, module.asked = errors, {}, []

    def hf_hub_download(name, file):
        module.asked.append((name, file))
        if isinstance(module.files, Exception):
            raise module.files
        if file not in module.files:
            raise errors.EntryNotFoundError(f'404 {file}')
        (tmp_path / file).write_bytes(module.files[file])
        return str(tmp_path / file)

    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
    monkeypatch.setitem(sys.modules, 'huggingface_hub.errors', errors)
    return module


@pytest.mark.parametrize('weights', ['model.safetensors', 'pytorch_model.bin'])
def test_files_are_fetched(client, tmp_path, weights):
    client.files = {'config.json': b'{}', weights: b'x'}
    assert hub.fetch('SenseTime/deformable-detr') == tmp_path
    assert client.asked[-1] == ('SenseTime/deformable-detr', weights)


def test_without_network(client):
    client.files = client.errors.LocalEntryNotFoundError('cannot reach the hub\nmore')
    with pytest.raises(InputError) as caught:
        load_model('SenseTime/deformable-detr')
    message = str(caught.value)
    assert 'cannot reach the hub' in message
    assert 'download config.json and model.safetensors' in message
    assert 'https://huggingface.co/SenseTime/deformable-detr' in message
    assert len(client.asked) == 1


def test_offline_with_half_a_cache(client):
    client.files = {'config.json': b'{}'}
    lost = client.errors.LocalEntryNotFoundError('offline')
    download = client.hf_hub_download

    def hf_hub_download(name, file):
        if file != 'config.json':
            raise lost
        return download(name, file)

    client.hf_hub_download = hf_hub_download
    with pytest.raises(InputError, match='failed: offline'):
        hub.fetch('SenseTime/deformable-detr')


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(InputError, match=r'pip install "ddetr-np\[hub\]"; or download'):
        load_model('SenseTime/deformable-detr')


def test_what_is_no_name_of_the_hub(client, tmp_path, monkeypatch):
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'model.pth').write_bytes(b'')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r'did you mean runs.model\.pth\?'):
        load_model('runs/modle.pth')
    with pytest.raises(InputError, match='nor does the folder weights'):
        load_model('weights/model.safetensors')
    for path in 'absent', '/absent/model', 'a/b/c', './a/b', tmp_path / 'x':
        with pytest.raises(InputError, match='does not exist'):
            load_model(path)
    assert client.asked == []
