"""What a benchmark ran on: without it a figure says little."""

import os
import platform
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from ddetr_np import threads


def processor():
    """Return the processor's name."""
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe():
    """Return the machine, the libraries and what their environment asks for."""
    lines = [
        f'{processor()}, {os.cpu_count()} cores, {threads.get_threads()} threads used; '
        f'{platform.system()}, Python {platform.python_version()}, '
        f'NumPy {np.__version__}'
    ]
    lines += [
        f'{p["internal_api"]} {p["version"]}, {p.get("architecture")} kernels, '
        f'{p["num_threads"]} threads'
        for p in threadpool_info()
        if p['user_api'] == 'blas'
    ]
    asked = [
        f'{k}={v}'
        for k, v in sorted(os.environ.items())
        if k.startswith(('OPENBLAS_', 'OMP_', 'MKL_', 'DDETR_NP_THREADS'))
    ]
    if hasattr(os, 'getloadavg'):
        lines.append(f'load {os.getloadavg()[0]:.1f} before the runs')
    return '\n'.join([*lines, *asked])
