"""The detectors that come with the package do what their cards say."""

import re

import numpy as np
import pytest

import ddetr_np
from ddetr_np.data.scenes import NAMES as SHAPES
from ddetr_np.evaluate import evaluate
from ddetr_np.weights import packaged, read_tensors

NAMES = packaged.names()


def test_names():
    assert NAMES == ['bccd', 'scenes']
    assert packaged.find('scenes').name == 'scenes.safetensors'
    assert packaged.find('scene') is None


@pytest.mark.parametrize('name', NAMES)
def test_each_is_small_and_in_half_precision(name):
    path = packaged.find(name)
    assert path.stat().st_size <= 16e6
    tensors, _ = read_tensors(path)
    for key, a in tensors.items():
        assert a.dtype == (np.float16 if a.ndim > 1 else np.float32), key


@pytest.mark.parametrize('name', NAMES)
def test_each_has_a_card_and_its_settings(name):
    card = (packaged.FOLDER / f'{name}.md').read_text(encoding='utf-8')
    for title in ('Data', 'Licence', 'Recipe', 'Figures', 'Again'):
        assert re.search(rf'^## {title}', card, re.M), title
    settings = ddetr_np.read_settings(packaged.FOLDER / f'{name}.toml')
    config = ddetr_np.load_model(name).config
    for field, value in settings.model.items():
        assert getattr(config, field) == value, field
    assert (config.short, config.long) == (settings.short, settings.long)


def test_a_name_goes_before_a_folder_called_the_same(tmp_path, monkeypatch):
    (tmp_path / 'scenes').mkdir()
    monkeypatch.chdir(tmp_path)
    assert ddetr_np.load_model('scenes').config.names == SHAPES
    with pytest.raises(ddetr_np.InputError, match=r'config\.json'):
        ddetr_np.load_model('./scenes')


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ddetr_np.InputError, match=', '.join(NAMES)):
        ddetr_np.load_model('scene')


def stated(name, figure):
    """A figure of a card's table."""
    card = (packaged.FOLDER / f'{name}.md').read_text(encoding='utf-8')
    return float(re.search(rf'^\| {figure} \| ([\d.]+)', card, re.M)[1])


@pytest.mark.slow
def test_scenes_has_the_figures_of_its_card():
    report = evaluate(ddetr_np.load_model('scenes'), ddetr_np.Scenes(500, seed=7))
    for figure in ('AP', 'AP50', 'AP_small'):
        expected = stated('scenes', figure)
        assert report.figures[figure] == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_bccd_has_the_figures_of_its_card(shared):
    data = ddetr_np.read_dataset(shared / 'data/bccd/ImageSets/Main/test.txt')
    report = evaluate(ddetr_np.load_model('bccd'), data)
    assert [c.name for c in report.classes] == ['Platelets', 'RBC', 'WBC']
    for figure in ('AP', 'AP50', 'AP75'):
        expected = stated('bccd', figure)
        assert report.figures[figure] == pytest.approx(expected, abs=2e-3)
