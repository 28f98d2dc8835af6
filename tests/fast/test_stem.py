"""The stem's quick inference against its plain one."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np import backend, threads
from ddetr_np.module import EVAL
from ddetr_np.testing_model import randomise

SIZES = [(1, 1), (2, 3), (4, 7), (63, 65), (64, 66), (150, 700)]


def stem_of(dtype, **fields):
    model = ddetr_np.build_model('single_scale', dtype=dtype, width=8, **fields)
    return randomise(model).backbone[0].body.stem


@pytest.mark.parametrize(('dtype', 'rtol'), [('float64', 1e-12), ('float32', 1e-5)])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_agrees_with_the_plain_stem(size, dtype, rtol, rng):
    stem = stem_of(dtype)
    x = rng.standard_normal((2, *size, 3)).astype(dtype)
    x.flags.writeable = False
    found = stem.infer(x)
    with backend.plain():
        expected = stem.infer(x)
        full, _ = stem.forward(x)
    np.testing.assert_array_equal(expected, full)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= rtol * np.abs(expected).max()
    assert expected.any()


def test_the_twin_is_what_a_pass_without_gradients_runs(monkeypatch, rng):
    called = []
    twin = backend.twins()['resnet.infer', 'numpy']

    def spy(stem, x, run):
        called.append(x.shape)
        return twin(stem, x, run)

    monkeypatch.setitem(backend.twins(), ('resnet.infer', 'numpy'), spy)
    model = ddetr_np.build_model('single_scale', C=32, M=4, K=2, ffn=16, width=8)
    images = rng.standard_normal((1, 40, 50, 3)).astype('float32')
    model.forward(images, keep='none')
    assert len(called) == 1


def test_not_a_number_shows_where_the_plain_stem_shows_it(rng):
    stem = stem_of('float64')
    x = rng.standard_normal((1, 40, 50, 3))
    x[0, 20, 20] = np.nan
    found = stem.infer(x)
    with backend.plain():
        np.testing.assert_array_equal(np.isnan(found), np.isnan(stem.infer(x)))


@pytest.mark.parametrize('n', [1, 3])
def test_the_same_bits_with_any_number_of_threads(n, rng):
    stem = stem_of('float32')
    x = rng.standard_normal((1, 150, 170, 3)).astype('float32')
    with threads.limit(2):
        expected = stem.infer(x)
    with threads.limit(n):
        np.testing.assert_array_equal(stem.infer(x), expected)


@pytest.mark.parametrize('backbone', ['resnet18', 'resnet50'])
def test_a_norm_that_learns_is_folded_only_outside_training(backbone, rng):
    fields = {'backbone': backbone, 'frozen_norm': False, 'freeze_at': 0}
    model = randomise(
        ddetr_np.build_model('single_scale', dtype='float64', width=8, **fields)
    )
    x = rng.standard_normal((2, 40, 50, 3))
    body = model.backbone[0].body
    for run in (EVAL, EVAL._replace(train=True, again=True)):
        kept, _ = body.forward(x, 'all', run)
        found, _ = body.forward(x, 'none', run)
        np.testing.assert_allclose(found[-1], kept[-1], rtol=1e-9)
