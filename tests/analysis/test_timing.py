import time

import numpy as np
import pytest

from ddetr_np import build_model
from ddetr_np.analysis.timing import Spent, alike, timing
from ddetr_np.module import EVAL, Module


class Sleeper(Module):
    def __init__(self, seconds, inner=()):
        self.seconds, self.inner = seconds, list(inner)

    def forward(self, x, run=EVAL):
        time.sleep(self.seconds)
        for module in self.inner:
            module.forward(x)
        return x, None

    def backward(self, dy, cache):
        time.sleep(2 * self.seconds)
        return dy


def test_own_time_is_without_what_is_inside():
    inner = Sleeper(0.02)
    outer = Sleeper(0.03, [inner, inner, Sleeper(0.01)])
    with timing(outer) as spent:
        outer.infer(1)  # calls forward: one call all the same
        outer.backward(1, None)
    assert set(spent) == {
        ('', 'forward'), ('', 'backward'), ('inner.0', 'forward'),
        ('inner.2', 'forward'),
    }  # fmt: skip
    whole = spent['', 'forward']
    assert (whole.calls, spent['inner.0', 'forward'].calls) == (1, 2)
    assert whole.total >= 0.08
    assert whole.own >= 0.03
    inside = spent['inner.0', 'forward'].total + spent['inner.2', 'forward'].total
    assert whole.own + inside == pytest.approx(whole.total, abs=1e-9)
    assert spent['', 'backward'].own == spent['', 'backward'].total >= 0.06


def test_own_times_of_a_detector_add_up_to_its_time(tiny):
    model = build_model('multi_scale', **tiny)
    with timing(model) as spent:
        start = time.perf_counter()
        out, cache = model.forward(np.zeros((1, 48, 64, 3)), keep='inputs')
        model.backward(out, cache)
        seconds = time.perf_counter() - start
    own = sum(s.own for s in spent.values())
    total = spent['', 'forward'].total + spent['', 'backward'].total
    assert own == pytest.approx(total, rel=1e-6)
    assert own <= seconds
    assert spent['transformer.encoder.layers.0', 'forward'].calls == 2  # once again
    assert 'forward' not in vars(model)


def test_layers_of_a_stack_add_up():
    spent = {
        ('transformer.encoder.layers.0.linear1', 'forward'): Spent(1, 2.0, 1.0),
        ('transformer.encoder.layers.1.linear1', 'forward'): Spent(2, 3.0, 0.5),
        ('transformer.encoder.layers.1.linear1', 'backward'): Spent(1, 1.0, 1.0),
        ('backbone.0.body.layer4.2', 'forward'): Spent(1, 1.0, 1.0),
        ('input_proj.3.0', 'forward'): Spent(1, 1.0, 1.0),
    }
    rows = alike(spent)
    linear = 'transformer.encoder.layers.*.linear1'
    assert rows[linear, 'forward'] == Spent(3, 5.0, 1.5)
    assert rows[linear, 'backward'] == Spent(1, 1.0, 1.0)
    assert ('backbone.0.body.layer4.*', 'forward') in rows
    assert ('input_proj.*.0', 'forward') in rows
    assert spent['transformer.encoder.layers.0.linear1', 'forward'].calls == 1
