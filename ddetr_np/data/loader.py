"""Batches for training, prepared ahead by worker processes.

Which pictures make a batch, and what chance does to each, is a function of (seed,
epoch, index) alone: neither the number of workers nor where one starts again changes a
bit.

Processes, not threads: drawing scenes and NumPy's small steps hold Python's lock, which
the training loop needs itself. They are spawned, on every system alike: a fork would
copy the training process in the middle of whatever its threads do.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from .augment import Plain
from .dataset import training_target
from .prepare import normalise, pad_batch
from .reading import picture_kind
from .workers import Pool

ORDER, CHANGES = 0, 1  # streams of random numbers that must not meet


class Batch(NamedTuple):
    """Pictures that go through the model together.

    Parameters
    ----------
    images : (N, H, W, 3) array
        Normalised, padded with zeros.
    mask : (N, H, W) bool array
        True on padding.
    targets : list of N dict
        'labels' (n,) and 'boxes' (n, 4): cx, cy, w, h as fractions of the unpadded
        picture, as `Criterion` wants them.
    ids : list of N
        The pictures' ids.
    """

    images: Any
    mask: Any
    targets: list
    ids: list


class Prepared(NamedTuple):
    """One picture on its way into a batch; 8 bits, so that little travels.

    Parameters
    ----------
    id : int or str
        The picture's, not that of a bad one it stands in for.
    picture : (H, W, 3) uint8 array
        After augmentation, not normalised.
    target : dict
        'boxes' (n, 4): x0, y0, x1, y1 in pixels of `picture`; 'labels' (n,).
    skipped : tuple of (str, str)
        Name and kind of problem of each bad picture passed over for it.
    """

    id: Any
    picture: Any
    target: dict
    skipped: tuple  # (name, kind of problem) of pictures that it stands in for


class Prepare:
    """Prepares pictures: in a worker process, or where there are none, here.

    Parameters
    ----------
    dataset : Dataset
        Travels to the workers by pickle, as all of these.
    augment : callable
        (picture, target, rng) → picture, target.
    seed : int
        With epoch and index it decides the lots.
    skip_bad : bool
        Take the next picture for one that cannot be read, rather than raise.
    """

    def __init__(self, dataset, augment, seed, skip_bad):
        self.dataset, self.augment = dataset, augment
        self.seed, self.skip_bad = seed, skip_bad

    def __call__(self, job):
        """Return picture `index` of an epoch, or if it is bad the next good one."""
        epoch, index = job
        rng = np.random.default_rng((CHANGES, self.seed, epoch, index))
        skipped = []
        for i in range(len(self.dataset)):
            example = self.dataset.at((index + i) % len(self.dataset), epoch)
            try:
                picture = example.picture()
                break
            except InputError:
                if not self.skip_bad:
                    raise
                skipped.append((example.name, picture_kind(example)))
        else:
            raise InputError(f'{self.dataset.origin}: none of its pictures can be read')
        try:
            picture, target = self.augment(picture, example.target(), rng)
        except Exception as error:
            error.add_note(f'while preparing {example.name}')
            raise
        return Prepared(example.id, picture, target, tuple(skipped))


class Loader:
    """Batches of a data set, epoch by epoch.

    Use it as a context manager, or call `close`, where there are workers. A program
    with workers must guard its main part by `if __name__ == '__main__'`.

    Parameters
    ----------
    dataset : Dataset
        Asked by `at` for each picture; travels to the workers by pickle.
    batch : int
        Pictures in a batch.
    augment : callable, optional
        (picture, target, rng) → picture, target; see `augment`. It travels to the
        workers by pickle. If not given, the short side is resized to 800.
    seed : int
        Of order and augmentation, 0 or more.
    shuffle : bool
        Draw a new order each epoch; otherwise the data set's own.
    workers : int
        Processes that prepare pictures; 0 prepares them when they are asked for.
    ahead : int
        Batches that are prepared beyond the one in use.
    last : bool
        Keep the last batch of an epoch though it may be smaller; the released code
        leaves it out in training.
    dtype : dtype
        Of the images.
    skip_bad : bool
        Take the data set's next picture for one that cannot be read, and count it in
        `skipped`, rather than raise.

    Attributes
    ----------
    skipped : Counter
        Pictures that could not be read, by kind of problem; each is counted once.
    """

    def __init__(
        self,
        dataset,
        batch=2,
        augment=None,
        *,
        seed=0,
        shuffle=True,
        workers=0,
        ahead=2,
        last=False,
        dtype='float32',
        skip_bad=False,
    ):
        for name, value, least in (
            ('batch', batch, 1), ('seed', seed, 0), ('workers', workers, 0),
            ('ahead', ahead, 1),
        ):
            if isinstance(value, bool) or not hasattr(value, '__index__'):
                raise InputError(f'{name} is {value!r}; expected a whole number')
            if value < least:
                raise InputError(f'{name} is {value}; expected {least} or more')
        self.dataset, self.batch, self.last = dataset, int(batch), last
        self.seed, self.shuffle, self.ahead = int(seed), shuffle, int(ahead)
        self.dtype = dtype
        self.skipped, self._bad = Counter(), set()
        if len(self) == 0:
            raise InputError(
                f'{dataset.origin} has {len(dataset)} pictures, less than a batch of '
                f'{batch}; use a smaller batch'
            )
        augment = Plain() if augment is None else augment
        prepare = Prepare(dataset, augment, self.seed, skip_bad)
        self._pool = Pool(prepare, int(workers))

    def __len__(self):
        """Return the number of batches in an epoch."""
        n = len(self.dataset)
        return -(-n // self.batch) if self.last else n // self.batch

    def order(self, epoch):
        """Return the order of the pictures in an epoch.

        Parameters
        ----------
        epoch : int
            From 0.

        Returns
        -------
        (len(dataset),) int array
            The data set's indices; in its own order without `shuffle`.
        """
        n = len(self.dataset)
        if not self.shuffle:
            return np.arange(n)
        return np.random.default_rng((ORDER, self.seed, epoch)).permutation(n)

    def epoch(self, epoch=0, start=0):
        """Yield the batches of an epoch, from batch number `start` on.

        Parameters
        ----------
        epoch, start : int
            From 0.

        Yields
        ------
        Batch

        Raises
        ------
        InputError
            A picture cannot be read; it is named.
        """
        order = self.order(epoch)
        end = min(len(order), len(self) * self.batch)
        jobs = ((epoch, int(i)) for i in order[start * self.batch : end])
        results = self._pool.map(jobs, (self.ahead + 1) * self.batch)
        try:
            for n in range(start, len(self)):
                size = min(self.batch, end - n * self.batch)
                yield self._batch([next(results) for _ in range(size)])
        finally:
            results.close()

    def _batch(self, prepared):
        for name, kind in {bad for p in prepared for bad in p.skipped} - self._bad:
            self._bad.add((name, kind))
            self.skipped[kind] += 1
        images, mask = pad_batch([normalise(p.picture) for p in prepared], self.dtype)
        targets = [training_target(p.target, p.picture.shape[:2]) for p in prepared]
        return Batch(images, mask, targets, [p.id for p in prepared])

    def close(self):
        """End the workers."""
        self._pool.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
