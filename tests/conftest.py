from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def shared():
    """The optional folder of oracles and pictures beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / 'shared'
    if not folder.is_dir():
        pytest.skip('needs the data folder ../shared beside the checkout')
    return folder
