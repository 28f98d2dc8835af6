import numpy as np
import pytest


@pytest.fixture
def rng(request):
    return np.random.default_rng(sum(map(ord, request.node.name)))
