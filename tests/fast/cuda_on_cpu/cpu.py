"""Runs launches of CUDA kernels on the CPU: their sources, unchanged, through g++."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from ddetr_np.fast import cuda

HERE = Path(__file__).parent
# no fused products, as NumPy has none; 900: all that the sources keep for newer cards
FLAGS = ('-std=c++17', '-O1', '-shared', '-fPIC', '-ffp-contract=off',
         '-Wno-unused', '-D__CUDA_ARCH__=900')  # fmt: skip


class MissingError(Exception):
    """There is no compiler."""


class Library:
    """NumPy; but empty arrays are filled, lest what stood there before be right."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype):
        return np.full(shape, np.nan if np.dtype(dtype).kind not in 'iu' else -1, dtype)


class Cpu:
    """A machine that runs launches.

    Parameters
    ----------
    folder : Path
        To compile in.
    launches : iterable of Launch
        What will be run: all their kernels are compiled at once.
    """

    xp = Library()
    name = 'cpu'

    def __init__(self, folder, launches):
        self.compiler = shutil.which('g++')
        if self.compiler is None:
            raise MissingError('needs g++')
        self.order = lambda blocks: np.arange(blocks)
        self.functions = {}
        kernels = {}
        for launch in launches:
            kernels.setdefault(launch.source, {})[launch.kernel] = None
        for source, names in kernels.items():
            self._compile(Path(folder), source, list(names))

    def _compile(self, folder, source, names):
        lines = ['#include "shim.h"', cuda.source(source)]
        for i, name in enumerate(names):
            lines += [
                f'extern "C" int run_{i}(int blocks, int threads, const int *order, ',
                'const void *const *args) {',
                f'return shim::launch({name}, blocks, threads, order, args);',
                '}',
            ]
        code, library = folder / f'{source}.cpp', folder / f'{source}.so'
        code.write_text('\n'.join(lines), encoding='utf-8')
        define = f'-DTHREADS={cuda.THREADS}'
        command = [self.compiler, *FLAGS, define, f'-I{HERE}', code, '-o', library]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        loaded = ctypes.CDLL(str(library))
        for i, name in enumerate(names):
            self.functions[name] = getattr(loaded, f'run_{i}')

    def run(self, *launches):
        for launch in launches:
            order = np.ascontiguousarray(self.order(launch.blocks), np.int32)
            held = [self._argument(a) for a in launch.args]
            args = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
            failed = self.functions[launch.kernel](
                launch.blocks, cuda.THREADS, ctypes.c_void_p(order.ctypes.data), args
            )
            assert not failed, f'{launch.kernel}: threads wait in vain'

    @staticmethod
    def _argument(a):
        """An array that holds the argument: a number, or where an array begins."""
        if isinstance(a, np.generic):
            return np.array(a)
        assert a.flags.c_contiguous
        return np.array(cuda.address(a), np.uint64)
