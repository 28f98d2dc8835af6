"""How fast this machine runs a model, and how near it comes to what it could do.

Each part is timed on the arrays that a pass of the whole model gives it. Its floor is
the time that its matrix products alone would take, at the rate of NumPy's own; for what
has none, the time to read and write its arrays once, at the rate of a copy.
"""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np

from ..backend import get_xp, substitute, to_device, twins
from ..loss import Criterion
from ..nn.encoder import Encoder
from ..ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_backward
from ..testing_model import randomise
from ..train import AdamW
from .complexity import counting
from .machine import peak, product_seconds, reset_peak, timed
from .timing import timing
from .watch import watch

SHAPES = 8  # kinds of products whose rate is measured: the heaviest ones
ROWS = 1 << 14  # of them: more rows change no rate
PARTS = {
    'backbone': 'backbone.0.body',
    'encoder': 'transformer.encoder',
    'decoder': 'transformer.decoder',
}


class Rate(NamedTuple):
    """How fast a kind of product is.

    Parameters
    ----------
    m, k, n : int
        Of an (m, k) and a (k, n) matrix.
    share : float
        Of the model's multiply-accumulates.
    flops : float
        Floating-point operations a second, two for each multiply-accumulate.
    """

    m: int
    k: int
    n: int
    share: float
    flops: float


class Row(NamedTuple):
    """A part of the model, measured.

    Parameters
    ----------
    name : str
        'core, forward', 'encoder', 'whole inference', …
    seconds : list of float
        Of each run.
    macs : int
        Multiply-accumulates of its matrix products; 0 if it has none.
    bytes : int
        Of its arrays, each read or written once, where it has no product; else 0.
    peak : int or None
        The most bytes that the process held while it ran.
    """

    name: str
    seconds: list
    macs: int
    bytes: int
    peak: Any

    @property
    def median(self):
        """The median of the runs, in seconds."""
        return statistics.median(self.seconds)

    def floor(self, product_rate, copy_rate):
        """Return the least seconds at these rates.

        Parameters
        ----------
        product_rate : float
            Floating-point operations a second, two for each multiply-accumulate.
        copy_rate : float
            Bytes a second, read and written.

        Returns
        -------
        float
            Seconds.
        """
        return 2 * self.macs / product_rate + self.bytes / copy_rate


def product_rates(shapes, dtype, runs=5, device='cpu'):
    """Measure the heaviest of a model's matrix products.

    Parameters
    ----------
    shapes : dict
        {(m, k, n): times}, as `Count.shapes`.
    dtype : dtype
        Of the matrices.
    runs : int
        Of each product, of which the quickest counts.
    device : str
        'cpu', or 'cuda:0', 'cuda:1', …

    Yields
    ------
    Rate
        Of each, the heaviest first.
    """
    macs = {shape: math.prod(shape) * times for shape, times in shapes.items()}
    for m, k, n in sorted(macs, key=macs.get, reverse=True)[:SHAPES]:
        rows = min(m, ROWS)
        flops = 2 * rows * k * n / product_seconds(rows, k, n, dtype, runs, device)
        yield Rate(m, k, n, macs[m, k, n] / sum(macs.values()), flops)


def mean_rate(rates):
    """Return the rate of all these products together: their work over their time.

    Parameters
    ----------
    rates : list of Rate
        At least one.

    Returns
    -------
    float
        Floating-point operations a second.
    """
    return sum(r.share for r in rates) / sum(r.share / r.flops for r in rates)


ROW_COUNT = 8  # that `Bench.rows` yields, at most


class Bench:
    """A model with random weights, a batch, and the parts to be measured.

    Parameters
    ----------
    model : DeformableDETR
        On the device that is measured. Its weights are overwritten: initial ones sample
        on a grid, which is easier.
    H, W : int
        Size of the pictures.
    N : int
        Pictures in the batch.
    runs : int
        Of each part that are timed, after one that is not.
    seed : int
        Of the weights, pictures and targets.
    """

    def __init__(self, model, H, W, N=1, runs=5, seed=0):
        self.model, self.runs = randomise(model, seed), runs
        self.rng = rng = np.random.default_rng(seed)
        self.images = self._normal((N, H, W, 3))
        self.targets = []
        for _ in range(N):
            box = np.concatenate(
                [rng.uniform(0.3, 0.7, (8, 2)), rng.uniform(0.1, 0.5, (8, 2))], -1
            )
            labels = rng.integers(0, model.config.num_classes, 8)
            self.targets.append({'labels': labels, 'boxes': box})
        self.criterion = Criterion(model.config)

    def _normal(self, shape):
        a = self.rng.standard_normal(shape, np.float32).astype(self.model.dtype)
        return to_device(a, self.model.device)

    def inference(self):
        """Run the whole model, keeping nothing."""
        self.model.forward(self.images, keep='none')

    def training_pass(self):
        """Run forward, criterion and backward; gradients are added up."""
        out, cache = self.model.forward(self.images, train=True)
        _, _, dout = self.criterion(out, self.targets)
        self.model.backward(dout, cache)

    def count(self):
        """Return the Count of a training pass.

        Returns
        -------
        Count
            Of forward and backward; the gradients are dropped.
        """
        with counting(self.model) as count:
            self.training_pass()
        for p in self.model.params():  # inference is to be measured without gradients
            p.grad = None
        return count

    def rows(self, count):
        """Measure each part in turn.

        Parameters
        ----------
        count : Count
            Of a training pass: what `Bench.count` returns.

        Yields
        ------
        Row
            The sampling core, the parts that have layers, whole passes, AdamW's step.
        """
        calls = self._calls(list(PARTS.values()))
        core = self._core(calls)
        if core is not None:
            yield from self._core_rows(core)
            del core
        for name, module in PARTS.items():
            macs = count.macs(module, 'forward')
            if macs:  # an encoder may have no layer
                yield self._row(name, calls[module], macs)
        del calls
        macs = count.macs(kind='forward')
        yield self._row('whole inference', self.inference, macs)
        yield self._row('whole training pass', self.training_pass, count.macs())
        optimizer = AdamW(self.model)  # its moments are no part of the passes' memory
        size = sum(p.data.nbytes for p in optimizer.params.values())
        # the norm reads the gradients; the step p, g, m and v, and writes p, m and v
        yield self._row('AdamW step', optimizer.step, 0, 8 * size)

    def profile(self):
        """Return what `timing` finds, of each pass.

        The first call of each pays for the first use of memory and does not count; of
        `runs` more, the one that takes the median.

        Returns
        -------
        dict of str → dict
            'whole inference' and 'whole training pass', of each (module's name,
            'forward' or 'backward') → Spent. Where an inference sends tiles of tokens
            through all layers of the encoder, which shows no layer, between them
            'inference, layer by layer', with the encoder's layers one after another.
        """
        spent = {'whole inference': self._profile(self.inference)}
        layers = f'{PARTS["encoder"]}.layers.'
        seen = any(name.startswith(layers) for name, _ in spent['whole inference'])
        if self.model.config.encoder_layers and not seen:
            others = {k: f for k, f in twins().items() if k[0] != Encoder.infer.key}
            with substitute(others):
                found = self._profile(self.inference)
            spent['inference, layer by layer'] = found
        spent['whole training pass'] = self._profile(self.training_pass)
        return spent

    def _profile(self, function):
        function()
        calls = []
        for _ in range(self.runs):
            with timing(self.model) as modules:
                function()
            calls.append(modules)
        calls.sort(key=lambda modules: sum(s.own for s in modules.values()))
        return calls[(self.runs - 1) // 2]

    def _row(self, name, function, macs, size=0):
        device = self.model.device
        known = reset_peak(device)
        function()  # the first call is no measure of time, but of memory
        most = peak(device) if known else None
        seconds = [timed(function, device) for _ in range(self.runs)]
        return Row(name, seconds, macs, size, most)

    def _calls(self, names):
        """Return {module: a call of it as one pass of the whole model makes it}."""
        calls = {}

        def around(name, method, call, *args, **kwargs):
            if name in names and method == 'forward':
                calls[name] = lambda: call(*args, **kwargs)
            return call(*args, **kwargs)

        with watch(self.model, around):
            self.inference()
        return calls

    def _core(self, calls):
        """Return the sampling core's arguments in the first encoder layer."""
        if not self.model.config.encoder_layers:
            return None
        taken = []

        def take(value, shapes, loc, A):
            if not taken:
                taken.append((value, shapes, loc, A))
            # what follows is not used: nothing needs to be sampled
            shape = loc.shape[:3] + value.shape[3:]
            return get_xp(value).zeros(shape, value.dtype), None

        # without the twin of the encoder's inference, the core is called for itself
        library = get_xp(self.images).__name__
        with substitute({(ms_deform_attn.key, library): take}):
            calls['transformer.encoder']()
        return taken[0]

    def _core_rows(self, core):
        value, shapes, loc, A = core
        y, cache = ms_deform_attn(*core)
        dy = self._normal(y.shape)
        size = sum(a.nbytes for a in (value, loc, A, y))
        yield self._row('core, forward', lambda: ms_deform_attn(*core), 0, size)
        # value, loc and A are read, and their gradients written
        size = 2 * size - y.nbytes
        yield self._row(
            'core, backward', lambda: ms_deform_attn_backward(dy, cache), 0, size
        )
