"""Time by module: what each call takes, with and without the modules inside."""

import contextlib
import re
import time
from dataclasses import dataclass

from ..backend import wait
from .watch import watch


@dataclass
class Spent:
    """Of a module's calls of one kind.

    Parameters
    ----------
    calls : int
        How many; an `infer` that calls `forward` is one.
    total : float
        Seconds, the modules inside included.
    own : float
        Seconds without those.
    """

    calls: int = 0
    total: float = 0.0
    own: float = 0.0


@contextlib.contextmanager
def timing(model):
    """Time a model's modules within the block.

    What is computed again in a backward pass counts as forward.

    Parameters
    ----------
    model : Module
        With a `device`, which is waited for around each call.

    Yields
    ------
    dict
        (module's name, 'forward' or 'backward') → Spent. The model's own name is ''.
    """
    spent = {}
    device = model.device
    running = []  # [(name, kind), seconds of the modules inside]

    def around(name, method, call, *args, **kwargs):
        where = name, 'backward' if method == 'backward' else 'forward'
        row = spent.setdefault(where, Spent())
        # a module's infer may call its forward: one call
        again = bool(running) and running[-1][0] == where
        running.append([where, 0.0])
        wait(device)
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            wait(device)  # a GPU is only asked to work
            seconds = time.perf_counter() - start
            _, inside = running.pop()
            row.own += seconds - inside
            if running:
                running[-1][1] += seconds
            if not again:
                row.calls += 1
                row.total += seconds

    with watch(model, around):
        yield spent


LAYER = re.compile(r'(layers|layer\d|_embed|input_proj)\.\d+')


def alike(spent):
    """Add up what differs only in the number of a layer: 'encoder.layers.*.linear1'.

    Parameters
    ----------
    spent : dict
        As from `timing`.

    Returns
    -------
    dict
    """
    total = {}
    for (name, kind), s in spent.items():
        row = total.setdefault((LAYER.sub(r'\1.*', name), kind), Spent())
        row.calls += s.calls
        row.total += s.total
        row.own += s.own
    return total
