"""A detector's inference as one CUDA graph: recorded once, then launched as a whole.

A pass is many small kernels, each of which the host launches. A graph is launched at
once. It is bound to what was recorded: the size of the pictures, the weights' memory,
the precision.

CuPy refuses every call to cuBLAS meanwhile, up to its release 14.2. So the products of
a pass that is recorded go to cuBLAS itself: see `gpu_product`.
"""

import contextlib
import traceback

from ..backend import constants, device_of, get_xp
from ..errors import InputError
from . import gpu_product

WARM_UP = 1  # passes before: kernels are compiled, constants copied, memory is taken


class Graph:
    """The inference pass of a model for pictures of one size, without padding.

    Its memory goes when it does itself, but for an output that somebody still has.

    Parameters
    ----------
    model : DeformableDETR
        On a GPU. Weights that are overwritten in place count at the next call.
    N, H, W : int
        Pictures in a batch, and their size in pixels.

    Raises
    ------
    InputError
        The model is on the CPU, a size is below 1, cuBLAS is not found, or something in
        the pass cannot be recorded: a product within `backend.plain`, by CuPy's
        releases so far.
    """

    def __init__(self, model, N, H, W):
        if model.device == 'cpu':
            raise InputError(
                'the model is on the CPU, and graphs are recorded on a GPU: '
                "model.to('cuda:0') first"
            )
        if min(N, H, W) < 1:
            raise InputError(
                f'a graph for {N} pictures of {H} × {W}; each must be 1 or more'
            )
        self._params = [p for _, p in model.named_params()]
        self._weights = [p.data for p in self._params]
        self._device = self._weights[0].device
        self._xp = xp = get_xp(self._weights[0])
        with self._device:  # a stream belongs to the GPU it is made on
            # of its own, so that nobody else is handed memory that the graph writes to
            self._pool = xp.cuda.MemoryPool()
            self._stream = xp.cuda.Stream(non_blocking=True)
            # what is under way, the weights' copies perhaps, ends first
            self._device.synchronize()
            try:
                with self._stream, xp.cuda.using_allocator(self._pool.malloc):
                    self._images = xp.zeros((N, H, W, 3), model.dtype)
                    self._workspace = xp.empty(gpu_product.WORKSPACE, 'uint8')
                    for _ in range(WARM_UP):
                        model.forward(self._images, keep='none')
                    self._stream.synchronize()
                    self._graph, self._out = self._record(model)
            except Exception as error:
                # whose frames have the arrays of the pass that failed
                for e in (error, error.__cause__):
                    if e is not None:
                        traceback.clear_frames(e.__traceback__)
                self._release()
                raise
        self._constants = constants()  # the graph reads some of them

    def _release(self):
        """Give back the memory: CuPy's pools keep it, even when they go themselves."""
        for name in ('_graph', '_out', '_images', '_workspace'):
            vars(self).pop(name, None)
        with self._device:
            self._pool.free_all_blocks()

    def __del__(self):
        # not if the size was refused; and at exit the driver may be gone
        if hasattr(self, '_pool'):
            with contextlib.suppress(Exception):
                self._release()

    def _record(self, model):
        try:
            with gpu_product.recording(self._workspace):
                # once more: cuBLAS loads what it needs for these products
                model.forward(self._images, keep='none')
                self._stream.synchronize()
                self._stream.begin_capture()
                out, _ = model.forward(self._images, keep='none')
                return self._stream.end_capture(), out
        except Exception as error:
            self._abandon()
            raise InputError(
                'this model cannot be recorded: CuPy or CUDA refuses a part of its '
                f'pass ({error}); call model.forward instead'
            ) from error

    def _abandon(self):
        with contextlib.suppress(Exception):  # CUDA says once more that it failed
            self._stream.end_capture()

    def __call__(self, images):
        """Detect.

        Parameters
        ----------
        images : (N, H, W, 3) array
            Normalised, of the size the graph is for; on the GPU, or the host.

        Returns
        -------
        Output
            On the GPU; the next call overwrites its arrays.

        Raises
        ------
        InputError
            The pictures' shape or type is another, or the model has other arrays than
            when it was recorded: it was moved, or lent its moving average.
        """
        shape, dtype = (getattr(images, name, None) for name in ('shape', 'dtype'))
        if shape != self._images.shape or dtype.kind != 'f':
            raise InputError(
                f'images are {dtype} {shape}; this graph is for normalised ones of '
                f'{self._images.shape}: make another Graph for another size'
            )
        if any(p.data is not a for p, a in zip(self._params, self._weights)):
            raise InputError(
                'the model has other arrays than when the graph was recorded (it was '
                'moved, or has its moving average): make another Graph'
            )
        xp = self._xp
        with self._device:
            outer = xp.cuda.get_current_stream()
            self._stream.wait_event(outer.record())  # what made the pictures
            with self._stream:
                if device_of(images) == 'cpu':
                    images = xp.asarray(images)
                self._images[...] = images
                self._graph.launch()
                done = self._stream.record()
            outer.wait_event(done)
        return self._out
