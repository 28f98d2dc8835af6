"""What a run begins with: its data sets, its model, and where that learnt before."""

import zlib
from pathlib import Path
from typing import NamedTuple

from ..config import VARIANTS, make_config
from ..data.reading import read_dataset
from ..data.scenes import Scenes
from ..errors import InputError
from ..evaluate.detection import COCO_CLASSES
from ..nn.ddetr import DeformableDETR
from ..weights import load_backbone, load_model, packaged
from .settings import SCENES

PUBLISHED_LR, PUBLISHED_BATCH = 2e-4, 32


def open_data(settings):
    """Return the data sets to learn from and, or None, to be judged on.

    Parameters
    ----------
    settings : Settings
        `data` and `val` name them, `scenes` says what is drawn.

    Returns
    -------
    data : Dataset
        To learn from.
    val : Dataset or None
        To be judged on; a file's classes are numbered as those of `data` if labels is
        'contiguous'.

    Raises
    ------
    InputError
        None is given, or one cannot be read.
    """
    if not settings.data:
        raise InputError(
            'there is no data set to learn from; give --data PATH (a COCO file, a VOC '
            'folder or list) or --data scenes'
        )
    s = settings.scenes
    if settings.data == SCENES:
        data = Scenes(s.count, s.seed, s.height, s.width, fresh=s.fresh)
    else:
        data = _read(settings.data, settings.pictures, settings)
    val = settings.val or (SCENES if settings.data == SCENES else '')
    if not val:
        return data, None
    if val == SCENES:
        if not s.val_count:
            return data, None
        return data, Scenes(s.val_count, s.val_seed, s.height, s.width)
    # the classes as the model will have learnt them, in their order
    names = data.names if settings.labels == 'contiguous' else None
    return data, _read(val, settings.val_pictures, settings, names)


def _read(path, pictures, settings, names=None):
    return read_dataset(
        path,
        pictures=pictures or None,
        labels='contiguous' if names else settings.labels,
        names=names,
        skip_bad=settings.skip_bad,
    )


def describe_data(data):
    """Return what must be the same when a run goes on: counts, classes, ids.

    Parameters
    ----------
    data : Dataset
        What the run learns from.

    Returns
    -------
    dict
        'pictures': int; 'classes': list of names; 'ids': int, a checksum of the
        pictures' ids and numbers of boxes (0 for scenes).
    """
    examples = getattr(data, 'examples', None)
    ids = '' if examples is None else repr([(e.id, len(e.boxes)) for e in examples])
    return {
        'pictures': len(data),
        'classes': list(data.names),
        'ids': zlib.crc32(ids.encode()),
    }


def need_same_data(now, before, origin):
    """Raise InputError if a run began with other data.

    Parameters
    ----------
    now, before : dict
        Of `describe_data`; `before` as the checkpoint has it.
    origin : str
        What the data set was read from, for the message.
    """
    for what, value in before.items():
        if now[what] != value:
            raise InputError(
                f'{origin} has changed since the run began: {what} were {value}, now '
                f'{now[what]}; bring the old data back, or begin another run with '
                '--weights RUN/model.safetensors'
            )


class Kept(NamedTuple):
    """What became of the weights that a run starts from: lists of published names.

    Parameters
    ----------
    kept : list of str
        The model's, taken from the checkpoint.
    renewed : list of str
        The model's, drawn anew.
    unused : list of str
        The checkpoint's, which the model does not have.
    """

    kept: list
    renewed: list  # the model's, drawn anew
    unused: list  # the checkpoint's


def build(settings, data, tell):
    """Return the model a run begins with.

    Parameters
    ----------
    settings : Settings
        `weights` or `variant`, and `model`, say which it is.
    data : Dataset
        Its classes are the model's.
    tell : callable
        Called as tell('weights', path=…, kept=Kept) and tell('warning', text=…).

    Returns
    -------
    DeformableDETR
        On the CPU, in the settings' dtype.
    """
    given = _classes(settings, data) | {'short': settings.short, 'long': settings.long}
    if settings.weights:
        model = _build_from(settings, given, tell)
    else:
        variant = settings.variant or 'multi_scale'
        config = make_config(variant, **settings.model, **given)
        model = DeformableDETR(config, settings.dtype, settings.seed)
    if settings.backbone_weights:
        load_backbone(model, settings.backbone_weights)
    elif not settings.weights and (model.config.freeze_at or model.config.frozen_norm):
        tell('warning', text=(
            'the backbone starts from random weights, of which some are frozen: give '
            '--backbone-weights (or --weights), or let all of it learn: '
            '--set model.freeze_at=0 --set model.frozen_norm=false'
        ))
    return model


def _classes(settings, data):
    if settings.labels == 'ids':  # as published: no names, holes and all
        return {'num_classes': max(COCO_CLASSES, data.num_classes)}
    return {'num_classes': data.num_classes, 'names': data.names}


def _build_from(settings, given, tell):
    """Build the checkpoint's model with other classes; keep all that fits."""
    # the number of heads does not show in a bare state dict
    told = {name: v for name, v in settings.model.items() if name == 'M'}
    old = load_model(settings.weights, settings.dtype, **told)
    fields = old.config.to_dict() | {'names': None}
    if settings.variant:
        published = VARIANTS[settings.variant]
        for name in ('dilation', 'refine', 'two_stage'):
            fields[name] = getattr(published, name)
        if (published.L == 1) != (old.config.L == 1):
            fields['L'] = published.L
    config = make_config('multi_scale', **fields | settings.model | given)
    model = DeformableDETR(config, settings.dtype, settings.seed)
    tensors = old.state_dict()
    if config.names != old.config.names:
        # as many logits, but of other things
        tensors = {n: a for n, a in tensors.items() if 'class_embed' not in n}
    report = model.load_state_dict(tensors, strict=False)
    loaded = set(report.loaded)
    names = [n for n, _ in model.named_params()]
    kept = Kept(
        [n for n in names if n in loaded],
        [n for n in names if n not in loaded],
        report.unexpected,
    )
    tell('weights', path=settings.weights, kept=kept)
    _warn_of_loss(settings, old.config, kept, tell)
    return model


def _warn_of_loss(settings, learnt, kept, tell):
    """Tell where the settings give away what the weights are worth."""
    random = [n for n in kept.renewed if 'class_embed' not in n]
    if random and settings.model:
        tell('warning', text=(
            f'{len(random)} tensors besides the class heads do not fit this model and '
            f'start at random, as {random[0]}: the settings of [model] differ from '
            f'those of {settings.weights}; leave them out to keep all'
        ))
    if (settings.short, settings.long) != (learnt.short, learnt.long):
        tell('warning', text=(
            f'{settings.weights} finds best in pictures of {learnt.short} to '
            f'{learnt.long} pixels, this run is judged at {settings.short} to '
            f'{settings.long}; for that size: --set short={learnt.short} --set '
            f'long={learnt.long}, and augment.scales about it (docs/training.md)'
        ))


def lr_advice(lr, pictures):
    """Return a warning if a learning rate does not suit the pictures of a step.

    Published is 2e-4 at 32. In proportion to the pictures, as plain gradient descent
    wants it, or to their root, as Adam's normalised steps want it: a rate more than
    twice above or below both is worth a word.

    Parameters
    ----------
    lr : float
        Of the main group.
    pictures : int
        batch × accumulate.

    Returns
    -------
    str or None
    """
    share = pictures / PUBLISHED_BATCH
    linear, root = PUBLISHED_LR * share, PUBLISHED_LR * share**0.5
    low, high = sorted((linear, root))
    if low / 2 <= lr <= high * 2:
        return None
    return (
        f'lr = {lr:g} with {pictures} pictures in a step; published is '
        f'{PUBLISHED_LR:g} with {PUBLISHED_BATCH}, which scales to {linear:.2g} in '
        f'proportion, or to {root:.2g} by the square root; small models from random '
        'weights may want more'
    )


def absolute(settings):
    """Return settings whose paths do not depend on the folder one is in.

    Parameters
    ----------
    settings : Settings
        Of which `data`, `val`, `weights` and the like may be relative paths.

    Returns
    -------
    Settings
        A copy; 'scenes' and the names of weights are left as they are.
    """
    changes = {}
    for name in ('data', 'val', 'pictures', 'val_pictures', 'weights',
                 'backbone_weights'):
        value = getattr(settings, name)
        path = Path(value).expanduser()
        is_path = value != SCENES
        if 'weights' in name:  # may be a name, of the package's or on the hub
            is_path = path.exists() and not packaged.find(value)
        if value and is_path:
            changes[name] = str(path.absolute())
    return settings.replace(**changes)
