"""Scaling of the loss, so that gradients of half precision do not vanish."""

from ..errors import NotFiniteError


class LossScale:
    """A factor of the loss, as large as half precision lets it be.

    Half precision ends at 6e-8 below and 65,504 above. The loss is multiplied by the
    scale before its gradient goes back, and the gradient divided by it where it has
    become single. Where a gradient is not finite the scale was too large: the step is
    left out and the scale halved. After `patience` good steps it is doubled.

    Parameters
    ----------
    scale : float
        To begin with.
    patience : int
        Good steps in a row.
    """

    LEAST = 2.0**-8  # less is no matter of scale: something else is wrong

    def __init__(self, scale=2.0**16, patience=2000):
        self.scale, self.patience = float(scale), patience
        self.good = self.skipped = 0

    def count(self, finite):
        """Note that a step's gradients were finite, or that it was left out.

        Parameters
        ----------
        finite : bool
            Whether the step was made.

        Raises
        ------
        NotFiniteError
            The scale is at its end.
        """
        if finite:
            self.good += 1
            if self.good == self.patience:
                self.scale, self.good = 2 * self.scale, 0
            return
        self.scale, self.good, self.skipped = self.scale / 2, 0, self.skipped + 1
        if self.scale < self.LEAST:
            raise NotFiniteError(
                'gradients are not finite, though the loss is scaled by no more than '
                f'{self.scale:g}: lower the learning rate, or leave precision at single'
            )

    def state_dict(self):
        """Return what `load_state_dict` needs to go on exactly.

        Returns
        -------
        dict
            'scale', 'good' and 'skipped', numbers.
        """
        return {'scale': self.scale, 'good': self.good, 'skipped': self.skipped}

    def load_state_dict(self, state):
        """Restore `state_dict`.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.
        """
        self.scale, self.good = float(state['scale']), int(state['good'])
        self.skipped = int(state['skipped'])
