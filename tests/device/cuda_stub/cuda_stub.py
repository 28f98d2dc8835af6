"""CuPy itself where there is no GPU: CUDA below it is a stub (`cuda.c`).

What CuPy's Python and Cython do is real: conversions, views, allocators, streams, what
is refused during a capture. No kernel runs and none is compiled, so that arrays hold
zeros, or what was copied to them. The double (`cupy_double`) is the other half: it has
the numbers, and only as much of CuPy as was written down.
"""

import ctypes
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

RET_ZERO = b'\x31\xc0\xc3'  # xor eax, eax; ret
TO_BE_CUPYS = {'cudaRuntimeGetVersion', 'cudaGetErrorName', 'cudaGetErrorString'}
RWX = 7


class LackingError(Exception):
    """What the stub needs is not there."""


def build(folder):
    """Compile the stubs of CUDA and cuBLAS.

    Parameters
    ----------
    folder : Path
        For the libraries.

    Raises
    ------
    LackingError
        No compiler, or a wheel of CuPy that was built otherwise.
    """
    try:
        code = Path(__file__).with_name('cuda.c').read_text()
        _compile(code, folder / 'libcuda.so.1')
        extension = next(_cupy_backends().glob('cuda/libs/cublas.*.so'))
        wanted = re.findall(r'U (cublas\w+)@(\S+)', _run('nm', '-D', extension))
        if not wanted:
            raise LackingError('CuPy asks for cuBLAS in an unknown way')
        names, (version, *others) = {n for n, _ in wanted}, {v for _, v in wanted}
        assert not others
        # what our own calls need besides; all do nothing, and succeed
        names |= {'cublasSetWorkspace_v2'}
        code = '\n'.join(f'int {name}() {{ return 0; }}' for name in sorted(names))
        _compile(code, folder / version, f'{version} {{ global: *; }};')
        _compile('', folder / version.replace('cublas', 'cublasLt'))
    except FileNotFoundError as error:
        raise LackingError(f'{error.filename} is not there') from error


def _cupy_backends():
    from importlib.util import find_spec

    return Path(find_spec('cupy_backends').origin).parent


def _run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _compile(code, library, versions=None):
    source = library.with_suffix('.c')
    source.write_text(code)
    options = ['-shared', '-fPIC', '-w', f'-Wl,-soname,{library.name}']
    if versions:
        script = library.with_suffix('.map')
        script.write_text(versions)
        options.append(f'-Wl,--version-script={script}')
    _run(os.environ.get('CC', 'cc'), *options, str(source), '-o', str(library))


def load(folder):
    """Put the stubs under CuPy in this process, which has not imported it yet.

    Parameters
    ----------
    folder : Path
        Of `build`.

    Returns
    -------
    ctypes.CDLL
        The stub, with `stub_held`, `stub_log` and `stub_forget`.
    """
    assert 'cupy' not in sys.modules
    os.environ['CUPY_ACCELERATORS'] = ''  # CUB has a runtime of its own
    stub = None
    for library in sorted(folder.glob('lib*.so.*'), reverse=True):
        if library.suffix not in ('.c', '.map'):
            loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            stub = loaded if library.name.startswith('libcuda.') else stub
    _redirect(stub)
    _compile_nothing()
    return stub


def _redirect(stub):
    """The runtime's functions, linked into CuPy, jump to the stub's, or return 0."""
    import cupy_backends.cuda.api.runtime as runtime

    path = runtime.__file__
    maps = Path('/proc/self/maps').read_text().splitlines()
    base = min(int(line.split('-')[0], 16) for line in maps if path in line)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    symbols = re.findall(
        r'^(\w+) (\w+) [tT] (cuda[A-Z]\w+)$', _run('nm', '-S', path), re.M
    )
    if not symbols:
        raise LackingError("CuPy's wheel does not tell where the runtime is")
    for offset, size, name in symbols:
        if name in TO_BE_CUPYS:
            continue
        own, code = getattr(stub, f'stub_{name}', None), RET_ZERO
        if own is not None:
            to = struct.pack('<Q', ctypes.cast(own, ctypes.c_void_p).value)
            code = b'\x48\xb8' + to + b'\xff\xe0'  # movabs rax, to; jmp rax
        if int(size, 16) >= len(code):
            at = base + int(offset, 16)
            assert protect(ctypes.c_void_p(at & ~4095), 8192, RWX) == 0
            ctypes.memmove(at, code, len(code))


def _compile_nothing():
    """Kernels have their names and no code."""
    from cupy.cuda import compiler, function

    def compiled(source, options=(), *args, name_expressions=None, **kwargs):
        module = function.Module()
        module.load(b'')
        module._set_mapping({name: name for name in name_expressions or ()})
        return module

    compiler._compile_module_with_cache = compiled


def log(stub):
    """Return the lines noted so far, and forget them."""
    address = ctypes.addressof(ctypes.c_char.in_dll(stub, 'stub_log'))
    lines = ctypes.string_at(address).decode().splitlines()
    stub.stub_forget()
    return lines


def held(stub):
    """Return the bytes of device memory that are taken."""
    return ctypes.c_long.in_dll(stub, 'stub_held').value
