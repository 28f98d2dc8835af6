"""Everything that changes while a model learns, so that it can go on bit for bit."""

from ..config import Config
from ..errors import InputError
from ..nn.ddetr import DeformableDETR
from .checkpoint import write_checkpoint
from .ema import Ema
from .groups import GroupRule
from .loss_scale import LossScale
from .optim import SGD, AdamW
from .schedule import Cosine, StepLR, Warmup


class State:
    """Model, optimiser, schedules, average, and the place in the data.

    Dropout's masks are a function of the model's seed and of `step`; the pictures and
    their augmentation, of the loader's seed and (epoch, done). So no generator has a
    state to be kept.

    Parameters
    ----------
    settings : Settings
        They name the optimiser, the schedules and whether there is an average.
    model : DeformableDETR
        On its device.
    steps : int
        Of an epoch.

    Attributes
    ----------
    loss_scale : LossScale or None
        In mixed precision.
    epoch, done : int
        Epochs, and steps of the next one, that are behind.
    step : int
        Steps of all.
    best : float
        The highest AP so far; −1 before any.
    seconds : float
        Spent.
    """

    def __init__(self, settings, model, steps):
        self.model = model
        self.optimizer = make_optimizer(settings, model)
        self.by_step, self.by_epoch = [], []
        if settings.schedule == 'step':
            self.by_epoch.append(
                StepLR(self.optimizer, settings.drop_every, settings.drop)
            )
        elif settings.schedule == 'cosine':
            total = settings.epochs * steps
            self.by_step.append(Cosine(self.optimizer, total, settings.end))
        if settings.warmup:
            warmup = Warmup(self.optimizer, settings.warmup, settings.warmup_start)
            self.by_step.append(warmup)
        self.ema = Ema(model, settings.ema) if settings.ema else None
        self.loss_scale = LossScale() if settings.precision == 'mixed' else None
        self.epoch = self.done = self.step = 0
        self.best = -1.0
        self.seconds = 0.0

    def count_step(self):
        """Note that the optimiser has made a step."""
        for schedule in self.by_step:
            schedule.step()
        if self.ema:
            self.ema.update()
        self.step += 1
        self.done += 1

    def count_epoch(self):
        """Note that an epoch is over, its evaluation too."""
        for schedule in self.by_epoch:
            schedule.step()
        self.epoch += 1
        self.done = 0

    def save(self, folder, **facts):
        """Write a checkpoint; `facts` are what the caller wants back.

        Parameters
        ----------
        folder : path
            The run's; it exists.
        **facts
            As JSON can hold them; among the facts of `read_checkpoint`.
        """
        weights = {n: p.publish(p.data) for n, p in self.model.named_params()}
        optimizer = self.optimizer.state_dict()
        tensors = {slot: optimizer.pop(slot) for slot in self.optimizer.slots}
        facts |= {
            'optimizer': optimizer,
            'schedules': [s.state_dict() for s in self.by_step + self.by_epoch],
        }
        for name in ('epoch', 'done', 'step', 'best', 'seconds'):
            facts[name] = getattr(self, name)
        if self.ema:
            ema = self.ema.state_dict()
            tensors['ema'], facts['ema'] = ema['average'], ema['n']
        if self.loss_scale:
            facts['loss_scale'] = self.loss_scale.state_dict()
        config = self.model.config.to_dict()
        write_checkpoint(folder, weights, config, tensors, facts)

    def restore(self, tensors, facts):
        """Take up what `save` wrote; the model has its weights already.

        Parameters
        ----------
        tensors, facts : dict
            As `read_checkpoint` returns them.

        Raises
        ------
        InputError
            Something is missing: another version wrote it.
        """
        try:
            slots = {slot: tensors.get(slot, {}) for slot in self.optimizer.slots}
            self.optimizer.load_state_dict(facts['optimizer'] | slots)
            schedules = self.by_step + self.by_epoch
            for schedule, state in zip(schedules, facts['schedules'], strict=True):
                schedule.load_state_dict(state)
            if self.ema:
                self.ema.load_state_dict({'n': facts['ema'], 'average': tensors['ema']})
            if self.loss_scale:
                self.loss_scale.load_state_dict(facts['loss_scale'])
            for name in ('epoch', 'done', 'step', 'best', 'seconds'):
                setattr(self, name, facts[name])
        except (KeyError, TypeError) as error:
            raise InputError(
                f'the checkpoint lacks {error}: it is of another version; begin '
                'another run with --weights'
            ) from error


def restored_model(settings, weights, config):
    """Return the model that a checkpoint holds, on the run's device.

    Parameters
    ----------
    settings : Settings
        For dtype, seed and device.
    weights : dict of str → array
        Published names and layouts.
    config : dict
        `Config.to_dict()`.

    Returns
    -------
    DeformableDETR
        With exactly those weights.
    """
    model = DeformableDETR(
        Config.from_dict(config), settings.dtype, settings.seed, empty=True
    )
    model.load_state_dict(weights)
    return model.to(settings.device)


def make_optimizer(settings, model):
    """Return the optimiser of a run, with the published groups at its factors.

    Parameters
    ----------
    settings : Settings
        `optimizer` says which it is.
    model : DeformableDETR
        On its device.

    Returns
    -------
    AdamW or SGD
        Before its first step.
    """
    groups = (
        GroupRule(('backbone.0',), settings.backbone_lr),
        GroupRule(('reference_points', 'sampling_offsets'), settings.offsets_lr),
    )
    shared = {
        'lr': settings.lr,
        'weight_decay': settings.weight_decay,
        'clip': settings.clip,
        'groups': groups,
    }
    if settings.optimizer == 'sgd':
        return SGD(model, momentum=settings.momentum, **shared)
    return AdamW(model, betas=settings.betas, eps=settings.eps, **shared)
