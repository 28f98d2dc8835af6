import numpy as np
import pytest

from ddetr_np import backend


@pytest.fixture(autouse=True)
def _plain():
    """These tests judge the readable operations; twins are held to them elsewhere."""
    with backend.plain():
        yield


@pytest.fixture
def rng(request):
    return np.random.default_rng(sum(map(ord, request.node.name)))
