"""Every setting of a training run: published values unless something else is said."""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path

from ..config import VARIANTS, Config
from ..errors import InputError
from ..files import replacing
from .sections import AugmentSettings, SceneSettings
from .toml import read_toml, to_toml

SCENES = 'scenes'  # in place of a path: drawn on the fly
# Fields of the model that cannot be set with it, and what decides them
ELSEWHERE = {
    'num_classes': 'comes from the data set and cannot be set',
    'names': 'comes from the data set and cannot be set',
    'short': 'is the setting short',
    'long': 'is the setting long',
}
FREE = {  # what may differ when a run goes on: no weight depends on it
    'workers', 'processes', 'device', 'save_every', 'evaluate_every', 'evaluate_batch',
    'short', 'long', 'tensorboard', 'skip_bad', 'val', 'val_pictures',
}


@dataclass(frozen=True)
class Settings:
    """A training run. An empty string means: not given.

    Parameters
    ----------
    data, val : str
        COCO file or folder, VOC folder or list, or 'scenes'; to learn from, and to be
        judged on (scenes are judged on scenes if nothing is given).
    pictures, val_pictures : str
        The pictures' folder of a COCO file, if not beside it.
    labels : {'contiguous', 'ids'}
        Classes numbered from 0; or COCO's ids as they are, with 91 logits as published.
    skip_bad : bool
        Leave out what cannot be read, and count it.
    variant : str
        A key of `config.VARIANTS`; 'multi_scale', or that of `weights`, if not given.
    weights : str
        A checkpoint to start from; what does not fit, the class heads first, is drawn
        anew.
    backbone_weights : str
        A ResNet to start from.
    seed : int
        Of initial weights, order, augmentation and dropout.
    dtype : {'float32', 'float64'}
    precision : {'single', 'mixed'}
        'mixed' has half-precision values and products (see `ops.mixed`), on a GPU;
        'single' computes in dtype throughout.
    device : str
        'cpu', 'cuda:0', 'cuda:1' …
    epochs : int
        How often all pictures are seen.
    batch, accumulate : int
        Pictures that go through the model together, and how many such batches make one
        step. Published: 32 pictures in a step.
    processes : int
        How many of a step's batches are computed side by side, each in a process of
        its own. The result does not depend on it.
    workers : int
        Processes that prepare pictures.
    keep : {'all', 'inputs'}
        'inputs' computes the layers again for the backward pass and needs less memory.
    optimizer : {'adamw', 'sgd'}
    lr, weight_decay : float
        Of the main group; the decay is that of all groups.
    backbone_lr, offsets_lr : float
        Factors of lr: of the backbone; of the linear maps that make reference points
        and sampling offsets.
    betas, eps, momentum
        Of AdamW; of SGD.
    clip : float
        The gradients' largest global norm; 0 does not clip.
    schedule : {'step', 'cosine', 'constant'}
    drop_every, drop : int, float
        step: the factor `drop` after so many epochs, each time.
    end : float
        cosine: the last factor.
    warmup, warmup_start : int, float
        Steps in which lr rises along a line, and from which factor; 0 steps: none.
    ema : float
        Decay of the weights' moving average, which is then what is judged and saved;
        0: none.
    ce, bbox, giou, alpha, gamma : float
        Of the loss and the matching (see `Criterion`).
    short, long : int
        Pixels, in evaluation.
    evaluate_batch, evaluate_every : int
        Pictures together; epochs between evaluations (the last is always judged).
    save_every : int
        Steps between checkpoints, besides one after each epoch.
    tensorboard : bool
        Write scalars for TensorBoard too (needs the extra `tensorboard`).
    augment : AugmentSettings
        What is done to training pictures.
    scenes : SceneSettings
        What is drawn where data or val is 'scenes'.
    model : dict
        Fields of `Config` that differ from the variant.
    """

    data: str = ''
    val: str = ''
    pictures: str = ''
    val_pictures: str = ''
    labels: str = 'contiguous'
    skip_bad: bool = False
    variant: str = ''
    weights: str = ''
    backbone_weights: str = ''
    seed: int = 0
    dtype: str = 'float32'
    precision: str = 'single'
    device: str = 'cpu'
    epochs: int = 50
    batch: int = 2
    accumulate: int = 16
    processes: int = 1
    workers: int = 2
    keep: str = 'all'
    optimizer: str = 'adamw'
    lr: float = 2e-4
    weight_decay: float = 1e-4
    backbone_lr: float = 0.1
    offsets_lr: float = 0.1
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    clip: float = 0.1
    schedule: str = 'step'
    drop_every: int = 40
    drop: float = 0.1
    end: float = 0.0
    warmup: int = 0
    warmup_start: float = 1e-3
    ema: float = 0.0
    ce: float = 2.0
    bbox: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    short: int = 800
    long: int = 1333
    evaluate_batch: int = 1
    evaluate_every: int = 1
    save_every: int = 500
    tensorboard: bool = False
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    scenes: SceneSettings = field(default_factory=SceneSettings)
    model: dict = field(default_factory=dict)

    def __post_init__(self):
        choices = {
            'labels': ('contiguous', 'ids'),
            'variant': ('', *VARIANTS),
            'dtype': ('float32', 'float64'),
            'precision': ('single', 'mixed'),
            'keep': ('all', 'inputs'),
            'optimizer': ('adamw', 'sgd'),
            'schedule': ('step', 'cosine', 'constant'),
        }
        for name, values in choices.items():
            expected = f'one of {", ".join(filter(None, values))}'
            self._need(getattr(self, name) in values, name, expected)
        least = {'epochs': 1, 'batch': 1, 'accumulate': 1, 'processes': 1,
                 'drop_every': 1, 'evaluate_batch': 1, 'evaluate_every': 1,
                 'save_every': 1, 'short': 1,
                 'workers': 0, 'seed': 0, 'warmup': 0}
        for name, value in least.items():
            self._need(getattr(self, name) >= value, name, f'{value} or more')
        self._need(
            self.precision == 'single' or self.dtype == 'float32', 'precision',
            f'single where dtype is {self.dtype}',
        )
        self._need(
            self.processes <= self.accumulate, 'processes',
            f'at most accumulate = {self.accumulate}: each takes one batch of a step',
        )
        self._need(self.long >= self.short, 'long', f'at least short = {self.short}')
        self._need(0 <= self.ema < 1, 'ema', 'in [0, 1); 0 switches it off')
        for name in ('lr', 'weight_decay', 'backbone_lr', 'offsets_lr', 'clip', 'drop',
                     'end', 'ce', 'bbox', 'giou', 'gamma'):
            value = getattr(self, name)
            self._need(math.isfinite(value) and value >= 0, name, 'finite, 0 or more')
        self._need(0 <= self.alpha <= 1, 'alpha', 'in [0, 1]')

    def _need(self, holds, name, expected):
        if not holds:
            raise InputError(
                f'the setting {name} is {getattr(self, name)!r}; it must be {expected}'
            )

    def replace(self, **changes):
        """Return a copy with some settings changed.

        Parameters
        ----------
        **changes
            Values by name: 'lr', and for those in a table 'augment.flip_y' or a dict.

        Returns
        -------
        Settings
            The other settings are those of now.

        Raises
        ------
        InputError
            A name is unknown (near ones are suggested) or its value is impossible.
        """
        flat = self.to_flat()
        for name, value in _flatten(changes):
            flat[name] = _checked(name, value, self)
        tables = {'augment': {}, 'scenes': {}, 'model': {}}
        top = {}
        for name, value in flat.items():
            table, dot, key = name.partition('.')
            (tables[table] if dot else top)[key if dot else name] = value
        return Settings(
            **top,
            augment=AugmentSettings(**tables['augment']),
            scenes=SceneSettings(**tables['scenes']),
            model=tables['model'],
        )

    def to_flat(self):
        """Return {'lr': …, 'augment.kind': …, 'model.C': …}.

        Returns
        -------
        dict
            Every setting by name; of the table `model` only what is set.
        """
        return dict(_flatten(dataclasses.asdict(self)))

    def to_toml(self):
        """Return the settings as the text of a TOML file.

        Returns
        -------
        str
            Every setting, defaults too.
        """
        return to_toml(dataclasses.asdict(self))

    def write(self, path):
        """Write the settings as TOML, all or nothing.

        Parameters
        ----------
        path : path
            Its folder must exist.
        """
        with replacing(path) as part:
            part.write_text(self.to_toml(), encoding='utf-8')

    def need_same(self, stored):
        """Raise InputError if a run with other settings cannot go on with these.

        Parameters
        ----------
        stored : Settings
            Those that the run began with.
        """
        ours, theirs = self.to_flat(), stored.to_flat()
        free = FREE if self.schedule == 'cosine' else FREE | {'epochs'}
        changed = [
            name for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name) and name not in free
        ]
        if not changed:
            return
        lines = ['these settings differ from those that the run began with:']
        lines += [
            f'  {name}: began with {theirs.get(name, "the default")!r}, '
            f'now {ours.get(name, "the default")!r}'
            for name in changed
        ]
        if changed == ['epochs']:
            lines.append('with schedule = "cosine" every step depends on their number')
        lines.append(
            'leave them out to go on; or begin another run from these weights: '
            '--weights RUN/model.safetensors --out OTHER'
        )
        raise InputError('\n'.join(lines))


def read_settings(path, base=None):
    """Return the Settings of a TOML file.

    Parameters
    ----------
    path : path
        TOML; settings by the names that `Settings` has.
    base : Settings, optional
        Where the file says nothing; the defaults if not given.

    Returns
    -------
    Settings
        Paths stand as in the file.

    Raises
    ------
    InputError
        The file is absent, no TOML, or has an unknown or impossible setting.
    """
    return (base or Settings()).replace(**read_toml(path))


def _flatten(settings):
    for name, value in settings.items():
        if isinstance(value, dict):
            for key, v in value.items():
                yield f'{name}.{key}', v
        else:
            yield name, value


def _known():
    """{name: type} of every setting."""
    kinds = {}
    for prefix, cls in (('', Settings), ('augment.', AugmentSettings),
                        ('scenes.', SceneSettings), ('model.', Config)):
        for f in dataclasses.fields(cls):
            if f.name not in ('augment', 'scenes', 'model'):
                kinds[prefix + f.name] = f.type
    return kinds


def _checked(name, value, settings):
    kinds = _known()
    table, _, field = name.partition('.')
    if table == 'model' and field in ELSEWHERE:
        raise InputError(f'{name} {ELSEWHERE[field]}')
    if name in ('augment', 'scenes', 'model'):
        raise InputError(f'{name} is a table; set what is in it, as {name}.NAME')
    if name not in kinds:
        short = {kind.rpartition('.')[2]: kind for kind in kinds}  # C for model.C
        near = difflib.get_close_matches(name, kinds, 3, 0.6)
        last = name.rpartition('.')[2]
        near += [short[n] for n in difflib.get_close_matches(last, short, 2, 0.6)]
        near = list(dict.fromkeys(near))[:3]
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise InputError(f'there is no setting {name!r}{hint}')
    kind = kinds[name]
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, (list, tuple)):
        if name == 'augment.scales':
            if all(type(v) is int for v in value):
                return tuple(value)
        elif len(value) == 2 and all(type(v) in (int, float) for v in value):
            return tuple(map(float, value))
    elif kind is str and isinstance(value, Path):
        return str(value)
    elif type(value) is kind:
        return value
    expected = {bool: 'true or false', int: 'a whole number', float: 'a number',
                str: 'a word', tuple: 'a list of numbers'}.get(kind, str(kind))
    if isinstance(default := settings.to_flat().get(name), tuple):
        expected += f', as {list(default)}'
    raise InputError(f'the setting {name} is {value!r}; expected {expected}')
