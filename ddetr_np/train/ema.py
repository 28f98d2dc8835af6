"""The moving average of a model's weights."""

import contextlib

import numpy as np

from ..errors import InputError
from ..module import Param
from .optim import need


class Ema:
    """ā ← ā + (1 − d)(a − ā) after each step, d = min(decay, (1 + n) / (10 + n)).

    n counts the updates: with a constant d the initial weights would count for
    1 / (1 − d) steps. Running statistics of learning batch norms are averaged too.

    Parameters
    ----------
    model : Module
        On the device it learns on; the averages are made there.
    decay : float
        In (0, 1).
    """

    def __init__(self, model, decay=0.9997):
        need(0 < decay < 1, 'decay', decay, 'in (0, 1)')
        self.decay, self.n = decay, 0
        # a frozen tensor does not change, so its average is itself
        self._params = {
            name: p for name, p in model.named_params() if p.learns or p.buffer
        }
        self._averages = {name: p.data.copy() for name, p in self._params.items()}

    def update(self):
        """Count the weights of now."""
        self.n += 1
        share = 1 - min(self.decay, (1 + self.n) / (10 + self.n))
        for name, p in self._params.items():
            average = self._averages[name]
            average += share * (p.data - average)

    @contextlib.contextmanager
    def applied(self):
        """Give the model the averages within the block.

        Yields
        ------
        None
            At the end, or on an error, the model has its own weights again.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self):
        """Give the model the averages for good."""
        self._swap()

    def _swap(self):
        for name, p in self._params.items():
            p.data, self._averages[name] = self._averages[name], p.data

    def state_dict(self):
        """Return what `load_state_dict` needs to go on exactly.

        Returns
        -------
        dict
            'n': int, the updates so far; 'average': {published name: array in the
            published layout}.
        """
        average = {
            name: self._params[name].publish(a) for name, a in self._averages.items()
        }
        return {'n': self.n, 'average': average}

    def load_state_dict(self, state):
        """Restore `state_dict`.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.

        Raises
        ------
        InputError
            It is of another model.
        """
        expected = {name: p.shape for name, p in self._params.items()}
        came = {name: np.shape(a) for name, a in state['average'].items()}
        if expected != came:
            wrong = sorted(
                n for n in expected.keys() | came.keys()
                if expected.get(n) != came.get(n)
            )
            raise InputError(
                f'the moving average does not fit the model at {len(wrong)} tensors, '
                f'the first is {wrong[0]}; build the model it was saved with'
            )
        self.n = int(state['n'])
        for name, p in self._params.items():
            Param(self._averages[name], conv=p.conv).load(state['average'][name])
