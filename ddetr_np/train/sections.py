"""Settings that are tables of their own: augmentation, and drawn scenes."""

import dataclasses
from dataclasses import dataclass

from ..data.augment import Augment, Plain, published
from ..errors import InputError


@dataclass(frozen=True)
class AugmentSettings(Augment):
    """What is done to training pictures.

    Parameters
    ----------
    scales, long, flip_x, flip_y, crop, share, visible
        As for `Augment`.
    brightness, contrast, saturation, hue : float
        As for `random_colours`.
    kind : {'published', 'custom', 'none'}
        The released code's; what the other fields say, those of `Augment`; or only
        resizing, as in evaluation.
    """

    kind: str = 'published'

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in ('published', 'custom', 'none'):
            raise InputError(
                f'augment.kind is {self.kind!r}; choose published, custom or none'
            )
        changed = [
            f.name for f in dataclasses.fields(Augment)
            if getattr(self, f.name) != f.default
        ]
        if changed and self.kind != 'custom':
            raise InputError(
                f'augment.{changed[0]} has no effect with augment.kind = '
                f'{self.kind!r}; set augment.kind = "custom", or leave it out'
            )

    def make(self, short, long):
        """Return what `Loader` takes; short and long are those of evaluation.

        Parameters
        ----------
        short, long : int
            Pixels; only with kind 'none' are pictures resized to them.

        Returns
        -------
        callable
            (picture, target, rng) → picture, target.
        """
        if self.kind == 'published':
            return published
        if self.kind == 'none':
            return Plain(short, long)
        names = [f.name for f in dataclasses.fields(Augment)]
        return Augment(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class SceneSettings:
    """Which scenes are drawn where `data` or `val` is 'scenes'.

    Parameters
    ----------
    count, val_count : int
        Scenes of an epoch, and of an evaluation (0: none is made).
    seed, val_seed : int
        They differ, so that nothing is judged on what it has seen.
    height, width : int
        Pixels.
    fresh : bool
        Draw other scenes in each epoch.
    """

    count: int = 10_000
    seed: int = 1
    height: int = 192
    width: int = 192
    fresh: bool = True
    val_count: int = 500
    val_seed: int = 0

    def __post_init__(self):
        if self.seed == self.val_seed:
            raise InputError(
                f'scenes.seed and scenes.val_seed are both {self.seed}; choose two, or '
                'the evaluation sees scenes of the training'
            )
