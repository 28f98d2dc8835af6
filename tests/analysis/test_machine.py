import pytest

from ddetr_np import threads
from ddetr_np.analysis import machine


def test_small_products_are_tried_more_often(monkeypatch):
    tries = []

    def timed(function, device):
        tries.append(function)
        return 5e-5 if len(tries) == 40 else 0.016  # else the threads waited

    monkeypatch.setattr(machine, 'timed', timed)
    assert machine.product_seconds(24, 256, 256, 'float32', runs=1) == 5e-5
    assert len(tries) == 1 + machine.TRIES
    tries.clear()
    machine.product_seconds(1000, 1000, 1000, 'float32', runs=3)
    assert len(tries) == 1 + 3
    tries.clear()
    machine.product_seconds(1, 1, 1, 'float32', runs=200)
    assert len(tries) == 1 + 200


def test_a_peak_leaves_out_what_earlier_parts_keep():
    size = 1 << 28
    threads.scratch('test', (size,), 'uint8').fill(1)
    if not machine.reset_peak():
        pytest.skip('the system forgets no peak')
    before = machine.peak()
    threads.scratch('test', (size,), 'uint8').fill(1)
    after = machine.peak()
    threads.free_scratch()
    assert after > before + 0.9 * size
