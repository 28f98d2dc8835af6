"""Calling a function ahead of time in other processes, results in order."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from threadpoolctl import threadpool_limits

from ..errors import InputError

_work = None  # a worker's own function, sent once rather than with each job


def _begin(function):
    global _work
    _work = function
    # Ctrl-C and what else is sent to the whole group are the parent's affair, which
    # ends its workers in good order
    if hasattr(os, 'setsid'):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threadpool_limits(1)  # the cores belong to the training
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    # a parent that was killed says nothing, and its workers would wait for ever
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _without_interrupts():
    """Hold Ctrl-C back; processes begun here hold it back until they say otherwise."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _explained():
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            'a worker process has ended unexpectedly. The memory may not be enough for '
            'so many: use fewer. In a program of your own, guard its main part by: '
            "if __name__ == '__main__'"
        ) from error


def _nothing():
    """Be called, so that the process begins."""


def _call(job):
    return _work(job)


class Pool:
    """Processes that run one function; none where `workers` is 0.

    Parameters
    ----------
    function : callable
        It and its results travel by pickle.
    workers : int
        0 runs the function in this process.
    """

    def __init__(self, function, workers):
        self.function = function
        self._executor = None
        if workers:
            self._executor = ProcessPoolExecutor(
                workers, multiprocessing.get_context('spawn'), _begin, (function,)
            )
            # all at once: one that Ctrl-C met while it was still importing would
            # print a traceback of its own
            with _without_interrupts():
                for _ in range(workers):
                    self._executor.submit(_nothing)

    def submit(self, job):
        """Begin function(job) in a process; there must be one.

        Parameters
        ----------
        job : object
            It travels by pickle.

        Returns
        -------
        concurrent.futures.Future
            For `result`.

        Raises
        ------
        InputError
            The process has died.
        """
        with _explained():
            return self._executor.submit(_call, job)

    @staticmethod
    def result(future):
        """Wait for what the function returns.

        Parameters
        ----------
        future : concurrent.futures.Future
            From `submit`.

        Returns
        -------
        result
            By pickle.

        Raises
        ------
        Exception
            Whatever the function raised.
        InputError
            The process has died.
        """
        with _explained():
            return future.result()

    def map(self, jobs, window):
        """Yield function(job) for each job, in order.

        Parameters
        ----------
        jobs : iterable
            Each travels by pickle too.
        window : int
            At most so many are begun before their results are taken.

        Yields
        ------
        result
            What the function returned.

        Raises
        ------
        Exception
            Whatever the function raised, when its turn comes.
        InputError
            A worker has died.
        """
        if self._executor is None:
            yield from map(self.function, jobs)
            return
        jobs, pending = iter(jobs), deque()
        try:
            while True:
                for job in jobs:
                    pending.append(self.submit(job))
                    if len(pending) >= window:
                        break
                if not pending:
                    return
                yield self.result(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def close(self):
        """End the processes; what they have begun is finished and thrown away."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
