"""The machine that figures were measured on, and its own speeds."""

import ctypes
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .. import __version__, threads
from ..backend import get_xp, gpus, held_memory, to_device, wait

COPIED = 1 << 28  # bytes of an array to copy: many times any cache
SETTINGS = ('OPENBLAS_', 'OMP_', 'MKL_', 'DDETR_NP_')  # variables that change speeds
TILE = 1 << 20  # of it, in bytes: what a thread takes at a time
TRIES = 100  # of a small product
WORK = 10**9  # floating-point operations of all tries together, if `runs` are fewer


def describe(device='cpu'):
    """Return {what: text} of the processor, the cores, the libraries, and a GPU.

    Parameters
    ----------
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Returns
    -------
    dict of str → str
        With 'GPU' first, its name and memory, where the device is one.
    """
    import scipy.linalg  # its BLAS is loaded and listed
    from threadpoolctl import threadpool_info

    blas = []
    for pool in threadpool_info():
        if pool['user_api'] == 'blas':
            kind = f'{pool["internal_api"]} {pool["version"]}'
            core = pool.get('architecture') or 'unknown core'
            owner = Path(pool['filepath']).parent.name
            blas.append(f'{kind} ({core}), {pool["num_threads"]} threads, {owner}')
    gpu = {}
    if device != 'cpu':
        name, memory, _ = gpus()[int(device.partition(':')[2] or 0)]
        gpu['GPU'] = f'{name}, {memory / 2**30:.0f} GiB'
    return gpu | {
        'processor': _processor(),
        'cores': str(_cores()),
        'system': platform.platform(),
        'python': platform.python_version(),
        'numpy': np.__version__,
        'scipy': scipy.__version__,
        'ddetr-np': f'{__version__}, {threads.get_threads()} threads',
        'BLAS': '; '.join(blas),
        'environment': ', '.join(
            f'{k}={v}' for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)
        ),
    }


def _processor():
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
        command = ['sysctl', '-n', 'machdep.cpu.brand_string']
        return subprocess.check_output(command, text=True).strip()
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or platform.machine()


def _cores():
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def load():
    """Return how many processes wanted to run in the last minute, or None.

    Returns
    -------
    float or None
        A mean over that minute; None where the system does not tell (Windows).
    """
    return os.getloadavg()[0] if hasattr(os, 'getloadavg') else None


def timed(function, device='cpu'):
    """Return the seconds that a call takes, until the device has done its work.

    Parameters
    ----------
    function : callable
        Called once, without arguments.
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Returns
    -------
    float
        Without what the device had been asked to do before.
    """
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def product_seconds(m, k, n, dtype, runs=5, device='cpu'):
    """Return the least seconds of a product of an (m, k) and a (k, n) matrix.

    NumPy's, or CuPy's on a GPU. The least of some runs: a floor is what the machine can
    do when left alone. Small products have more of them, up to `TRIES`: on a busy
    machine their threads wait for each other hundreds of times as long as they work.

    Parameters
    ----------
    m, k, n : int
        Rows, summed axis and columns.
    dtype : dtype
        Of both matrices and the product.
    runs : int
        How many are timed at least, after one that is not.
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Returns
    -------
    float
        Seconds of one product.
    """
    rng = np.random.default_rng(0)
    a, b = (
        to_device(rng.standard_normal(s, np.float32).astype(dtype), device)
        for s in ((m, k), (k, n))
    )
    xp = get_xp(a)
    out = xp.empty((m, n), dtype)

    def product():
        xp.matmul(a, b, out=out)

    timed(product, device)  # the first call pays for pages and threads
    tries = min(TRIES, WORK // max(1, 2 * m * k * n))
    return min(timed(product, device) for _ in range(max(runs, tries)))


def copy_rate(runs=5, device='cpu'):
    """Return bytes a second, read and written, of copying what no cache holds.

    The quickest of some runs, as for products.

    Parameters
    ----------
    runs : int
        How many are timed, after one that is not.
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Returns
    -------
    float
        Each byte counts twice: once read, once written.
    """
    a, b = (to_device(np.ones(COPIED, np.uint8), device) for _ in range(2))

    def copy():
        if device != 'cpu':
            get_xp(b).copyto(b, a)
            return

        def task(part):
            b[part] = a[part]

        threads.run(task, threads.tiles(COPIED, TILE))

    copy()
    return 2 * COPIED / min(timed(copy, device) for _ in range(runs))


def reset_peak(device='cpu'):
    """Forget the most memory that was held so far; say whether that is possible.

    On a GPU it is, and of this process on Linux; elsewhere the peak of a part of the
    work is not to be had.

    Parameters
    ----------
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Returns
    -------
    bool
        Whether `peak` will tell of what comes next alone.
    """
    if device != 'cpu':
        held_memory(device, free=True)
        return True
    threads.free_scratch()  # of other parts
    try:
        if hasattr(ctypes.CDLL(None), 'malloc_trim'):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        Path('/proc/self/clear_refs').write_text('5')
    except (OSError, TypeError):  # Windows has no library called None
        return False
    return True


def peak(device='cpu'):
    """Return the most bytes that were held, or None if unknown.

    By this process; of a GPU, by CuPy.

    Parameters
    ----------
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Returns
    -------
    int or None
        Since `reset_peak` if that was possible, else since the process began.
    """
    if device != 'cpu':
        return held_memory(device)
    if sys.platform == 'win32':
        return None
    try:
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM'):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == 'darwin' else most * 1024
