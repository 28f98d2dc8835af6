"""The seam between the equations and the arrays they run on.

The only file that knows CuPy. An operation asks `get_xp` for the library of its
arguments and is written once for both. Quicker twins of an operation are registered
here, so that `ops` never imports `fast`; `plain()` switches them off.
"""

import contextlib
import contextvars
import functools
import importlib
import sys

import numpy as np

from . import threads
from .errors import InputError

_twins = {}  # (operation, library) -> function
_loaded = []  # holds True once `fast` has been imported
_plain = contextvars.ContextVar('plain', default=False)
_others = contextvars.ContextVar('others', default=None)  # of `substitute`
_mixed = contextvars.ContextVar('mixed', default=False)
_rules = {}  # operation -> how it runs in mixed precision


def _cupy():
    """CuPy if somebody has imported it already: no array can be CuPy's otherwise."""
    return sys.modules.get('cupy')


def get_xp(*arrays):
    """Return the library of the arrays: `numpy`, or `cupy` if any of them is CuPy's.

    Parameters
    ----------
    *arrays
        Arrays, or anything else, which counts for nothing.

    Returns
    -------
    module
        `numpy` or `cupy`.
    """
    cupy = _cupy()
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def to_host(a):
    """Return `a` as a NumPy array; no copy if it is one.

    Parameters
    ----------
    a : array
        On any device; or what `numpy.asarray` takes.

    Returns
    -------
    numpy.ndarray
        Like `a`.
    """
    return a.get() if get_xp(a) is not np else np.asarray(a)


def to_device(a, device='cpu'):
    """Return `a` on a device.

    A GPU becomes this thread's current one: what is computed from the array there.

    Parameters
    ----------
    a : array
        On any device; a list or number will do.
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Returns
    -------
    array
        Like `a`, which itself is returned if it is there already.

    Raises
    ------
    InputError
        The device's name is unknown, CuPy or a driver is missing, there is no such GPU,
        or it is too old.
    """
    if device == 'cpu':
        return to_host(a)
    cupy, index = _cuda(device)
    # operations run on the current device, wherever their arrays are
    cupy.cuda.Device(index).use()
    return cupy.asarray(a)


def need_device(device):
    """Raise the InputError of `to_device`, if there is one, before any work begins.

    Parameters
    ----------
    device : str
        As `to_device` takes it.

    Raises
    ------
    InputError
        As for `to_device`.
    """
    if device != 'cpu':
        _cuda(device)


def device_of(a):
    """Return the name of the device an array is on, as `to_device` takes it.

    Parameters
    ----------
    a : array
        NumPy's or CuPy's.

    Returns
    -------
    str
        'cpu', or 'cuda:0', 'cuda:1' and so on.
    """
    return 'cpu' if get_xp(a) is np else f'cuda:{a.device.id}'


def wait(device):
    """Wait until a device has done all that it was asked to.

    Parameters
    ----------
    device : str
        'cpu', where there is nothing to wait for, or 'cuda:0', 'cuda:1', …
    """
    if device != 'cpu':
        cupy, index = _cuda(device)
        cupy.cuda.Device(index).synchronize()


def held_memory(device, free=False):
    """Return the bytes of a GPU that CuPy holds, in use or not.

    Parameters
    ----------
    device : str
        'cuda:0', 'cuda:1', …
    free : bool
        Give back what is not in use first: what is held later was needed since.

    Returns
    -------
    int
        Bytes of CuPy's default pool on that GPU.
    """
    cupy, index = _cuda(device)
    with cupy.cuda.Device(index):
        pool = cupy.get_default_memory_pool()
        if free:
            pool.free_all_blocks()
        return pool.total_bytes()


def _cuda(device):
    """Return CuPy and the index of a GPU that it can use."""
    kind, _, index = device.partition(':')
    if kind != 'cuda' or not (index or '0').isdecimal():
        raise InputError(f"device is {device!r}; expected 'cpu', 'cuda:0', 'cuda:1' …")
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise InputError(f'device {device!r} needs CuPy: {_INSTALL}') from error
    except ImportError as error:
        raise InputError(
            f'device {device!r}: CuPy is there but does not load '
            f'({error.__cause__ or error}); install it anew: {_INSTALL}'
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise InputError(
            f'device {device!r}: CuPy finds no usable GPU driver ({error}); '
            "install the driver or use device='cpu'"
        ) from error
    index = int(index or 0)
    if index >= count:
        raise InputError(f'device {device!r}: this machine has {count} GPUs')
    capability = int(cupy.cuda.Device(index).compute_capability)  # '70' is 7.0
    if capability < oldest(cupy.cuda.runtime):
        name = cupy.cuda.runtime.getDeviceProperties(index)['name'].decode()
        other = 'use another GPU'
        if capability >= OLDEST[12]:
            other = "install CuPy for CUDA 12 instead (pip install 'ddetr-np[gpu12]')"
        raise InputError(
            f'device {device!r}: {name} has compute capability '
            f'{_dotted(capability)}, {_dotted(oldest(cupy.cuda.runtime))} is needed; '
            f"{other}, or device='cpu'"
        )
    return cupy, index


OLDEST = {12: 70, 13: 75}  # by CUDA: its compiler's, compute capability 7.0 being Volta


def oldest(runtime):
    """Return the least compute capability that CuPy's CUDA compiles kernels for.

    Parameters
    ----------
    runtime : module
        `cupy.cuda.runtime`.

    Returns
    -------
    int
        70 for 7.0. Of a CUDA newer than any known here, as of the newest.
    """
    cuda = runtime.runtimeGetVersion() // 1000
    return OLDEST.get(cuda, OLDEST[max(OLDEST)])


_INSTALL = (
    "pip install 'ddetr-np[gpu12]' (CUDA 12) or 'ddetr-np[gpu13]' (CUDA 13)"
)


def _dotted(capability):
    """'7.0' of 70: the last digit is the minor one."""
    return '{}.{}'.format(*divmod(int(capability), 10))


def gpus():
    """Return [(name, bytes of memory, what is wrong or '')] of the GPUs CuPy sees.

    Returns
    -------
    list of (str, int, str)
        In CUDA's order; the third is '' where nothing is wrong.

    Raises
    ------
    Exception
        ImportError, or whatever a half-installed CUDA raises.
    """
    import cupy

    runtime, found = cupy.cuda.runtime, []
    for i in range(runtime.getDeviceCount()):
        p = runtime.getDeviceProperties(i)
        capability = 10 * p['major'] + p['minor']
        wrong = ''
        if capability < oldest(runtime):
            least = _dotted(oldest(runtime))
            wrong = f'too old ({_dotted(capability)}; {least} is needed)'
        found.append((p['name'].decode(), p['totalGlobalMem'], wrong))
    return found


def constant(values, dtype, like):
    """Return an array of given numbers where `like` is; on a GPU one for all callers.

    A copy to a GPU costs as much as a kernel, and has no place in a CUDA graph.

    Parameters
    ----------
    values : tuple of numbers, or of such tuples
        The elements.
    dtype : dtype
        Of the result.
    like : array
        On the device.

    Returns
    -------
    array
        To be read only.
    """
    xp = get_xp(like)
    if xp is np:
        return np.array(values, dtype)
    key = xp, values, np.dtype(dtype), like.device.id
    if key not in _constants:
        if len(_constants) == CONSTANTS:
            _constants.clear()
        # never in a graph's own memory, which goes with the graph
        common = xp.get_default_memory_pool().malloc
        with like.device, xp.cuda.using_allocator(common):
            _constants[key] = xp.array(values, dtype)
    return _constants[key]


_constants = {}
CONSTANTS = 4096  # kept at most: a few for each size of picture


def constants():
    """Return the arrays that `constant` keeps: whoever holds them keeps their memory.

    Returns
    -------
    list of arrays
    """
    return list(_constants.values())


def scatter_add(target, rows, values):
    """Add `values` to `target[rows]`, in place; rows may repeat.

    Parameters
    ----------
    target : (R, ...) array
        Added to in place.
    rows : (n,) int array
        Indices along the first axis, each below R.
    values : (n, ...) array
        A row for each index.
    """
    # rows repeat: target[rows] += values would lose all but one of each
    get_xp(target).add.at(target, rows, values)


def replaceable(operation):
    """Let a quicker twin stand in for a plain operation, for callers unseen.

    The twin has the same arguments and makes the same cache; the undecorated operation
    stays at hand as `operation.plain`.

    Parameters
    ----------
    operation : callable
        A function, or a method of a module in `nn`. Its arguments, and what stands in
        tuples among them, say in which library it runs.

    Returns
    -------
    callable
        Takes the same arguments; its attributes are `plain` and `key`, the operation's
        name in the table of twins: 'module.function'.
    """
    # the module's last name is part of the key: two rooms may use one word
    key = f'{operation.__module__.rpartition(".")[2]}.{operation.__name__}'

    def run(*args, **kwargs):
        if not _plain.get():
            xp = get_xp(*_arrays((*args, *kwargs.values())))
            if xp is np and _mixed.get():
                return operation(*args, **kwargs)
            others = _others.get()
            table = twins() if others is None else others
            twin = table.get((key, xp.__name__))
            if twin is not None:
                return twin(*args, **kwargs)
        return operation(*args, **kwargs)

    @functools.wraps(operation)
    def call(*args, **kwargs):
        if _mixed.get() and key in _rules:
            return _rules[key](run, *args, **kwargs)
        return run(*args, **kwargs)

    call.plain = operation
    call.key = key
    return call


def _arrays(args):
    """The arguments, and what stands inside those that are tuples (caches)."""
    for a in args:
        if isinstance(a, tuple):
            yield from a
        else:
            yield a


def twin(operation, library='numpy'):
    """Register the decorated function as the twin of a replaceable operation.

    Parameters
    ----------
    operation : callable or str
        The operation, or its key 'module.function' where it cannot be imported: a
        module's method in `nn`, which stands above `fast`.
    library : {'numpy', 'cupy'}
        Whose arrays the twin takes.

    Returns
    -------
    callable
        A decorator that returns the function as it is.
    """

    def register(function):
        _twins[getattr(operation, 'key', operation), library] = function
        return function

    return register


def twins():
    """Return the registered twins: {(operation, library): function}.

    The first call imports them, so that importing the package stays quick.

    Returns
    -------
    dict
        (operation's key, library's name) → function: the table itself, no copy.
    """
    if not _loaded:
        importlib.import_module('.fast', __package__)
        _loaded.append(True)
    return _twins


@contextlib.contextmanager
def pooled():
    """Leave the cores to the twins' pool of threads within the block (or function).

    The BLAS's own threads wait for their next product by spinning. One product between
    two operations would wake them, and they would hold a core that tiles could use.

    Yields
    ------
    None
        The BLAS has one thread until the block ends; inside a `plain` block nothing
        changes.
    """
    with contextlib.nullcontext() if _plain.get() else threads.quiet_blas():
        yield


@contextlib.contextmanager
def plain():
    """Run the plain, readable operations within the block.

    Yields
    ------
    None
        No twin and no substitute is called until the block ends.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def in_mixed(*operations):
    """Register how replaceable operations run in mixed precision.

    Parameters
    ----------
    *operations : callable
        Of `ops`.

    Returns
    -------
    callable
        A decorator of a function that takes the operation, twin or plain, before the
        operation's own arguments; returned as it is.
    """

    def register(function):
        _rules.update((operation.key, function) for operation in operations)
        return function

    return register


@contextlib.contextmanager
def mixed(on=True):
    """Compute in mixed precision within the block: half values and products.

    See `ops.mixed` for what stays single. It is for models of single precision on a
    GPU; on the CPU it is slow, and there to be looked at: plain operations, no twins.

    Parameters
    ----------
    on : bool
        False lifts it again, inside another such block.

    Yields
    ------
    None
        Forward and backward of a pass must be in one such block.
    """
    token = _mixed.set(on)
    try:
        yield
    finally:
        _mixed.reset(token)


def is_mixed():
    """Return whether a `mixed` block is around.

    Returns
    -------
    bool
    """
    return _mixed.get()


@contextlib.contextmanager
def substitute(others):
    """Let these stand in for operations within the block, and no registered twin.

    They do so inside a `plain` block too; a `plain` block inside this one goes without.

    Parameters
    ----------
    others : dict
        {(operation, library): function}, as `twins` returns them.

    Yields
    ------
    None
        What `others` lacks runs as the plain operation until the block ends.
    """
    token, plain_token = _others.set(others), _plain.set(False)
    try:
        yield
    finally:
        _plain.reset(plain_token)
        _others.reset(token)
