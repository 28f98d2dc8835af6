"""CUDA kernels as data: which to launch, on how many threads, with what.

A launch is made by pure functions of arrays and run by `launch` on a GPU; the tests run
the same launches on the CPU. Kernels are files in `kernels`, compiled at run time for
the card that is there.
"""

import contextlib
import contextvars
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KERNELS = Path(__file__).with_name('kernels')
THREADS = 128  # a block's
OPTIONS = ('--std=c++17', f'-DTHREADS={THREADS}')
TYPES = {  # of arrays, as CUDA names them
    'float16': '__half',
    'bfloat16': '__nv_bfloat16',
    'float32': 'float',
    'float64': 'double',
    'int32': 'int',
    'int64': 'long long',
}

_deterministic = contextvars.ContextVar('deterministic', default=False)


class Launch(NamedTuple):
    """A kernel and all it is launched with.

    Parameters
    ----------
    source : str
        File in `kernels`.
    kernel : str
        Name with template arguments: 'forward_v1<float, float>'.
    blocks : int
        Of THREADS threads each.
    args : tuple
        Arrays, C-contiguous, and NumPy scalars of the kernel's types: nobody checks.
    """

    source: str
    kernel: str
    blocks: int
    args: tuple[Any, ...]


@contextlib.contextmanager
def deterministic(on=True):
    """Within the block the same arguments give the same bits, at some cost in time.

    Parameters
    ----------
    on : bool
        False lifts it again, inside another such block.

    Yields
    ------
    None
        At the block's end what held before holds again.
    """
    token = _deterministic.set(on)
    try:
        yield
    finally:
        _deterministic.reset(token)


def is_deterministic():
    """Return whether sums must be made in the same order each time.

    Returns
    -------
    bool
        Set by `deterministic`; False outside its blocks.
    """
    return _deterministic.get()


@functools.cache
def source(name):
    """Return a kernel's source with our own headers put in, each once.

    CuPy keeps compiled kernels by their source: a header changed beside it would go
    unseen.

    Parameters
    ----------
    name : str
        File in `kernels`.

    Returns
    -------
    str
        With #line directives, so that errors name the file and line they are in.
    """
    seen = set()

    def read(name):
        seen.add(name)
        lines = []
        text = (KERNELS / name).read_text(encoding='utf-8')
        for n, line in enumerate(text.splitlines(), 1):
            header = re.fullmatch(r'#include "(.+)"', line)
            if header is None:
                lines.append(line)
            elif header[1] not in seen:
                lines += read(header[1]) + [f'#line {n + 1} "{name}"']
        return [f'#line 1 "{name}"', *lines]

    return '\n'.join(read(name)) + '\n'


def template(name, *arguments):
    """Return 'name<arguments>', as C++ spells them.

    Parameters
    ----------
    name : str
        A kernel template's.
    *arguments : dtype, bool or int
        Dtypes, of TYPES, get CUDA's names; bool and int are taken as they are.

    Returns
    -------
    str
        What `Launch.kernel` takes.
    """

    def spell(argument):
        if isinstance(argument, bool):
            return str(argument).lower()
        return str(argument) if isinstance(argument, int) else TYPES[argument.name]

    return f'{name}<{", ".join(map(spell, arguments))}>'


def channels(Cv, itemsize):
    """Return (V, lanes): channels a thread has, and threads for a head.

    V channels fill 16 bytes, or what divides Cv. Lanes are a power of two that shares a
    warp, enough for Cv if 32 are.

    Parameters
    ----------
    Cv : int
        Channels of a head.
    itemsize : int
        Bytes of a channel.

    Returns
    -------
    V, lanes : int
        A head has more than V · lanes channels where it needs over 32 threads.
    """
    V = 16 // itemsize
    while Cv % V:
        V //= 2
    return V, min(32, 1 << (Cv // V - 1).bit_length())


def launch(xp, *launches):
    """Run launches, one after the other, on the current device.

    Parameters
    ----------
    xp : module
        CuPy.
    *launches : Launch
        In this order; arguments on the current device.
    """
    device = xp.cuda.Device().id
    for source_, kernel, blocks, args in launches:
        _function(xp, device, source_, kernel)((blocks,), (THREADS,), args)


@functools.cache
def _function(xp, device, name, kernel):
    """A compiled kernel, loaded on a device. CuPy keeps it on disk, by the card."""
    module = xp.RawModule(
        code=source(name), options=OPTIONS, name_expressions=(kernel,)
    )
    return module.get_function(kernel)


def blocks(threads):
    """Return how many blocks have as many threads.

    Parameters
    ----------
    threads : int
        At least so many; a block has THREADS.

    Returns
    -------
    int
    """
    return -(-threads // THREADS)


def contiguous(xp, a):
    """Return `a` as the kernels need it: C-contiguous, from a multiple of 16 bytes on.

    Parameters
    ----------
    xp : module
        The array's library.
    a : array
        Copied only if it is not so.

    Returns
    -------
    like a
    """
    a = xp.ascontiguousarray(a)
    return a.copy() if address(a) % 16 else a


def address(a):
    """Return where in memory an array begins.

    Parameters
    ----------
    a : array
        NumPy's, or CuPy's.

    Returns
    -------
    int
        Address in bytes, on the host or the device.
    """
    if isinstance(a, np.ndarray):
        return a.ctypes.data
    return a.data.ptr
