"""The optimiser's twins have the plain operations' bits: they only share the blocks."""

import numpy as np
import pytest

from ddetr_np import backend, threads
from ddetr_np.ops.update import adamw_update, sum_of_squares


@pytest.mark.parametrize('shape', [(3,), (400, 500), (0, 3)])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_adamw_is_the_plain_operation(shape, dtype, rng):
    def arrays():
        rng = np.random.default_rng(5)
        p, g, m = rng.standard_normal((3, *shape)).astype(dtype)
        return p, g, m, rng.random(shape).astype(dtype)

    settings = (1e-3, 0.9, 0.999, 1e-8, 0.05, 3, 0.7)
    plain, one, two = arrays(), arrays(), arrays()
    with backend.plain():
        adamw_update(*plain, *settings)
    with threads.limit(1):
        adamw_update(*one, *settings)
    with threads.limit(2):
        adamw_update(*two, *settings)
    for a, b, c in zip(plain, one, two, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(plain[1], arrays()[1])


def test_adamw_takes_views_too(rng):
    whole = [rng.random((40, 30)).astype('float32') for _ in range(4)]
    views = [a.T[::2] for a in whole]
    copies = [v.copy() for v in views]
    settings = (1e-3, 0.9, 0.999, 1e-8, 0.05, 3)
    adamw_update(*views, *settings)
    adamw_update(*copies, *settings)
    np.testing.assert_array_equal(views[0], copies[0])


def test_sum_of_squares(rng):
    a = rng.standard_normal((300, 700)).astype('float32')
    with threads.limit(1):
        one = sum_of_squares(a)
    with threads.limit(3):
        assert sum_of_squares(a) == one
    np.testing.assert_allclose(one, np.square(a, dtype='float64').sum(), rtol=1e-12)
    a[2, 5] = np.nan
    assert np.isnan(sum_of_squares(a))
    assert sum_of_squares(a[:, ::2].T[:0]) == 0
