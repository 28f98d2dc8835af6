"""AdamW and SGD with the published parameter groups, clipping by the global norm."""

import math

import numpy as np

from .. import threads
from ..backend import get_xp, to_host
from ..errors import InputError, NotFiniteError
from ..module import Param
from ..ops.update import adamw_update, sgd_update, sum_of_squares
from .groups import make_groups

CLIP_EPS = 1e-6  # as published: the clipped norm stays just below `clip`


class Optimizer:
    """What AdamW and SGD share: groups, clipping, state.

    The arrays of a parameter's state are made at its first step, where it is then.

    Parameters
    ----------
    model : Module
        What is to learn; its parameters are updated in place.
    lr, weight_decay : float
        Of the main group, 0 or more.
    clip : float or None
        The gradients' largest global norm; None or 0 does not clip.
    groups : sequence of GroupRule or None
        None: the published ones (see `make_groups`).
    """

    slots = ()  # names of a parameter's state arrays, as PyTorch has them

    def __init__(self, model, lr, weight_decay, clip, groups):
        for name, value in (('lr', lr), ('weight_decay', weight_decay)):
            need(value >= 0, name, value, '0 or more')
        need(clip is None or clip >= 0, 'clip', clip, 'None, or 0 or more')
        self.clip = clip
        self.groups = make_groups(model, float(lr), float(weight_decay), groups)
        self.steps = 0
        self.schedules = []
        self._state = {}  # name → {slot: array}

    @property
    def params(self):
        """{name: Param} of all groups."""
        return {name: p for g in self.groups for name, p in g.params.items()}

    @property
    def lr(self):
        """The groups' learning rates of now."""
        return [g.lr for g in self.groups]

    def step(self, loss_scale=1.0):
        """Clip the gradients, update every parameter in place.

        Parameters
        ----------
        loss_scale : float
            What the loss was multiplied by: the gradients are divided by it.

        Returns
        -------
        norm : float
            The gradients' global norm before clipping. `.grad` is left as it is.

        Raises
        ------
        NotFiniteError
            A gradient is not finite; it is named, and nothing has changed.
        """
        norm = grad_norm(self.params) / loss_scale
        scale = min(1.0, self.clip / (norm + CLIP_EPS)) if self.clip else 1.0
        scale /= loss_scale
        self.steps += 1
        params = self.params
        slots = {name: self._slots(name, p) for name, p in params.items()}
        group = {name: g for g in self.groups for name in g.params}

        def update(name):
            self._update(params[name], group[name], scale, **slots[name])

        for_each(update, params)
        return norm

    def _slots(self, name, p):
        if name not in self._state:
            xp = get_xp(p.data)
            self._state[name] = {s: xp.zeros_like(p.data) for s in self.slots}
        return self._state[name]

    def update_lr(self):
        """Set the groups' rates from their base and the schedules' factors."""
        factor = math.prod(s.factor(s.n) for s in self.schedules)
        for g in self.groups:
            g.lr = g.base_lr * factor

    def state_dict(self):
        """Return what `load_state_dict` needs to go on exactly.

        Returns
        -------
        dict
            'steps': int; 'lr', 'base_lr' and 'weight_decay': a list of the groups';
            each slot: {published name: array in the published layout}, empty before the
            first step.
        """
        params = self.params
        state = {
            'steps': self.steps,
            'lr': self.lr,
            'base_lr': [g.base_lr for g in self.groups],
            'weight_decay': [g.weight_decay for g in self.groups],
        }
        for slot in self.slots:
            state[slot] = {
                name: params[name].publish(arrays[slot])
                for name, arrays in self._state.items()
            }
        return state

    def load_state_dict(self, state):
        """Restore `state_dict`. Schedules have their own.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.

        Raises
        ------
        InputError
            The state is of another model, optimiser or grouping; nothing has changed.
        """
        self._check(state)
        self.steps = int(state['steps'])
        for i, g in enumerate(self.groups):
            g.lr, g.base_lr = float(state['lr'][i]), float(state['base_lr'][i])
            g.weight_decay = float(state['weight_decay'][i])
        self._state = {}
        for name, p in self.params.items() if self.steps else ():
            for slot, array in self._slots(name, p).items():
                Param(array, conv=p.conv).load(state[slot][name])

    def _check(self, state):
        keys = {'steps', 'lr', 'base_lr', 'weight_decay', *self.slots}
        if set(state) != keys:
            raise InputError(
                f'the state has {sorted(state)}; {type(self).__name__} here needs '
                f'{sorted(keys)}: use the optimiser it was saved from'
            )
        if len(state['lr']) != len(self.groups):
            raise InputError(
                f'the state has {len(state["lr"])} groups, the optimiser '
                f'{len(self.groups)}; make it with the groups it was saved with'
            )
        params = self.params if state['steps'] else {}
        expected = {name: p.shape for name, p in params.items()}
        for slot in self.slots:
            came = {name: tuple(a.shape) for name, a in state[slot].items()}
            wrong = sorted(
                name
                for name in expected.keys() | came.keys()
                if expected.get(name) != came.get(name)
            )
            if wrong:
                name = wrong[0]
                raise InputError(
                    f'{slot} does not fit the model at {len(wrong)} parameters; the '
                    f'first, {name}: expected {expected.get(name, "nothing")}, got '
                    f'{came.get(name, "nothing")}'
                )


class AdamW(Optimizer):
    """Adam with the decay apart from the gradient, on every parameter, as published.

    Parameters
    ----------
    model : Module
        What is to learn; its parameters are updated in place.
    lr : float
        Of the main group.
    weight_decay : float
        On every parameter, norms and biases too.
    clip : float or None
        The gradients' largest global norm; None or 0 does not clip.
    groups : sequence of GroupRule or None
        None: the published ones (see `make_groups`).
    betas : (float, float)
        In [0, 1).
    eps : float
        ε of `adamw_update`, above 0.
    """

    slots = ('exp_avg', 'exp_avg_sq')

    def __init__(
        self,
        model,
        lr=2e-4,
        weight_decay=1e-4,
        clip=0.1,
        groups=None,
        betas=(0.9, 0.999),
        eps=1e-8,
    ):
        super().__init__(model, lr, weight_decay, clip, groups)
        for beta in betas:
            need(0 <= beta < 1, 'betas', betas, 'two numbers in [0, 1)')
        need(eps > 0, 'eps', eps, 'above 0')
        self.betas, self.eps = tuple(map(float, betas)), float(eps)

    def _update(self, p, group, scale, exp_avg, exp_avg_sq):
        adamw_update(
            p.data,
            p.grad,
            exp_avg,
            exp_avg_sq,
            group.lr,
            *self.betas,
            self.eps,
            group.weight_decay,
            self.steps,
            scale,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; the decay is part of the gradient.

    Parameters
    ----------
    model : Module
        What is to learn; its parameters are updated in place.
    lr : float
        Of the main group.
    momentum : float
        μ of `sgd_update`, in [0, 1).
    weight_decay : float
        λ, on every parameter.
    nesterov : bool
        Step along g + μ m rather than m; needs momentum.
    clip : float or None
        The gradients' largest global norm; None or 0 does not clip.
    groups : sequence of GroupRule or None
        None: the published ones (see `make_groups`).
    """

    def __init__(
        self,
        model,
        lr=2e-4,
        momentum=0.9,
        weight_decay=1e-4,
        nesterov=False,
        clip=0.1,
        groups=None,
    ):
        super().__init__(model, lr, weight_decay, clip, groups)
        need(0 <= momentum < 1, 'momentum', momentum, 'in [0, 1)')
        need(momentum or not nesterov, 'nesterov', nesterov, 'False without momentum')
        self.momentum, self.nesterov = float(momentum), nesterov
        self.slots = ('momentum_buffer',) if momentum else ()

    def _update(self, p, group, scale, momentum_buffer=None):
        sgd_update(
            p.data,
            p.grad,
            momentum_buffer,
            group.lr,
            self.momentum,
            group.weight_decay,
            self.nesterov,
            scale,
        )


def for_each(function, params):
    """Call a function for each parameter, on the CPU in threads.

    The largest come first, so that the small ones fill up what is left. Threads that
    shared each parameter would wait for each other hundreds of times.

    Parameters
    ----------
    function : callable
        Takes a name.
    params : dict
        Name → Param.
    """
    names = sorted(params, key=lambda name: -params[name].data.size)
    if all(get_xp(p.data) is np for p in params.values()):
        threads.run(function, names)
    else:  # a GPU's work is asked for by one thread
        for name in names:
            function(name)


def grad_norm(params):
    """Return ‖gradients‖₂ over all parameters.

    Parameters
    ----------
    params : dict
        Name → Param.

    Returns
    -------
    float
        0 if there are no parameters.

    Raises
    ------
    NotFiniteError
        Naming the first parameter whose gradient is not finite.
    """
    if not params:
        return 0.0
    squares = dict.fromkeys(params)

    def add(name):
        squares[name] = sum_of_squares(params[name].grad)

    for_each(add, params)
    squares = list(squares.values())
    squares = to_host(get_xp(*squares).stack(squares))  # one crossing for all of them
    for name, square in zip(params, squares):
        if not math.isfinite(square):
            raise NotFiniteError(
                f'the gradient of {name} is not finite; nothing was updated: check the '
                'pictures and targets of this step, or lower the learning rate'
            )
    return math.sqrt(squares.sum())


def need(condition, name, value, expected):
    """Raise InputError unless the condition on a setting holds.

    Parameters
    ----------
    condition : bool
        What must hold.
    name : str
        The setting's, for the message.
    value : object
        What came.
    expected : str
        What the condition says, as '0 or more'.
    """
    if not condition:
        raise InputError(f'{name} is {value!r}; expected {expected}')
