"""Learning rates as functions of the step; several on one optimiser multiply."""

import math

from .optim import need


class Schedule:
    """A factor of every group's learning rate.

    The factor is a pure function of `n`, the number of `step()` calls. Schedules of one
    optimiser multiply, and each is stepped at its own pace: a warm-up every iteration,
    say, and a drop every epoch.

    Parameters
    ----------
    optimizer : Optimizer
        It takes the schedule up; its rates are set at once.
    """

    def __init__(self, optimizer):
        self.n = 0
        self.optimizer = optimizer
        optimizer.schedules.append(self)
        optimizer.update_lr()

    def factor(self, n):
        """The factor after n steps.

        Parameters
        ----------
        n : int
            Calls of `step` so far.

        Returns
        -------
        float
            What the groups' base rates are multiplied by, 0 or more.
        """
        raise NotImplementedError

    def step(self):
        """Count one step and set the learning rates."""
        self.n += 1
        self.optimizer.update_lr()

    def state_dict(self):
        """Return what `load_state_dict` needs to go on exactly.

        Returns
        -------
        dict
            'n': int, the steps so far.
        """
        return {'n': self.n}

    def load_state_dict(self, state):
        """Restore `state_dict` and set the learning rates.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.
        """
        self.n = int(state['n'])
        self.optimizer.update_lr()


class StepLR(Schedule):
    """gamma^⌊n / step⌋: one drop after every `step` steps.

    Parameters
    ----------
    optimizer : Optimizer
        It takes the schedule up; its rates are set at once.
    step : int
        Published: 40, stepped once an epoch, of 50.
    gamma : float
        The factor of each drop, 0 or more.
    """

    def __init__(self, optimizer, step=40, gamma=0.1):
        need(step >= 1, 'step', step, 'at least 1')
        need(gamma >= 0, 'gamma', gamma, '0 or more')
        self.every, self.gamma = step, gamma
        super().__init__(optimizer)

    def factor(self, n):
        return self.gamma ** (n // self.every)


class Cosine(Schedule):
    """From 1 to `end` along half a cosine in `steps` steps, then constant.

    Parameters
    ----------
    optimizer : Optimizer
        It takes the schedule up; its rates are set at once.
    steps : int
        At least 1.
    end : float
        The last factor, 0 or more.
    """

    def __init__(self, optimizer, steps, end=0.0):
        need(steps >= 1, 'steps', steps, 'at least 1')
        need(end >= 0, 'end', end, '0 or more')
        self.steps, self.end = steps, end
        super().__init__(optimizer)

    def factor(self, n):
        part = min(n, self.steps) / self.steps
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * part)) / 2


class Warmup(Schedule):
    """From `start` to 1 along a line in `steps` steps, then constant.

    Parameters
    ----------
    optimizer : Optimizer
        It takes the schedule up; its rates are set at once.
    steps : int
        At least 1.
    start : float
        In (0, 1].
    """

    def __init__(self, optimizer, steps, start=1e-3):
        need(steps >= 1, 'steps', steps, 'at least 1')
        need(0 < start <= 1, 'start', start, 'in (0, 1]')
        self.steps, self.start = steps, start
        super().__init__(optimizer)

    def factor(self, n):
        return self.start + (1 - self.start) * min(n, self.steps) / self.steps
