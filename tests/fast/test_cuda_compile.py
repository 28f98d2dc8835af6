"""Every CUDA kernel compiles for every card the compiler knows; the fast do not spill.

NVRTC needs no GPU and no driver. One card is done here, the others with `-m slow`.
"""

import functools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddetr_np.fast import cuda
from ddetr_np.fast import gpu_ms_deform_attn as gpu
from ddetr_np.fast.gpu_dropout import dropout_launch
from ddetr_np.fast.gpu_norm import layer_norm_backward_launch, layer_norm_launch
from ddetr_np.fast.gpu_top import top_launch
from ddetr_np.fast.gpu_update import adamw_launch
from ddetr_np.ops.ms_deform_attn import CoreCache

WANTED = [75, 80, 86, 89, 90]  # and newer ones, where the compiler knows them
OFTEN = 90
TYPES = [
    ('float32', 'float32'),
    ('float64', 'float64'),
    ('float16', 'float32'),
    ('float16', 'float16'),
    ('bfloat16', 'float32'),
    ('bfloat16', 'bfloat16'),
]
# v1 and v2 are there to be read, and v2 for unusual heads; other numbers of points
# loaded at once than UNROLL for the benchmark to try
FAST = re.compile(
    rf'(forward_v3|forward_v[45].* {gpu.UNROLL}>$|backward_v3|cells|gather)'
)


@pytest.fixture(scope='module')
def nvrtc():
    module = pytest.importorskip('cuda.bindings.nvrtc', exc_type=ImportError)
    try:
        module.nvrtcVersion()
    except (RuntimeError, OSError) as error:
        pytest.skip(f'NVRTC is not there: {error}')
    return module


@pytest.fixture(scope='module')
def headers():
    """The folder of cuda_fp16.h and cuda_bf16.h."""
    pathfinder = pytest.importorskip('cuda.pathfinder')
    folder = pathfinder.find_nvidia_header_directory('cudart')
    if folder is None:
        pytest.skip("needs CUDA's headers: pip install nvidia-cuda-runtime")
    return folder


def launches(value, places, Cv=32):
    """Return all steps' launches for heads of so many channels."""
    value, places = map(dtype, (value, places))
    v, y = np.empty((1, 1, 1, Cv), value), np.empty((1, 1, 1, Cv), value)
    loc, A = np.empty((1, 1, 1, 1, 1, 2), places), np.empty((1, 1, 1, 1, 1), places)
    cache, levels = CoreCache(v, ((1, 1),), loc, A), gpu.levels_of(((1, 1),))
    inputs = v, loc, A, levels
    found = [gpu.forward_launch(*inputs, y, step) for step in gpu.FORWARD]
    found += [gpu.forward_launch(*inputs, y, 'v5', n) for n in (1, 4)]
    for step in gpu.BACKWARD:
        gpu.backward(np, lambda *new: found.extend(new), y, cache, levels, False, step)
    gpu.backward(np, lambda *new: found.extend(new), y, cache, levels, True)
    return found


def dtype(name):
    if name == 'bfloat16':
        return np.dtype(pytest.importorskip('ml_dtypes').bfloat16)
    return np.dtype(name)


def compiled(nvrtc, headers, source, names, arch):
    """Compile; return what the assembler says of each: {kernel: (registers, bytes)}.

    The bytes are those of a thread's stack and of what it spills.
    """

    def done(answer):
        error, *rest = answer
        assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log()
        return rest[0] if rest else None

    def log():
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        text = b' ' * size
        nvrtc.nvrtcGetProgramLog(program, text)
        return text.decode()

    code = cuda.source(source).encode()
    _, program = nvrtc.nvrtcCreateProgram(code, source.encode(), 0, [], [])
    for name in names:
        done(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = *cuda.OPTIONS, f'-arch=sm_{arch}', f'-I{headers}', '--ptxas-options=-v'
    options = [option.encode() for option in (*options, '-ftz=true')]  # CuPy's own
    done(nvrtc.nvrtcCompileProgram(program, len(options), options))
    found = {}
    for name in names:
        lowered = done(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode()
        _, _, told = log().partition(f"entry function '{lowered}'")
        sizes = re.search(
            r'(\d+) bytes stack .*?(\d+) bytes spill .*?(\d+) bytes spill '
            r'.*?Used (\d+) registers',
            told,
            re.S,
        )
        *memory, registers = map(int, sizes.groups())
        found[name] = registers, sum(memory)
    done(nvrtc.nvrtcDestroyProgram(program))
    return found


def archs():
    """The cards that a test is made for, without asking the compiler yet."""
    newer = [100, 103, 110, 120, 121]
    return [
        pytest.param(arch, marks=() if arch == OFTEN else pytest.mark.slow)
        for arch in WANTED + newer
    ]


@pytest.mark.parametrize('arch', archs())
@pytest.mark.parametrize(('value', 'places'), TYPES)
def test_all_compile_and_the_fast_do_not_spill(value, places, arch, nvrtc, headers):
    _, known = nvrtc.nvrtcGetSupportedArchs()
    if arch not in known:
        assert arch not in WANTED[1:]  # compilers drop old cards; the oldest may go
        pytest.skip(f'this compiler does not know sm_{arch}')
    sources = {}
    for launch in launches(value, places):
        sources.setdefault(launch.source, []).append(launch.kernel)
    compile_one = functools.partial(compiled, nvrtc, headers, arch=arch)
    with ThreadPoolExecutor() as pool:  # NVRTC leaves the interpreter's lock
        every = list(pool.map(compile_one, sources, map(once, sources.values())))
    for name, (registers, spilt) in (use for uses in every for use in uses.items()):
        if FAST.match(name):
            assert spilt == 0, f'{name}: {spilt} bytes'
            assert registers <= 128, name  # four blocks to a multiprocessor


@pytest.mark.parametrize('arch', archs())
def test_the_others_compile(arch, nvrtc, headers):
    """Dropout, AdamW, layer norms and the choice of proposals."""
    _, known = nvrtc.nvrtcGetSupportedArchs()
    if arch not in known:
        pytest.skip(f'this compiler does not know sm_{arch}')
    for kind in ('float16', 'float32', 'float64'):
        a, places = np.ones((1, 1), kind), np.ones((1, 1), int)
        others = [dropout_launch(a, a, 0.1, (0, 0, 0)), top_launch(a, places)]
        if kind != 'float16':
            settings = (1e-3, 0.9, 0.999, 1e-8, 0.05, 3)
            others.append(adamw_launch((a, a, a, a), *settings))
            others.append(layer_norm_launch(a, a, a, a, a, a))
            others.append(layer_norm_backward_launch(a, a, a, a, a))
        for launch in others:
            used = compiled(nvrtc, headers, launch.source, [launch.kernel], arch)
            assert used[launch.kernel][1] == 0, f'{launch.kernel} spills'


def once(names):
    """The names, each once."""
    return list(dict.fromkeys(names))


@pytest.mark.parametrize('Cv', [1, 24, 33, 128, 256])
def test_unusual_heads_compile(Cv, nvrtc, headers):
    sources = {}
    for value, places in TYPES[:3]:
        V, lanes = cuda.channels(Cv, dtype(value).itemsize)
        if Cv <= V * lanes:
            for launch in launches(value, places, Cv):
                sources.setdefault(launch.source, []).append(launch.kernel)
    for source, names in sources.items():
        compiled(nvrtc, headers, source, once(names), OFTEN)


def test_the_benchmarks_kernel_compiles(nvrtc, headers, monkeypatch):
    folder = cuda.KERNELS.parents[2] / 'benchmarks'
    if not folder.is_dir():
        pytest.skip('needs the checkout')
    monkeypatch.setattr(cuda, 'KERNELS', folder)
    assert compiled(nvrtc, headers, 'read.cu', ['read'], OFTEN)['read'][1] == 0
