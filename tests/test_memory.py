"""Peak resident memory at 800 × 1066, and what gradients are allowed to take."""

import importlib.util
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import ddetr_np
from ddetr_np.testing_model import random_batch, randomise

GB = 1e9
BENCHMARK = Path(__file__).parents[1] / 'benchmarks' / 'memory.py'


@pytest.mark.slow
@pytest.mark.parametrize(('case', 'most'), [('none', 1), ('inputs', 2), ('all', 3.5)])
def test_peak_of_a_full_size_pass(case, most):
    """The two-stage model, the largest; docs/memory.md has the figures themselves."""
    pytest.importorskip('resource', reason='no such figure on Windows')
    spec = importlib.util.spec_from_file_location('benchmark_memory', BENCHMARK)
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    least, peak = (
        memory.measure('two_stage', c)['peak'] / GB for c in ('import', case)
    )
    assert least < peak <= most


def traced(function):
    """Return the most bytes that a call had allocated beyond what it began with."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope='module')
def model():
    """A model whose weights are far larger than its activations at a small size."""
    fields = {'backbone': 'resnet18', 'width': 8, 'C': 192, 'ffn': 1536, 'Nq': 4}
    return randomise(ddetr_np.build_model('refine', **fields, num_classes=5))


def one_pass(model, batch):
    images, mask, targets = batch
    out, cache = model.forward(images, mask)
    _, _, dout = ddetr_np.Criterion(model.config)(out, targets)
    model.backward(dout, cache)


def test_accumulating_gradients_takes_no_second_copy(model):
    weights = sum(p.data.nbytes for p in model.params())
    assert weights > 30e6
    batches = [random_batch(5, sizes=((32, 32),), boxes=(2,), seed=s) for s in (0, 1)]
    model.zero_grad()
    first = traced(lambda: one_pass(model, batches[0]))
    once = {n: g.copy() for n, g in model.grad_dict().items()}
    arrays = {n: p.grad for n, p in model.named_params()}
    again = traced(lambda: one_pass(model, batches[1]))
    # the first makes the gradients, the second only the largest parts' contributions
    assert first > 0.9 * weights
    assert again < 0.4 * weights
    for n, p in model.named_params():
        assert p.grad is arrays[n], n  # added to in place
    moved = [n for n, g in model.grad_dict().items() if not np.array_equal(g, once[n])]
    assert len(moved) > 0.9 * len(once)
    # both together are the sum of each
    model.zero_grad()
    one_pass(model, batches[1])
    alone = model.grad_dict()
    model.zero_grad()
    for batch in batches:
        one_pass(model, batch)
    for n, g in model.grad_dict().items():
        size = np.abs(g).max() + np.abs(once[n]).max()
        np.testing.assert_allclose(g, once[n] + alone[n], atol=1e-5 * size, err_msg=n)


def test_zeroing_and_stepping_take_no_copy(model):
    weights = sum(p.data.nbytes for p in model.params())
    batch = random_batch(5, sizes=((32, 32),), boxes=(2,))
    optimizer = ddetr_np.AdamW(model)
    schedule = ddetr_np.StepLR(optimizer, step=40)

    def step():
        optimizer.step()
        schedule.step()

    one_pass(model, batch)
    step()  # makes the moments
    assert traced(model.zero_grad) < 0.05 * weights
    one_pass(model, batch)
    assert traced(step) < 0.05 * weights
