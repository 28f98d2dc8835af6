"""The training loop."""

import contextlib
import itertools
import json
import math
import time
from pathlib import Path

from ..backend import mixed, need_device
from ..data.loader import Loader
from ..errors import InputError, NotFiniteError
from ..evaluate import evaluate
from ..evaluate.evaluation import check_classes
from ..files import replacing
from ..loss import Criterion, Weights
from ..weights import save_model
from .checkpoint import NAME, read_checkpoint, sweep
from .log import Log, need_board
from .settings import read_settings
from .start import absolute, build, describe_data, lr_advice, need_same_data, open_data
from .state import State, restored_model
from .team import Team

SETTINGS, MODEL, BEST = 'settings.toml', 'model.safetensors', 'best.safetensors'
MEANS = ('class_error', 'cardinality_error')  # the losses add up, these do not


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has saved."""


def train_model(settings, out, *, resume=False, tell=None, stop=None):
    """Train a detector.

    The folder gets settings.toml, metrics.jsonl, checkpoint.safetensors and the one
    before it, figures.json of the last evaluation, best.safetensors (of the highest AP)
    and model.safetensors: the weights after the last epoch that is over, their moving
    average if there is one.

    Parameters
    ----------
    settings : Settings
        Relative paths count from the working directory; they are stored as absolute.
    out : path
        The run's folder.
    resume : bool
        Go on where the folder's last checkpoint is: every bit is that of a run that was
        never stopped, whatever the number of workers.
    tell : callable, optional
        Called as tell(kind, **facts) with what happens: 'warning', 'weights', 'start',
        'step', 'saved', 'evaluating', 'eval', 'skipped'.
    stop : callable, optional
        Asked after each step; if it returns True, the run saves and ends.

    Returns
    -------
    model : DeformableDETR
        As in model.safetensors.
    report : Report or None
        Of the last evaluation in this call.

    Raises
    ------
    InputError
        A setting, the data or the folder cannot be used.
    NotFiniteError
        A loss or gradient is not finite. It is named, with the ids of the step's
        pictures; the last checkpoint stays.
    Interrupted
        `stop` returned True.
    """
    out = Path(out)
    tell = tell or (lambda kind, **facts: None)
    stop = stop or (lambda: False)
    settings = absolute(settings)
    if settings.tensorboard:
        need_board()
    need_device(settings.device)
    if settings.precision == 'mixed' and settings.device == 'cpu':
        raise InputError(
            'the setting precision is mixed, which is for a GPU: a CPU has no products '
            'of half precision; add --device cuda:0, or leave precision at single'
        )
    saved = _open_folder(settings, out, resume)
    data, val = open_data(settings)
    described = describe_data(data)
    advice = lr_advice(settings.lr, settings.batch * settings.accumulate)
    if saved is None:
        model = build(settings, data, tell).to(settings.device)
        if advice:
            tell('warning', text=advice)
    else:
        need_same_data(described, saved[3]['data'], data.origin)
        model = restored_model(settings, *saved[:2])
    if val is not None:
        check_classes(model.config, val)

    loader = Loader(
        data,
        settings.batch,
        settings.augment.make(settings.short, settings.long),
        seed=settings.seed,
        workers=settings.workers,
        ahead=settings.accumulate + 1,
        dtype=settings.dtype,
        skip_bad=settings.skip_bad,
    )
    steps = len(loader) // settings.accumulate
    if not steps:
        raise InputError(
            f'{data.origin} has {len(data)} pictures, fewer than the {settings.batch} '
            f'× {settings.accumulate} of one step; use a smaller --batch or '
            '--accumulate'
        )
    if saved is None and 3 * settings.warmup > settings.epochs * steps:
        tell('warning', text=(
            f'the learning rate rises for {settings.warmup} of the '
            f'{settings.epochs * steps} steps: lower warmup, or train longer'
        ))
    state = State(settings, model, steps)
    if saved is not None:
        state.restore(*saved[2:])
    criterion = Criterion(
        model.config, Weights(settings.ce, settings.bbox, settings.giou),
        settings.alpha, settings.gamma,
    )
    team = Team(model, criterion, settings.keep, settings.processes)
    out.mkdir(parents=True, exist_ok=True)
    settings.write(out / SETTINGS)
    size = saved[3]['log_size'] if saved else 0
    log = Log(out, size, settings.tensorboard, state.step)
    tell('start', state=state, settings=settings, steps=steps, data=data, val=val)
    begun = time.perf_counter() - state.seconds
    report = None

    def save():
        state.seconds = time.perf_counter() - begun
        state.save(out, data=described, log_size=log.size)
        tell('saved', step=state.step)

    def save_weights(name):
        with averaged(state):
            save_model(model, out / name)

    try:
        while state.epoch < settings.epochs:
            batches = loader.epoch(state.epoch, state.done * settings.accumulate)
            while state.done < steps:
                group = list(itertools.islice(batches, settings.accumulate))
                figures = learn(state, team, group)
                record = {'kind': 'step', 'epoch': state.epoch + 1, 'step': state.step}
                record |= figures | {'seconds': round(time.perf_counter() - begun, 3)}
                log.write(record)
                tell('step', record=record)
                if stop():
                    save()
                    raise Interrupted
                if state.step % settings.save_every == 0:
                    save()
            batches.close()
            last = state.epoch + 1 == settings.epochs
            judged = None
            if val is not None and (
                last or (state.epoch + 1) % settings.evaluate_every == 0
            ):
                save()  # before what may take long
                tell('evaluating', pictures=len(val))
                report = _judge(state, settings, val, tell, stop)
                record = {'kind': 'eval', 'epoch': state.epoch + 1, 'step': state.step}
                log.write(record | report.figures)
                _write_json(out / 'figures.json', record | report.to_dict())
                if report.figures['AP'] > state.best:
                    state.best = report.figures['AP']
                    save_weights(BEST)
                judged = {'record': record, 'report': report, 'best': state.best}
            state.count_epoch()
            save_weights(MODEL)
            save()
            if judged:  # last: whoever is told may draw, which takes its time
                tell('eval', **judged)
    except NotFiniteError as error:
        raise NotFiniteError(f'{error}\n{_last_good(out)}') from error
    finally:
        log.close()
        loader.close()
        team.close()
        if loader.skipped:
            tell('skipped', counts=loader.skipped)
    save_weights(MODEL)  # a run that ended between its last two files
    if state.ema:
        state.ema.keep()
    return model, report


def learn(state, team, batches):
    """Make one step of the optimiser from some batches.

    Their gradients add up to that of one large batch: each part's losses are divided by
    the boxes of all. (Equal but for rounding where nothing sees its neighbours: padding
    and the statistics of learning batch norms are each batch's own.)

    Parameters
    ----------
    state : State
        It moves on by a step.
    team : Team
        Made with the state's model.
    batches : list of Batch
        At least one; they are brought to the model's device.

    Returns
    -------
    dict
        'loss', the losses of the last layer, 'grad_norm' before clipping, 'lr' of the
        main group, 'boxes' and 'pictures'. In mixed precision also 'loss_scale', and
        the norm is infinite where the scale was too large and the step left out.

    Raises
    ------
    NotFiniteError
        With the ids of the pictures; the weights are as before.
    """
    optimizer = state.optimizer
    boxes = sum(len(t['labels']) for b in batches for t in b.targets)
    figures = {'loss': 0.0}
    lr = optimizer.lr[0]
    waiting = list(batches)
    scale = state.loss_scale.scale if state.loss_scale else 1.0
    try:
        with mixed() if state.loss_scale else contextlib.nullcontext():
            for total, losses in team.add_gradients(
                batches, boxes, state.step * len(batches), scale
            ):
                waiting.pop(0)
                for name, value in losses.items():
                    share = len(batches) if name.startswith(MEANS) else 1
                    figures[name] = figures.get(name, 0.0) + value / share
                figures['loss'] += total
        norm = _step(optimizer, state.loss_scale)
    except NotFiniteError as error:
        # of the batch whose turn it was, or, after all of them, of their sum
        ids = [list(b.ids) for b in waiting[:1] or batches]
        raise NotFiniteError(
            f'step {state.step}: {error}\nids of the pictures, in order: '
            f'{", ".join(str(i) for some in ids for i in some)}'
        ) from error
    state.count_step()
    if state.loss_scale:
        figures['loss_scale'] = scale
    return figures | {
        'grad_norm': norm,
        'lr': lr,
        'boxes': boxes,
        'pictures': sum(len(b.ids) for b in batches),
    }


def _step(optimizer, loss_scale):
    """Make the optimiser's step; leave it out where the loss was scaled too much."""
    if loss_scale is None:
        return optimizer.step()
    try:
        norm = optimizer.step(loss_scale.scale)
    except NotFiniteError:
        loss_scale.count(finite=False)
        return math.inf
    loss_scale.count(finite=True)
    return norm


def averaged(state):
    """Return a context in which the model has its moving average, if there is one.

    Parameters
    ----------
    state : State
        Its model gets its own weights back when the block ends.

    Returns
    -------
    context manager
        It does nothing where `state.ema` is None.
    """
    return state.ema.applied() if state.ema else contextlib.nullcontext()


def _judge(state, settings, val, tell, stop):
    def progress(done):
        tell('evaluated', pictures=done)
        if stop():
            raise Interrupted  # what was learnt is saved

    with averaged(state):
        return evaluate(
            state.model,
            val,
            short=settings.short,
            long=settings.long,
            batch=settings.evaluate_batch,
            skip_bad=settings.skip_bad,
            progress=progress,
        )


def _open_folder(settings, out, resume):
    """Return the checkpoint to go on from, if any; refuse an unsuitable folder."""
    if out.exists() and not out.is_dir():
        raise InputError(f'{out} is a file; expected a folder for the run')
    there = (out / SETTINGS).exists()
    if not resume:
        if there:
            raise InputError(
                f'{out} holds a run already; add --resume to go on with it, or choose '
                'another folder'
            )
        return None
    settings.need_same(stored_settings(out))
    sweep(out)
    return read_checkpoint(out)


def stored_settings(out):
    """Return the Settings that the run in a folder began with.

    Parameters
    ----------
    out : path
        The run's folder.

    Returns
    -------
    Settings
        Those of its settings.toml.

    Raises
    ------
    InputError
        There is no run in it.
    """
    path = Path(out) / SETTINGS
    if not path.exists():
        raise InputError(
            f'{out} holds no run that could go on (there is no {path}); check the '
            'folder, or begin one without --resume'
        )
    return read_settings(path)


def _last_good(out):
    if not (out / NAME).exists():
        return (
            'no checkpoint had been written yet; lower lr, add a warmup, or leave '
            'these pictures out'
        )
    return (
        f'the last good checkpoint stays: {out / NAME}. To train on from it with other '
        f'settings, such as a lower lr: --weights {out / NAME} --out OTHER'
    )


def _write_json(path, content):
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
