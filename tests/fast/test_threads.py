"""The pool: everything is done, nothing twice, errors come out, forks live on."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from ddetr_np import backend, threads
from ddetr_np.errors import InputError


@pytest.mark.parametrize('n', [1, 2, 5])
def test_each_task_is_run_once(n):
    done = []
    with threads.limit(n):
        threads.run(done.append, range(100))
        threads.run(done.append, [])
    assert sorted(done) == list(range(100))


def test_the_caller_and_the_pool_share():
    barrier = threading.Barrier(2, timeout=20)
    with threads.limit(2):  # one thread alone would wait for ever
        threads.run(lambda _: barrier.wait(), range(2))


def test_a_run_inside_a_task_is_serial():
    seen = []

    def outer(i):
        here = threading.get_ident()
        threads.run(lambda _: seen.append(threading.get_ident() == here), range(10))

    with threads.limit(2):
        threads.run(outer, range(6))
    assert seen == [True] * 60


def test_an_error_comes_out_and_the_pool_goes_on():
    def task(i):
        if i == 3:
            raise ZeroDivisionError(i)

    with threads.limit(2):
        with pytest.raises(ZeroDivisionError):
            threads.run(task, range(1000))
        done = []
        threads.run(done.append, range(10))
    assert len(done) == 10


def test_tasks_see_the_callers_context():
    seen = []
    barrier = threading.Barrier(2, timeout=20)

    def task(i):
        barrier.wait()
        seen.append(backend._plain.get())

    with threads.limit(2), backend.plain():
        threads.run(task, range(2))
    assert seen == [True, True]


def test_the_blas_has_one_thread_inside_and_its_own_after():
    from threadpoolctl import threadpool_info

    def numbers():
        return [p['num_threads'] for p in threadpool_info() if p['user_api'] == 'blas']

    before, inside = numbers(), []
    with threads.limit(2):
        threads.run(lambda _: inside.append(numbers()), range(1))
    assert inside[0] == [1] * len(before)
    assert numbers() == before


def test_any_thread_can_quieten_the_blas():
    from threadpoolctl import threadpool_info, threadpool_limits

    def numbers():
        return [p['num_threads'] for p in threadpool_info() if p['user_api'] == 'blas']

    if not numbers():
        pytest.skip('needs a BLAS that threadpoolctl knows')

    def in_another_thread(function):
        thread = threading.Thread(target=function)
        thread.start()
        return thread

    with threadpool_limits(2, 'blas'):
        before, seen = numbers(), []
        inside, leave = threading.Event(), threading.Event()

        def other():
            with threads.quiet_blas():
                seen.append(numbers())
                inside.set()
                leave.wait(20)

        with threads.quiet_blas():  # it begins first, and ends first
            thread = in_another_thread(other)
            assert inside.wait(20)
        assert numbers() == seen[0] == [1] * len(before)
        leave.set()
        thread.join(20)
        assert numbers() == before
        in_another_thread(other).join(20)  # alone, after the main thread
        assert seen[1] == seen[0]
        assert numbers() == before

        def limited():  # another library's, which is not kept out
            with threadpool_limits(1, 'blas'):
                seen.append(numbers())

        in_another_thread(limited).join(20)
        assert seen[2] == seen[0]


def test_serial_where_threads_cannot_start(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, 'start', start)
    done = []
    with threads.limit(4):
        threads.run(done.append, range(10))
        assert threads.get_threads() == 1
    assert done == list(range(10))


def test_one_thread_in_a_browser(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'emscripten')
    with threads.limit(None):
        assert threads.get_threads() == 1


def test_the_environment_sets_the_number(monkeypatch):
    with threads.limit(None):
        monkeypatch.setenv('DDETR_NP_THREADS', '3')
        assert threads.get_threads() == 3
    for wrong in ('0', 'two', '-1'):
        monkeypatch.setenv('DDETR_NP_THREADS', wrong)
        with threads.limit(None), pytest.raises(InputError, match='DDETR_NP_THREADS'):
            threads.get_threads()


@pytest.mark.parametrize('n', [0, -2, 1.5, True, 'two'])
def test_a_wrong_number_is_refused(n):
    with pytest.raises(InputError, match='threads'):
        threads.set_threads(n)


def _in_child(queue):
    total = np.zeros(50)

    def task(i):
        total[i] = i

    threads.run(task, range(50))
    queue.put(total.sum())


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_forked_child_has_a_pool_of_its_own():
    with threads.limit(2):
        threads.run(lambda _: None, range(10))  # the parent's pool is up
        context = multiprocessing.get_context('fork')
        queue = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(queue,))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert queue.get() == sum(range(50))


def test_scratch_is_a_threads_own_and_kept():
    a = threads.scratch('test', (10,), 'float32')
    b = threads.scratch('test', (2, 3), 'float64')
    assert b.shape == (2, 3)
    assert not np.shares_memory(threads.scratch('other', (10,), 'float32'), a)
    address = threads.scratch('test', (10,), 'float32').ctypes.data
    assert threads.scratch('test', (5,), 'float32').ctypes.data == address
    assert threads.scratch('test', (0, 4), 'float32').shape == (0, 4)
    large = threads.scratch('test', (20, 3), 'float64')
    assert large.shape == (20, 3)
    again = threads.scratch('test', (10,), 'float32')  # in the new memory, as all are
    assert np.shares_memory(again, large)
    address = again.ctypes.data
    for n in range(1, 200):  # of many shapes only some are kept, all are right
        assert threads.scratch('test', (n, 2), 'uint8').shape == (n, 2)
    there = []
    worker = threading.Thread(
        target=lambda: there.append(threads.scratch('test', (5,), 'float32'))
    )
    worker.start()
    worker.join()
    assert there[0].ctypes.data != address


def test_scratch_of_all_threads_can_be_freed():
    memory = []
    together = threading.Barrier(2)

    def task(_):
        together.wait(30)  # each thread takes one
        base = threads.scratch('test', (10,), 'float32').base
        while base.base is not None:
            base = base.base
        memory.append(weakref.ref(base))

    with threads.limit(2):
        threads.run(task, range(2))
        assert len(memory) == 2
        gc.collect()
        assert all(ref() is not None for ref in memory)
        threads.free_scratch()
        gc.collect()
        assert all(ref() is None for ref in memory)
        assert threads.scratch('test', (3,), 'float32').shape == (3,)


def test_tiles_cover_everything():
    assert threads.tiles(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert threads.tiles(3, 0) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert threads.tiles(0, 4) == []


LENGTHS = [0, 1, 2, 3, 7, 50, 267, 17821]


def lengths(slices, n, multiple):
    """Check that slices cover range(n) in order, and return how long each is."""
    ends = [part.stop for part in slices]
    assert [part.start for part in slices] == [0, *ends][: len(slices)]
    assert (ends[-1:] or [0]) == [n]
    assert all(part.start % multiple == 0 for part in slices)
    return [part.stop - part.start for part in slices]


@pytest.mark.parametrize('n', LENGTHS)
@pytest.mark.parametrize('size', [0.3, 1, 4, 15.2, 1024])
@pytest.mark.parametrize('multiple', [1, 2, 16])
def test_even_tiles_are_nearly_equally_long(n, size, multiple):
    found = lengths(threads.even_tiles(n, size, multiple), n, multiple)
    assert all(found)
    if n:
        assert len(found) in (1, 2) or len(found) % 4 == 0 or max(found) <= multiple
        assert max(found) <= max(size, 1) + multiple
        assert max(found) - min(found[:-1], default=max(found)) <= multiple


@pytest.mark.parametrize('n', LENGTHS)
@pytest.mark.parametrize(
    ('size', 'least'), [(0.3, 0.1), (4, 1), (15.2, 3), (1024, 128)]
)
@pytest.mark.parametrize('multiple', [1, 2, 16])
def test_tapering_tiles_end_with_short_ones(n, size, least, multiple):
    found = lengths(threads.tapering_tiles(n, size, least, multiple), n, multiple)
    assert all(found)
    if 0 < n <= size:
        assert found == [n]
    assert found[:-1] == sorted(found[:-1], reverse=True)
    assert max(found, default=0) < max(size, 1) + multiple
    if n > 8 * size and size >= 4 * least:
        assert found[-2] <= max(least, multiple) + multiple


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason="the C library's own")
def test_freed_memory_is_kept():
    program = """if True:
        import resource
        import numpy as np
        from ddetr_np import threads

        kept = threads.keep_freed_memory()

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(1 << 23)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        first = faults()
        print(int(kept), first, faults())
    """
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    kept, first, second = map(int, done.stdout.split())
    if not kept:
        pytest.skip('another C library than glibc')
    assert second < first / 4
