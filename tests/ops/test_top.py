"""The choice of the best: values by hand, and what the twin for a GPU is given."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddetr_np.fast import cuda, gpu_top
from ddetr_np.ops.top import top


def test_by_hand():
    """Best first; of equals the first; infinities are numbers, NaN comes last."""
    nan, inf = np.nan, np.inf
    scores = np.array([[1, 3, 2, 3], [nan, -inf, inf, nan], [-0.0, 0.0, 0.0, 1]])
    expected = np.array([[1, 3, 2, 0], [2, 1, 0, 3], [3, 0, 1, 2]])
    for n in (1, 2, 4):
        places = top(scores, n)
        assert places.dtype == np.int64
        assert_array_equal(places, expected[:, :n])


@pytest.mark.parametrize('dtype', gpu_top.TYPES)
def test_the_twin_copies_views_and_writes_all(monkeypatch, dtype):
    """As `nn.proposals` calls it: a column of the logits, which is no whole memory."""
    logits = np.random.default_rng(1).integers(0, 9, (2, 200, 3)).astype(dtype)
    view, launched = logits[..., 0], []

    def run(xp, launch):
        launched.append(launch)
        scores, places, S, n = launch.args
        assert scores.flags.c_contiguous
        assert places.flags.c_contiguous
        assert (places.dtype, S.dtype, n.dtype) == (np.int64, np.int32, np.int32)
        assert scores.shape == (2, S)
        assert places.shape == (2, n)
        assert launch.blocks == 2 * 2  # of 128 threads for 200 scores
        places[...] = top.plain(scores, n)

    monkeypatch.setattr(cuda, 'launch', run)
    for n in (1, 130, 200):
        assert_array_equal(gpu_top.gpu_top(view, n), top.plain(view, n))
    assert len(launched) == 3


@pytest.mark.parametrize(('shape', 'n'), [((2, 5), 0), ((0, 5), 3), ((2, 5), 9)])
def test_the_twin_s_shapes_are_the_plain_ones(monkeypatch, shape, n):
    monkeypatch.setattr(cuda, 'launch', lambda xp, launch: launch.args[1].fill(0))
    scores = np.zeros(shape, 'float32')
    got, expected = gpu_top.gpu_top(scores, n), top.plain(scores, n)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
