"""The batches of a step, one after another or side by side in processes.

Each process has the model and computes batches of its own; weights and gradients lie in
memory that all of them see, so that only pictures and losses travel. What a second core
gains within one small operation is little, since Python's lock and each operation's
beginning and end are paid as before; with a batch a process everything runs twice.

The gradients are summed in the batches' order, each batch's by itself, whoever computed
them: with the BLAS at a fixed number of threads, the number of processes does not
change a bit.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from .. import threads
from ..backend import to_device
from ..data.workers import Pool
from ..errors import InputError
from ..nn.ddetr import DeformableDETR, Output
from ..nn.layers import BatchNorm

SHARED_MEMORY = Path('/dev/shm')  # a file system without a disk, on Linux


def add_gradient(model, criterion, batch, num_boxes, step, scale=1.0, keep='all'):
    """Add the gradient of a batch's loss to the model's, and move its statistics.

    Parameters
    ----------
    model : DeformableDETR
        In training: dropout and the batch's own statistics.
    criterion : Criterion
        Made from the model's config.
    batch : Batch
        It is brought to the model's device.
    num_boxes : int
        What the losses are divided by.
    step : int
        Of the key of dropout.
    scale : float
        What the gradient is multiplied by (see `loss_scale`).
    keep : {'all', 'inputs'}
        For the backward pass.

    Returns
    -------
    total : float
        Σ weight · loss.
    losses : dict of float
        As `Criterion` returns both.

    Raises
    ------
    NotFiniteError
        A prediction or a loss is not finite.
    """
    images, mask = (to_device(a, model.device) for a in (batch.images, batch.mask))
    with np.errstate(over='ignore', invalid='ignore'):  # the criterion names them
        out, cache = model.forward(images, mask, train=True, keep=keep, step=step)
        total, losses, dout = criterion(
            out, batch.targets, num_boxes=num_boxes, cache=cache
        )
        if scale != 1:
            dout = Output(*(None if d is None else d * scale for d in dout))
        model.backward(dout, cache)
    return total, losses


class Team:
    """Computes the gradient of a step's batches. Use it as a context manager.

    A program whose team has several processes must guard its main part by
    `if __name__ == '__main__'`.

    Parameters
    ----------
    model : DeformableDETR
        Within the block its weights lie in shared memory if there are several
        processes; update them in place.
    criterion : Criterion
        Made from the model's config; travels by pickle.
    keep : {'all', 'inputs'}
        For the backward pass.
    processes : int
        This one among them, each with its share of the threads.

    Raises
    ------
    InputError
        Several processes with a model on a GPU, or without the memory they need.
    """

    def __init__(self, model, criterion, keep='all', processes=1):
        self.model, self.criterion, self.keep = model, criterion, keep
        self.processes = processes
        self._sums = {}
        self._helpers = []
        if processes == 1:
            return
        if model.device != 'cpu':
            raise InputError(
                f'processes is {processes}, and the model is on {model.device}; several'
                ' processes are for the CPU: leave processes at 1'
            )
        own = max(1, threads.get_threads() // processes)
        with tempfile.TemporaryDirectory(
            prefix='ddetr_np-', dir=_place(model, processes), ignore_cleanup_errors=True
        ) as folder:
            try:
                self._share(Path(folder), own)
            except BaseException:
                self.close()
                raise

    def _share(self, folder, own):
        """Lay the weights into shared memory and begin the other processes."""
        weights = _map(folder / 'weights', _weights(self.model), new=True)
        for (_, p), array in zip(self.model.named_params(), weights):
            array[...] = p.data
            p.data = array
        begun = []
        for i in range(1, self.processes):
            path = folder / f'gradient{i}'
            gradient = _map(path, _gradients(self.model), new=True)
            replica = Replica(
                self.model.config, str(weights[0].dtype), self.model.seed,
                self.criterion, self.keep, own, folder / 'weights', path,
            )
            pool = Pool(replica, 1)
            self._helpers.append((pool, gradient))
            begun.append(pool.submit(None))
        for (pool, _), future in zip(self._helpers, begun):
            pool.result(future)  # the files are open now: their names may go

    def add_gradients(self, batches, num_boxes, step, scale=1.0):
        """Yield each batch's losses; in the end the model has the sum of the gradients.

        Parameters
        ----------
        batches : list of Batch
            In the order of the sum.
        num_boxes : int
            What the losses of all are divided by.
        step : int
            Of the first batch's key of dropout; the others' follow.
        scale : float
            Of the gradient.

        Yields
        ------
        total : float
            Σ weight · loss of a batch.
        losses : dict of float
            Its losses by name.

        Raises
        ------
        NotFiniteError
            When the turn of the batch comes.
        """
        for first in range(0, len(batches), self.processes):
            some = batches[first : first + self.processes]
            jobs = [
                (b, num_boxes, step + first + i, scale) for i, b in enumerate(some)
            ]
            helpers = self._helpers[: len(some) - 1]
            begun = [pool.submit(j) for (pool, _), j in zip(helpers, jobs[1:])]
            try:
                yield self._own(first, *jobs[0])
                for (pool, gradient), future in zip(helpers, begun):
                    result = pool.result(future)
                    self._add(gradient)
                    yield result
            finally:
                for future in begun:
                    future.cancel()

    def _own(self, first, *job):
        """Compute a batch here; add the sum of those before it."""
        params = self.model.params()
        if first:
            for p in params:
                p.grad, self._sums[p] = self._sums.get(p), p.grad
        self.model.zero_grad()
        with threads.part_of(self.processes):
            result = add_gradient(self.model, self.criterion, *job, self.keep)
        if first:
            for p in params:
                p.grad += self._sums[p]
        return result

    def _add(self, gradient):
        """Add what another process has computed."""
        gradient = iter(gradient)
        for p in self.model.params():
            p.grad += next(gradient)
        for norm in _learning_norms(self.model):
            norm.move(next(gradient), next(gradient))

    def close(self):
        """End the other processes; the weights are this one's own again."""
        for pool, _ in self._helpers:
            pool.close()
        if self._helpers:
            for _, p in self.model.named_params():
                p.data = p.data.copy()
        self._helpers = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Replica:
    """The model in another process: weights from shared memory, gradients into it.

    Parameters
    ----------
    config : Config
        Of the model.
    dtype : str
        Of the model.
    seed : int
        Of the model; dropout's key.
    criterion : Criterion
        Made from the config.
    keep : {'all', 'inputs'}
        For the backward pass.
    n : int
        Threads of this process.
    weights, gradient : path
        Files that are mapped when the process begins.
    """

    def __init__(self, config, dtype, seed, criterion, keep, n, weights, gradient):
        self.config, self.dtype, self.seed = config, dtype, seed
        self.criterion, self.keep, self.n = criterion, keep, n
        self.weights, self.gradient = weights, gradient
        self._model = None

    def __call__(self, job):
        """Leave a batch's gradient and moved statistics in the shared memory.

        Parameters
        ----------
        job : (Batch, int, int, float) or None
            With num_boxes, step and scale of `add_gradient`. None only opens the files.

        Returns
        -------
        (float, dict) or None
            As of `add_gradient`.
        """
        if self._model is None:
            self._begin()
        if job is None:
            return None
        self._model.zero_grad()
        for norm in _learning_norms(self._model):
            norm.running_mean.data[...] = norm.running_var.data[...] = 0
        result = add_gradient(self._model, self.criterion, *job, self.keep)
        for shared, array in zip(self._gradient, _gradients(self._model)):
            shared[...] = array
        return result

    def _begin(self):
        threads.keep_freed_memory()
        threads.set_threads(self.n)
        threadpool_limits(self.n)
        model = DeformableDETR(self.config, self.dtype, self.seed, empty=True)
        for (_, p), array in zip(
            model.named_params(), _map(self.weights, _weights(model))
        ):
            p.data = array
        for norm in _learning_norms(model):
            for p in (norm.running_mean, norm.running_var):
                p.data = p.data.copy()  # they move here, each pass from zero
        self._gradient = _map(self.gradient, _gradients(model))
        self._model = model


def _weights(model):
    return [p.data for _, p in model.named_params()]


def _gradients(model):
    """What a pass leaves behind: gradients, and what moves running statistics."""
    moved = [
        p.data
        for norm in _learning_norms(model)
        for p in (norm.running_mean, norm.running_var)
    ]
    return [p.grad for p in model.params()] + moved


def _learning_norms(model):
    return [norm for norm in model.modules(BatchNorm) if not norm.frozen]


def _place(model, processes):
    """Return the folder for the files; None for the system's for temporary ones."""
    size = sum(a.nbytes for a in _weights(model))
    size += (processes - 1) * sum(a.nbytes for a in _gradients(model))
    if not os.access(SHARED_MEMORY, os.W_OK):
        return None
    return SHARED_MEMORY if shutil.disk_usage(SHARED_MEMORY).free > 2 * size else None


def _map(path, like, new=False):
    """Return arrays of the same shapes in a file that several processes may map."""
    starts, size = [], 0
    for array in like:
        starts.append(size)
        size += -(-array.nbytes // threads.LINE) * threads.LINE
    if new:
        _allocate(path, max(1, size))
    memory = np.asarray(np.memmap(path, np.uint8, 'r+'))
    return [
        memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
        for start, a in zip(starts, like)
    ]


def _allocate(path, size):
    """Make a file whose space is there: a page missing later would end the process."""
    with open(path, 'wb') as file:
        file.truncate(size)
        if hasattr(os, 'posix_fallocate'):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise InputError(
                    f'there is no room for {size / 1e6:.0f} MB in {path.parent} '
                    f'({error.strerror}), which several processes need: make room, or '
                    'leave processes at 1'
                ) from error
