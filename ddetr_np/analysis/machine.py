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

COPIED = 1 << 28  # bytes of an array to copy: many times any cache
SETTINGS = ('OPENBLAS_', 'OMP_', 'MKL_', 'DDETR_NP_')  # variables that change speeds
TILE = 1 << 20  # of it, in bytes: what a thread takes at a time


def describe():
    """Return {what: text} of the processor, the cores and the libraries."""
    import scipy.linalg  # its BLAS is loaded and listed
    from threadpoolctl import threadpool_info

    blas = []
    for pool in threadpool_info():
        if pool['user_api'] == 'blas':
            kind = f'{pool["internal_api"]} {pool["version"]}'
            core = pool.get('architecture') or 'unknown core'
            owner = Path(pool['filepath']).parent.name
            blas.append(f'{kind} ({core}), {pool["num_threads"]} threads, {owner}')
    return {
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
    """Return how many processes wanted to run in the last minute, or None."""
    return os.getloadavg()[0] if hasattr(os, 'getloadavg') else None


def timed(function):
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def product_seconds(m, k, n, dtype, runs=5):
    """Return the least seconds of NumPy's product of an (m, k) and a (k, n) matrix.

    The least of some runs: a floor is what the machine can do when left alone.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s, np.float32).astype(dtype) for s in ((m, k), (k, n)))
    out = np.empty((m, n), dtype)
    # the first call pays for pages and threads
    seconds = [timed(lambda: np.matmul(a, b, out=out)) for _ in range(runs + 1)]
    return min(seconds[1:])


def copy_rate(runs=5):
    """Return bytes a second, read and written, of copying what no cache holds.

    The quickest of some runs, as for products.
    """
    a, b = (np.ones(COPIED, np.uint8) for _ in range(2))

    def copy():
        def task(part):
            b[part] = a[part]

        threads.run(task, threads.tiles(COPIED, TILE))

    copy()
    return 2 * COPIED / min(timed(copy) for _ in range(runs))


def reset_peak():
    """Forget the most memory that this process has held; say whether that is possible.

    Linux can; elsewhere the peak of a part of the work is not to be had.
    """
    try:
        if hasattr(ctypes.CDLL(None), 'malloc_trim'):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        Path('/proc/self/clear_refs').write_text('5')
    except (OSError, TypeError):  # Windows has no library called None
        return False
    return True


def peak():
    """Return the most bytes that this process has held, or None if unknown."""
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
