"""One pool of threads for what is cut into tiles.

Tiles are a function of the arrays' shapes alone and write to places of their own, so
that the number of threads changes the time and not one bit of the result. While tiles
run, the BLAS has one thread: its own would fight the pool for the cores.
"""

import contextlib
import contextvars
import ctypes
import functools
import itertools
import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

from .errors import InputError

LINE = 64  # bytes of a cache line: rows that begin with one are read with fewer

_busy = contextvars.ContextVar('busy', default=False)
_scratch = threading.local()


class _Pool:
    """The executor and its size; made anew after a fork, which copies no threads."""

    def __init__(self, size=None):
        self.size = size
        self.executor = None
        self.lock = threading.Lock()


class _Blas:
    """The BLAS's own threads, held at a number while anybody's block runs."""

    def __init__(self, n=1):
        self.n = n
        self.before = []
        self.users = 0
        self.lock = threading.Lock()

    def __enter__(self):
        with self.lock:
            if self.users == 0:
                self.before = [b.get_num_threads() for b in _blas_libraries()]
                self._set([self.n] * len(self.before))
            self.users += 1

    def __exit__(self, *error):
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self._set(self.before)

    def _set(self, numbers):
        for library, n in zip(_blas_libraries(), numbers):
            _let_any_thread_set(library)
            library.set_num_threads(n)
            _let_any_thread_set(library)


def _let_any_thread_set(library):
    # from threadpoolctl 3.8 on, OpenBLAS obeys the thread that set a number first, as
    # long as that lives, and no other; but whose block begins or ends last is not known
    clear = getattr(library, 'clear_controlling_thread', None)
    if clear is not None:
        clear(force=True)


@functools.cache  # looking through the process takes milliseconds
def _blas_libraries():
    return ThreadpoolController().select(user_api='blas').lib_controllers


_pool = _Pool()
_blas = _Blas()


def _after_fork():
    # the parent's other threads, and the locks they may hold, are not here
    global _pool, _blas
    if _blas.users:
        _blas._set(_blas.before)
    _pool, _blas = _Pool(_pool.size), _Blas()
    _busy.set(False)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def get_threads():
    """Return the number of threads, the caller's among them.

    That is what `set_threads` was told, else `DDETR_NP_THREADS`, else the number of
    cores this process may use; 1 in a browser, where no thread can start.

    Returns
    -------
    int
        1 or more.

    Raises
    ------
    InputError
        `DDETR_NP_THREADS` is no number above 0.
    """
    if _pool.size is None:
        _pool.size = _default()
    return _pool.size


def _default():
    if sys.platform == 'emscripten':
        return 1
    asked = os.environ.get('DDETR_NP_THREADS', '').strip()
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise InputError(
                f'DDETR_NP_THREADS is {asked!r}; expected a number, 1 or more'
            )
        return int(asked)
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(n=None):
    """Set the number of threads.

    Parameters
    ----------
    n : int or None
        1 or more; None goes back to the default of `get_threads`.

    Raises
    ------
    InputError
        `n` is less than 1 or no integer.
    """
    global _pool
    if n is not None and (isinstance(n, bool) or not hasattr(n, '__index__') or n < 1):
        raise InputError(f'threads is {n!r}; expected a number of threads, 1 or more')
    old, _pool = _pool, _Pool(None if n is None else int(n))
    if old.executor is not None:
        old.executor.shutdown(wait=False)  # what it runs is run to its end


@contextlib.contextmanager
def limit(n):
    """Use `n` threads within the block.

    Parameters
    ----------
    n : int or None
        As for `set_threads`.

    Yields
    ------
    None
        The setting from before is back when the block ends.
    """
    before = _pool.size
    set_threads(n)
    try:
        yield
    finally:
        set_threads(before)


@contextlib.contextmanager
def part_of(processes):
    """Use one process's share of the threads within the block, the BLAS's too.

    Parameters
    ----------
    processes : int
        How many share this one's threads; with 1 nothing changes.

    Yields
    ------
    None
        The setting from before is back when the block ends.
    """
    if processes == 1:
        yield
        return
    n = max(1, get_threads() // processes)
    with limit(n), _Blas(n):
        yield


def run(function, tasks):
    """Call `function(task)` for each task, on the pool's threads and the caller's.

    Tasks are taken in order but end in any; each must write to places of its own.
    Inside a task, another `run` is serial. Tasks see the caller's context variables.

    Parameters
    ----------
    function : callable
        Takes a task; what it returns is dropped.
    tasks : sequence
        Of anything, such as slices from `tiles`.

    Raises
    ------
    Exception
        The first that a task raised; the tasks not yet begun are left out.
    """
    if _busy.get():
        for task in tasks:
            function(task)
        return
    token = _busy.set(True)
    try:
        with _blas:
            _share(function, tasks)
    finally:
        _busy.reset(token)


def _share(function, tasks):
    tickets = itertools.count()  # next() is atomic: each task is taken once
    errors = []

    def work():
        for i in tickets:
            if i >= len(tasks) or errors:
                return
            try:
                function(tasks[i])
            except BaseException as error:
                errors.append(error)

    helpers = [_submit(work) for _ in range(min(get_threads(), len(tasks)) - 1)]
    work()
    for helper in helpers:
        # one that has not woken yet has nothing left to do
        if helper is not None and not helper.cancel():
            helper.result()
    if errors:
        raise errors[0]


def _submit(work):
    """Start a helper; None where threads cannot start, and the caller does all."""
    pool = _pool
    try:
        with pool.lock:
            if pool.executor is None:
                pool.executor = ThreadPoolExecutor(get_threads(), 'ddetr_np')
        return pool.executor.submit(contextvars.copy_context().run, work)
    except RuntimeError:
        if pool is _pool:  # else another thread has changed the pool meanwhile
            pool.size = 1
        return None


def quiet_blas():
    """Return a context that holds the BLAS's own threads at one, as while tiles run.

    Returns
    -------
    context manager
        May be entered by several threads; the last to leave gives the BLAS's own
        threads back.
    """
    return _blas


def keep_freed_memory():
    """Have the C library keep what arrays free for the arrays to come.

    It would give large arrays back to the system at once and fetch pages anew, zeroed,
    at each step: a tenth of a training pass, up to a fifteenth of an inference. This is
    for the whole process, so the package never calls it unasked; the commands `train`,
    `detect`, `evaluate` and `bench` do. The peak stays the same, but what was freed is
    the process's until it ends.

    Returns
    -------
    bool
        False where there is nothing to set: not Linux, or another C library than glibc.
    """
    if not sys.platform.startswith('linux'):
        return False
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return False
    largest = 2**31 - 1
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    set_mmap = mallopt(M_MMAP_THRESHOLD, 1 << 30)  # more is refused
    return bool(set_mmap and mallopt(M_TRIM_THRESHOLD, largest))


def tiles(n, size):
    """Return slices of at most `size` that cover range(n).

    Parameters
    ----------
    n : int
        Length of what is cut.
    size : number
        Rounded down, and at least 1.

    Returns
    -------
    list of slice
        In order; all but the last of the full size. Empty if `n` is 0.
    """
    size = max(1, int(size))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def even_tiles(n, size, multiple=1):
    """Return slices of about `size` that cover range(n), nearly equally long.

    Parameters
    ----------
    n : int
        Length of what is cut.
    size : number
        At most so long, but for rounding up to `multiple`.
    multiple : int
        Of which each slice's start is one.

    Returns
    -------
    list of slice
        In order; one, two or as many as four divides, that as many threads end at
        once. Empty if `n` is 0.
    """
    units = -(-n // multiple)
    count = math.ceil(n / max(1, size))
    if count > 2:
        count = -(-count // 4) * 4
    count = max(1, min(count, units))
    ends = [i * units // count * multiple for i in range(count + 1)]
    return [slice(a, min(b, n)) for a, b in itertools.pairwise(ends) if a < n]


def tapering_tiles(n, size, least=1, multiple=1):
    """Return slices that cover range(n), shorter and shorter towards the end.

    Threads that are not equally quick, as cores seldom are, then wait for each other no
    longer than a short tile takes.

    Parameters
    ----------
    n : int
        Length of what is cut. If it is no more than `size`, it is left whole.
    size : number
        Of the longest slices.
    least : number
        Of the shortest; of the longest, too, if it is more than `size`.
    multiple : int
        Of which each slice's start is one.

    Returns
    -------
    list of slice
        In order: a quarter of what is left each time, within the bounds, which are
        rounded up to `multiple`. Empty if `n` is 0.
    """
    slices, start = [], 0
    while start < n:
        left = n - start
        step = left if n <= size else max(1, least, min(size, left / 4))
        stop = start + math.ceil(step / multiple) * multiple
        slices.append(slice(start, min(stop, n)))
        start = stop
    return slices


def scratch(name, shape, dtype):
    """Return an array of this thread's own, its contents undefined.

    The memory is kept and handed out again for the same name: pages fresh from the
    system cost more than many a tile's arithmetic.

    Parameters
    ----------
    name : str
        Two arrays in use at once need two names.
    shape : tuple of int
        Of the array; another one for the same name takes the same memory.
    dtype : dtype
        What `numpy.dtype` takes.

    Returns
    -------
    numpy.ndarray
        Contiguous, from the start of a cache line. Good until the next call with the
        name.
    """
    buffers = vars(_scratch)
    if name not in buffers:
        buffers[name] = _Scratch()
    return buffers[name].array(tuple(shape), dtype)


def free_scratch():
    """Give up the memory of `scratch`, all threads'; for when nothing is at work.

    It is as much as the largest pass so far asked for, 0.1 GB and more at 800 × 1066.
    """
    global _scratch
    _scratch = threading.local()


class _Scratch:
    """Memory for arrays of one name, and the arrays of it that were asked for."""

    VIEWS = 64  # kept at most: pictures of many sizes ask for many shapes

    def __init__(self):
        self.memory = np.empty(0, np.uint8)
        self.views = {}

    def array(self, shape, dtype):
        """Return an array in the memory; tiles ask for the same ones many times."""
        found = self.views.get((shape, dtype))
        if found is not None:
            return found
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.memory.size < size or len(self.views) == self.VIEWS:
            self.views.clear()
        if self.memory.size < size:
            whole = np.empty(size + LINE, np.uint8)
            start = -whole.ctypes.data % LINE
            self.memory = whole[start : start + size]
        made = self.memory[:size].view(dtype).reshape(shape)
        self.views[shape, dtype] = made
        return made
