"""Convolutions by cuDNN's graphs, where its Python front end is installed.

`pip install nvidia-cudnn-frontend nvidia-cudnn-cu12` (or -cu13); `gpu_conv` does
without where it is not, or where cuDNN has no engine for a convolution. cuDNN speaks of
(N, C, H, W) whatever the layout: ours, channels last, is a matter of strides.
"""

import functools
import importlib
import os
import warnings

from ..backend import device_of, get_xp
from ..ops.conv import conv_size
from . import cuda

TYPES = {'float32': 'FLOAT', 'float16': 'HALF'}  # double is left to cuBLAS
PLANS = 512  # kept: a pass of ResNet-50 makes some 60 for each size of picture


def fprop(x, W, stride, padding, dilation):
    """Return the convolution y of x and W, without a bias; see `ops.conv.conv2d`.

    Parameters
    ----------
    x : (N, H, W, I) array
        CuPy's; of half or single precision, or there is no engine.
    W : (kh, kw, I, O) array
        Like x in type.
    stride, padding, dilation : int
        Pixels, the same along both axes.

    Returns
    -------
    y : (N, Ho, Wo, O) array or None
        None if cuDNN is not installed or has no engine.
    """
    geometry = stride, padding, dilation
    return _run('fprop', x.shape, W.shape, geometry, x, _kernel_first(W))


def dgrad(dy, x_shape, W, stride, padding, dilation):
    """Return ∂loss/∂x of a convolution.

    Parameters
    ----------
    dy : (N, Ho, Wo, O) array
        ∂loss/∂y.
    x_shape : tuple of int
        N, H, W and I.
    W : (kh, kw, I, O) array
        Of the forward.
    stride, padding, dilation : int
        Of the forward.

    Returns
    -------
    dx : (N, H, W, I) array or None
        None as for `fprop`.
    """
    geometry = stride, padding, dilation
    return _run('dgrad', x_shape, W.shape, geometry, dy, _kernel_first(W))


def wgrad(x, dy, W_shape, stride, padding, dilation):
    """Return ∂loss/∂W of a convolution.

    Parameters
    ----------
    x : (N, H, W, I) array
        Of the forward.
    dy : (N, Ho, Wo, O) array
        ∂loss/∂y.
    W_shape : tuple of int
        kh, kw, I and O.
    stride, padding, dilation : int
        Of the forward.

    Returns
    -------
    dW : (kh, kw, I, O) array or None
        A view of (O, kh, kw, I) memory; None as for `fprop`.
    """
    dW = _run('wgrad', x.shape, W_shape, (stride, padding, dilation), x, dy)
    return None if dW is None else dW.transpose(1, 2, 3, 0)


def _kernel_first(W):
    """(O, kh, kw, I), as cuDNN has channels last."""
    return get_xp(W).ascontiguousarray(W.transpose(3, 0, 1, 2))


def _run(kind, x_shape, W_shape, geometry, a, b):
    cudnn = _library()
    if cudnn is None or a.dtype.name not in TYPES or 0 in (*x_shape, *W_shape):
        return None
    xp = get_xp(a)
    plan = _plan(
        kind, x_shape, W_shape, geometry, a.dtype.name, device_of(a),
        cuda.is_deterministic(),
    )  # fmt: skip
    if plan is None:
        return None
    graph, inputs, output, shape = plan
    result = xp.empty(shape, a.dtype)
    workspace = xp.empty(max(1, graph.get_workspace_size()), 'uint8')
    handle = _handle(device_of(a))
    cudnn.set_stream(handle=handle, stream=xp.cuda.get_current_stream().ptr)
    # it takes every array to begin at a multiple of 16 bytes
    arrays = (cuda.contiguous(xp, a), cuda.contiguous(xp, b), result)
    pack = {
        tensor: array.transpose(0, 3, 1, 2)  # a view
        for tensor, array in zip((*inputs, output), arrays)
    }
    graph.execute(pack, workspace, handle=handle)
    return result


@functools.cache
def _library():
    try:
        cudnn = importlib.import_module('cudnn')
        cudnn.backend_version()  # loads the library itself
    except Exception:  # whatever a half-installed library raises: do without it
        return None
    return cudnn


@functools.cache
def _handle(device):
    return _library().create_handle()


@functools.lru_cache(PLANS)
def _plan(kind, x_shape, W_shape, geometry, dtype, device, deterministic):
    """Return (graph, inputs, output, its shape here), or None: cuDNN has no engine."""
    cudnn = _library()
    try:
        graph, *tensors = _graph(kind, x_shape, W_shape, geometry, dtype, device)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        # tensor cores would round single precision to TF32's 10 bits: CuPy's own switch
        notes = []
        if dtype == 'float32' and os.environ.get('CUPY_TF32') != '1':
            notes.append(cudnn.numerical_note.TENSOR_CORE)
        if deterministic:
            notes.append(cudnn.numerical_note.NONDETERMINISTIC)
        graph.deselect_numeric_notes(notes)
        graph.check_support()
        graph.build_plans()
    except cudnn.cudnnGraphNotSupportedError:
        return None
    except (RuntimeError, ValueError) as error:  # a library that fits neither card nor
        # driver, an engine that fails: the products that it replaces still work
        warnings.warn(
            f'cuDNN refuses a convolution of {x_shape} by {W_shape}, which cuBLAS '
            f'takes: {error}',
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return graph, *tensors


def _graph(kind, x_shape, W_shape, geometry, dtype, device):
    cudnn = _library()
    stride, padding, dilation = geometry
    (N, H, Wd, I), (kh, kw, _, O) = x_shape, W_shape
    Ho = conv_size(H, kh, stride, padding, dilation)
    Wo = conv_size(Wd, kw, stride, padding, dilation)
    shapes = {  # channels last
        'image': (N, H, Wd, I), 'weight': (O, kh, kw, I), 'response': (N, Ho, Wo, O)
    }
    io = getattr(cudnn.data_type, TYPES[dtype])
    graph = cudnn.pygraph(
        io_data_type=io,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=_handle(device),
    )

    def layout(name):
        n, h, w, c = shapes[name]
        return {'dim': [n, c, h, w], 'stride': [h * w * c, 1, w * c, c]}

    def tensor(name):
        return graph.tensor(name=name, data_type=io, **layout(name))

    options = {
        'padding': [padding] * 2, 'stride': [stride] * 2, 'dilation': [dilation] * 2
    }
    if kind == 'fprop':
        inputs, name = [tensor('image'), tensor('weight')], 'response'
        output = graph.conv_fprop(image=inputs[0], weight=inputs[1], **options)
    elif kind == 'dgrad':
        inputs, name = [tensor('response'), tensor('weight')], 'image'
        output = graph.conv_dgrad(loss=inputs[0], filter=inputs[1], **options)
    else:
        inputs, name = [tensor('image'), tensor('response')], 'weight'
        output = graph.conv_wgrad(image=inputs[0], loss=inputs[1], **options)
    output.set_output(True).set_data_type(io)
    output.set_dim(layout(name)['dim']).set_stride(layout(name)['stride'])
    return graph, inputs, output, shapes[name]
