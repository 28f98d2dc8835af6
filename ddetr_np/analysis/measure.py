"""What an inference takes, module by module and part by part: `measure`."""

import contextlib
import math
import re
import tracemalloc
from dataclasses import dataclass, field

from .complexity import counting
from .watch import named_modules, watch

PARTS = {  # in the order of a pass; heads come first where a name fits two
    'backbone': r'backbone\.',
    'projections': r'input_proj\.|\(MultiScale\)',
    'encoder': r'transformer\.(encoder|level_embed)\b',
    'first stage': r'transformer\.enc_output',
    'queries': r'query_embed\b|transformer\.(reference_points|pos_trans)',
    'decoder': r'transformer\.decoder\b',
    'heads': r'(transformer\.decoder\.)?(class|bbox)_embed\.(?P<d>\d+)',
}


@dataclass
class Cost:
    """Of a module or a part of the model, in one inference.

    Parameters
    ----------
    macs : int
        Multiply-accumulates of its convolutions and matrix products.
    sampled : int
        Multiply-accumulates of sampling values at corners.
    params : int
        Its weights that learn.
    frozen : int
        Convolution weights that do not. Batch norms' constants are in neither.
    bytes : int
        Of its input, output and weights, at each call; of a part, at each call from
        outside. 0 where it never is at work by itself: a twin does its work.
    peak : int
        The most bytes of arrays alive while it was at work: its own and all that the
        pass has kept so far, without the weights and the picture.
    """

    macs: int = 0
    sampled: int = 0
    params: int = 0
    frozen: int = 0
    bytes: int = 0
    peak: int = 0


@dataclass
class Measured:
    """What `measure` finds.

    Parameters
    ----------
    modules : dict
        Module's name → Cost, the modules inside included; '' is the whole model.
    parts : dict
        Part (see `part_of`) → Cost. Parts do not overlap: their work and weights add up
        to the whole model's.
    """

    modules: dict = field(default_factory=dict)
    parts: dict = field(default_factory=dict)


def part_of(name, decoder_layers):
    """Return which of `PARTS` a module or Param belongs to; None for the whole model.

    Parameters
    ----------
    name : str
        Published, or as `named_modules` has it.
    decoder_layers : int
        The two-stage model's heads after those of its decoder are the first stage's.

    Returns
    -------
    str or None
        A key of `PARTS`; None, too, for what holds several of them ('transformer').
    """
    head = re.match(PARTS['heads'], name)
    if head:
        return 'first stage' if int(head['d']) >= decoder_layers else 'heads'
    return next((p for p, begins in PARTS.items() if re.match(begins, name)), None)


def measure(model, images, mask=None):
    """Send pictures through a model twice, to weigh its arrays and to count its work.

    Twice, because counted operations run one by one, where an inference has quicker
    ones that keep less. Weighed first: threads keep their scratch arrays, and those of
    an earlier pass would not be seen.

    Parameters
    ----------
    model : DeformableDETR
        On the CPU: a GPU's memory would not be seen.
    images : (N, H, W, 3) array
        Normalised pictures, padded on the right and at the bottom.
    mask : (N, H, W) bool array or None
        True = padding; None if there is none.

    Returns
    -------
    Measured
    """
    D = model.config.decoder_layers
    found = Measured({name: Cost() for name, _ in named_modules(model)})
    found.parts.update((part, Cost()) for part in PARTS)
    for name, p in model.named_params():
        which = 'params' if p.learns else None if p.buffer else 'frozen'
        if which:
            part = found.parts[part_of(name, D)]
            setattr(part, which, getattr(part, which) + p.data.size)
    for name, module in named_modules(model):
        params = [p for _, p in module.named_params()]
        cost = found.modules[name]
        cost.params = sum(p.data.size for p in params if p.learns)
        cost.frozen = sum(p.data.size for p in params if not (p.learns or p.buffer))
    with _weighing(model, found, D):
        model.forward(images, mask, keep='none')
    with counting(model) as count:
        model.forward(images, mask, keep='none')
    for (path, _), shapes in count.products.items():
        part = found.parts[part_of(path[-1], D)]
        part.macs += sum(math.prod(shape) * n for shape, n in shapes.items())
    for (path, _), n in count.samples.items():
        found.parts[part_of(path[-1], D)].sampled += n
    for name, cost in found.modules.items():
        cost.macs, cost.sampled = count.macs(name), count.sampled(name)
    return found


@contextlib.contextmanager
def _weighing(model, found, decoder_layers):
    """Add the bytes and the peaks of the passes within the block to what was found.

    NumPy tells Python's tracer of every array, so the peak is that of the arrays alone,
    the same on every machine. (What a GPU holds is not seen.)
    """
    weights = {
        name: [p.data for _, p in module.named_params()]
        for name, module in named_modules(model)
    }
    at_work = []  # [name, most bytes so far], the innermost last

    def most():
        """Bring the innermost up to date, and begin a new peak."""
        if at_work:
            peak = tracemalloc.get_traced_memory()[1] - before
            at_work[-1][1] = max(at_work[-1][1], peak)
        tracemalloc.reset_peak()

    def around(name, method, call, *args, **kwargs):
        outer = at_work[-1][0] if at_work else None
        most()
        at_work.append([name, 0])
        try:
            y = call(*args, **kwargs)
        finally:
            most()
            _, peak = at_work.pop()
            if at_work:
                at_work[-1][1] = max(at_work[-1][1], peak)
        part = part_of(name, decoder_layers)
        entered = outer is None or part_of(outer, decoder_layers) != part
        costs = [] if outer == name else [found.modules[name]]  # infer calls forward
        if part is not None:
            found.parts[part].peak = max(found.parts[part].peak, peak)
            costs += [found.parts[part]] * entered
        found.modules[name].peak = max(found.modules[name].peak, peak)
        y_only = y if method == 'infer' else y[:-1]  # a forward's cache comes last
        size = _nbytes((args, kwargs, y_only, weights[name]))
        for cost in costs:
            cost.bytes += size
        return y

    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with watch(model, around):
            yield
    finally:
        if not tracing:
            tracemalloc.stop()


def _nbytes(value):
    """Of all arrays in there, each once."""
    arrays, todo = {}, [value]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, (list, tuple)):
            todo.extend(value)
        elif hasattr(value, 'nbytes'):
            arrays[id(value)] = value.nbytes
    return sum(arrays.values())
