import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ddetr_np import build_model, save_model
from ddetr_np.cli import cli

SMALL = ['--short', '64', '--long', '96', '--threshold', '0', '--top', '5']


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'toy.safetensors'
    model = build_model(
        'refine', backbone='resnet18', width=8, C=32, M=2, encoder_layers=1,
        decoder_layers=1, Nq=10, ffn=64, seed=3,
    )
    save_model(model, path)
    return str(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture(here):
    """Write a picture of noise."""

    def write(name, size=(50, 40), seed=0):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return name

    return write


@pytest.fixture
def run():
    """Run a command; an exception that is no clean exit fails the test."""

    def run(*arguments):
        return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)

    return run


@pytest.fixture
def detect(run, weights):
    def detect(*arguments):
        # of an option given twice the last one counts
        return run('detect', '--weights', weights, *SMALL, *arguments)

    return detect
