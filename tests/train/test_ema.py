import numpy as np
import pytest

from ddetr_np import Ema, InputError
from ddetr_np.module import Module, Param


class Two(Module):
    def __init__(self):
        self.weight = Param(np.array([8.0, 2.0]))
        self.conv = Param(np.arange(8.0).reshape(1, 2, 2, 2), conv=True)
        self.frozen = Param(np.array([5.0]), learns=False)
        self.running_mean = Param(np.array([1.0]), buffer=True)


def test_by_hand():
    """d = 2/11, then 3/12, and no more than the decay."""
    model = Two()
    ema = Ema(model, decay=0.25)
    model.weight.data[...] = [19, 13]
    ema.update()
    with ema.applied():
        np.testing.assert_allclose(model.weight.data, [17, 11])  # 8 + 9/11 · 11
        np.testing.assert_array_equal(model.frozen.data, [5])
    np.testing.assert_array_equal(model.weight.data, [19, 13])
    model.weight.data[...] = [21, 15]
    ema.update()  # 3/12 is the decay
    with ema.applied():
        np.testing.assert_allclose(model.weight.data, [20, 14])
    for _ in range(3):  # 4/13 would be more than 0.25
        ema.update()
    with ema.applied():
        np.testing.assert_allclose(model.weight.data, 21 - 0.25**3 * np.array([1, 1])
                                   - np.array([0, 6]))  # fmt: skip


def test_running_statistics_are_averaged():
    model = Two()
    ema = Ema(model)
    model.running_mean.data[...] = 12
    ema.update()
    with ema.applied():
        np.testing.assert_allclose(model.running_mean.data, [10])


def test_state_goes_round():
    model = Two()
    ema = Ema(model)
    model.conv.data += 1
    ema.update()
    state = ema.state_dict()
    assert state['n'] == 1
    assert 'frozen' not in state['average']
    other = Ema(Two())
    other.load_state_dict(state)
    model.conv.data += 1
    other._params = ema._params
    ema.update()
    other.update()
    for name, a in ema.state_dict()['average'].items():
        np.testing.assert_array_equal(a, other.state_dict()['average'][name])


def test_of_another_model():
    ema = Ema(Two())
    state = ema.state_dict()
    state['average']['weight'] = np.zeros(3)
    with pytest.raises(InputError, match='does not fit the model at 1 tensors.*weight'):
        ema.load_state_dict(state)


@pytest.mark.parametrize('decay', [0, 1, -0.5])
def test_decays(decay):
    with pytest.raises(InputError, match='decay'):
        Ema(Two(), decay)
