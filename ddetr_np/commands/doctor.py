"""What this machine has for the package.

Only the standard library and click are taken for granted: the rest may be what is
missing.
"""

import configparser
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

import click

from .. import __version__

OPTIONAL = {  # module: (distributions, what it is for, command)
    'huggingface_hub': (
        ['huggingface_hub'],
        'load_model by a name on the Hugging Face hub',
        "pip install 'ddetr-np[hub]'",
    ),
    'tensorboardX': (
        ['tensorboardX'],
        "a training run's scalars for TensorBoard",
        "pip install 'ddetr-np[tensorboard]'",
    ),
    'pytest': (['pytest'], 'the tests', "pip install 'ddetr-np[test]'"),
}
CUPY = ['cupy-cuda13x', 'cupy-cuda12x', 'cupy']
CUDA_13 = 75  # compute capability 7.5: `backend.OLDEST`, which needs NumPy
MAJOR, MINOR = 75, 76  # the driver's names for the two parts of it


@click.command()
def doctor():
    """Show what is installed, what is missing, and the command that mends it."""
    lines = [*_system(), *_packages(), *_blas(), *_gpu()]
    wide = max(len(name) for name, _, _ in lines)
    for name, finding, _ in lines:
        click.echo(f'{name:{wide}}  {finding}')
    advice = list(dict.fromkeys(what for _, _, what in lines if what))
    click.echo()
    if advice:
        click.echo('To have what is missing:')
        for what in advice:
            click.echo(f'  {what}')
    else:
        click.echo('Nothing is missing.')


def _system():
    """Yield (name, finding, advice or None), as all of these do."""
    yield 'ddetr-np', __version__, None
    yield 'python', f'{platform.python_version()} ({sys.executable})', None
    yield 'system', platform.platform(), None
    yield 'processor', f'{platform.machine()}, {_cores()} cores to use', None
    total = _memory()
    yield 'memory', f'{total / 2**30:.1f} GiB' if total else 'unknown', None


def _cores():
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory():
    """Bytes that this process may have, or None."""
    limits = []
    if sys.platform == 'win32':
        status = (ctypes.c_uint64 * 8)()  # MEMORYSTATUSEX; two 32-bit fields come first
        ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            limits.append(status[1])
    else:
        try:
            limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
        except (ValueError, OSError):
            pass
        try:  # a container may allow less
            with open('/sys/fs/cgroup/memory.max') as file:
                limits.append(int(file.read()))
        except (OSError, ValueError):
            pass
    return min(limits, default=None)


def _packages():
    try:
        requirements = importlib.metadata.requires('ddetr-np') or []
    except importlib.metadata.PackageNotFoundError:
        yield 'package', 'not installed, run from its folder', 'pip install .'
        setup = configparser.ConfigParser()
        setup.read(Path(__file__).parents[2] / 'setup.cfg', encoding='utf-8')
        requirements = setup.get('options', 'install_requires', fallback='').split()
    for requirement in requirements:
        if 'extra ==' in requirement:
            continue
        name, _, least = re.match(r'([\w.-]+)\s*(>=\s*([\w.]+))?', requirement).groups()
        version = _version([name])
        if version is None:
            yield name, 'missing', f"pip install '{requirement}'"
        elif least and _numbers(version) < _numbers(least):
            yield name, f'{version}: too old', f"pip install '{requirement}'"
        else:
            yield name, version, None
    for names, purpose, command in OPTIONAL.values():
        version = _version(names)
        if version:
            yield names[0], version, None
        else:
            yield names[0], f'not installed; for {purpose}', command


def _version(names):
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _numbers(version):
    return [int(n) for n in re.findall(r'\d+', version)[:3]]


def _blas():
    try:
        import numpy  # noqa: F401  so that its BLAS is loaded
        import scipy.linalg  # noqa: F401  and SciPy's own
        from threadpoolctl import threadpool_info
    except ImportError as error:
        yield 'BLAS', f'unknown: {error}', None
        return
    for pool in threadpool_info():
        kind = pool['internal_api']
        if pool['user_api'] == 'blas':
            kind += f' {pool["version"]} ({pool.get("architecture") or "unknown core"})'
        owner = Path(pool['filepath']).parent.name  # numpy.libs, scipy.libs …
        threads = pool['num_threads']
        yield pool['user_api'].upper(), f'{kind}, {threads} threads, {owner}', None


def _gpu():
    driver, oldest = _cuda_driver() or (None, None)
    version = _version(CUPY)
    if driver is None:
        yield 'CUDA driver', 'none found; the CPU is used', None
    else:
        yield 'CUDA driver', f'for CUDA {driver // 1000}.{driver % 1000 // 10}', None
    if version is None:
        advice = None
        if driver:
            # the compiler of CUDA 13 knows no Volta, for which its driver still is
            known = oldest is None or oldest >= CUDA_13
            extra = 'gpu13' if driver >= 13000 and known else 'gpu12'
            advice = f"pip install 'ddetr-np[{extra}]'"
        yield 'CuPy', 'not installed; for --device cuda:0', advice
        return
    yield 'CuPy', version, None
    try:
        from ..backend import gpus

        for i, (name, memory, wrong) in enumerate(gpus()):
            finding = f'{name}, {memory / 2**30:.0f} GiB'
            yield f'cuda:{i}', f'{finding}: {wrong}' if wrong else finding, None
    except Exception as error:  # whatever a half-installed CUDA raises is the finding
        yield 'GPU', f'not usable: {error}', None


def _cuda_driver():
    """Return (the driver's CUDA, e.g. 13000; its oldest card, 70 for 7.0), or None.

    The second is None where there is no card.
    """
    try:
        if sys.platform == 'win32':
            library = ctypes.WinDLL('nvcuda.dll')
        else:
            library = ctypes.CDLL('libcuda.so.1')

        def ask(function, *args):
            answer = ctypes.c_int()
            status = getattr(library, function)(ctypes.byref(answer), *args)
            return None if status else answer.value

        version = ask('cuDriverGetVersion')
        if version is None:
            return None
        library.cuInit(0)
        cards = [ask('cuDeviceGet', i) for i in range(ask('cuDeviceGetCount') or 0)]
        capabilities = [
            10 * ask('cuDeviceGetAttribute', MAJOR, card)
            + ask('cuDeviceGetAttribute', MINOR, card)
            for card in cards
        ]
        return version, min(capabilities, default=None)
    except (OSError, AttributeError):
        return None
