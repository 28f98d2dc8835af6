"""Every hyper-parameter of the paper, a field each, and the five published variants."""

import dataclasses
import difflib
import math
from dataclasses import dataclass

from .errors import InputError

BACKBONES = {  # blocks in each stage
    'resnet18': (2, 2, 2, 2),
    'resnet34': (3, 4, 6, 3),
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
}
BOTTLENECK = ('resnet50', 'resnet101')  # the others are made of basic blocks


@dataclass(frozen=True)
class Config:
    """What a Deformable DETR is made of. The defaults are the multi-scale model.

    Parameters
    ----------
    num_classes : int
        Logits of a query; 91 means COCO's ids as they are. There is no background.
    backbone : {'resnet18', 'resnet34', 'resnet50', 'resnet101'}
    width : int
        Channels of the backbone's stem; 64 is published, less is a narrower network.
    dilation : bool
        DC5: the last stage keeps its resolution and dilates its kernels.
    C, M, L, K, Nq : int
        Channels, heads, feature levels, sampled keys of a level and head, queries
        (Table 4). L levels are the last min(L, 3) of C3–C5, then stride-2 convolutions
        on from C5.
    encoder_layers, decoder_layers : int
        At least 0 and at least 1.
    ffn : int
        Hidden channels of the feed-forward networks.
    dropout : float
        In [0, 1).
    refine, two_stage : bool
        Iterative box refinement and two-stage (A.4).
    initial_wh : float
        In (0, 1): the first guess of a box's width and height, set by the bias of the
        first box head. The paper says 0.1, the released code σ(−2) ≈ 0.119. Two-stage
        starts from proposals instead.
    base_scale : float
        s of A.4: width and height of a first-stage proposal at the finest level.
    proposal_iou : float
        In (0, 1]: a proposal that overlaps a better one by more than this does not go
        to the decoder. 1 is published: the best go, whatever they overlap (A.4).
        Queries that begin alike are hard to tell apart: with less, a model that has
        not learnt for long reports an object twice less often.
    init : {'released', 'paper'}
        Which initial sampling offsets (A.4): ordered by angle as in the released code,
        or as the paper lists them.
    freeze_at : int
        Backbone stages that do not learn: 0 none, 1 the stem, 2 the stem and the first
        stage (published) … 5 all.
    frozen_norm : bool
        Whether the backbone's batch norms are constants (published).
    names : tuple of str or None
        The classes' names.
    short, long : int
        Pixels to which a picture's sides are resized before detection; published are
        800 and 1333. A model that learnt on small pictures finds best in small ones.
    """

    num_classes: int = 91
    backbone: str = 'resnet50'
    width: int = 64
    dilation: bool = False
    C: int = 256
    M: int = 8
    L: int = 4
    K: int = 4
    Nq: int = 300
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn: int = 1024
    dropout: float = 0.1
    refine: bool = False
    two_stage: bool = False
    initial_wh: float = 1 / (1 + math.exp(2))
    base_scale: float = 0.05
    proposal_iou: float = 1.0
    init: str = 'released'
    freeze_at: int = 2
    frozen_norm: bool = True
    names: tuple | None = None
    short: int = 800
    long: int = 1333

    def __post_init__(self):
        self._check_types()
        for name in ('num_classes', 'width', 'C', 'M', 'L', 'K', 'Nq', 'ffn'):
            self._need(getattr(self, name) >= 1, name, 'at least 1')
        self._need(self.encoder_layers >= 0, 'encoder_layers', 'at least 0')
        self._need(self.decoder_layers >= 1, 'decoder_layers', 'at least 1')
        self._need(self.backbone in BACKBONES, 'backbone', f'one of {list(BACKBONES)}')
        self._need(self.init in ('released', 'paper'), 'init', "'released' or 'paper'")
        self._need(0 <= self.dropout < 1, 'dropout', 'in [0, 1)')
        self._need(0 < self.initial_wh < 1, 'initial_wh', 'between 0 and 1')
        self._need(0 < self.base_scale < 1, 'base_scale', 'between 0 and 1')
        self._need(0 < self.proposal_iou <= 1, 'proposal_iou', 'above 0, at most 1')
        self._need(self.short >= 1, 'short', 'at least 1')
        self._need(self.long >= self.short, 'long', f'at least short = {self.short}')
        self._need(0 <= self.freeze_at <= 5, 'freeze_at', '0 (nothing) to 5 (all)')
        self._need(
            self.C % self.M == 0, 'C', f'a multiple of M = {self.M}, one Cv a head'
        )
        # sine positions: C/2 channels for each axis, sines and cosines in pairs
        self._need(self.C % 4 == 0, 'C', 'a multiple of 4 for the sine positions')
        if self.init == 'paper':
            eight = "8 for init='paper': A.4 lists eight directions"
            self._need(self.M == 8, 'M', eight)
        if self.dilation:
            self._need(
                self.backbone in BOTTLENECK,
                'dilation',
                'False for ResNet-18 and -34: basic blocks have no dilated form',
            )
        if self.names is not None:
            self._need(
                len(self.names) == self.num_classes,
                'names',
                f'one for each of {self.num_classes} classes, or None',
            )

    def _check_types(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if getattr(value, 'ndim', None) == 0:  # a NumPy scalar
                value = value.item()
                object.__setattr__(self, field.name, value)
            if field.type is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif field.name == 'names':
                if value is not None:
                    several = not isinstance(value, str) and hasattr(value, '__iter__')
                    self._need(several, 'names', 'a list of names, or None')
                    object.__setattr__(self, 'names', tuple(map(str, value)))
            else:
                wanted = field.type.__name__
                self._need(type(value) is field.type, field.name, f'of type {wanted}')

    def _need(self, holds, name, expected):
        if not holds:
            value = getattr(self, name)
            raise InputError(f'{name} is {value!r}; it must be {expected}')

    @property
    def Cv(self):
        """Channels of a head."""
        return self.C // self.M

    @property
    def groups(self):
        """Groups of the projections' GroupNorm: 32, or the next divisor of C below."""
        return next(g for g in range(min(32, self.C), 0, -1) if self.C % g == 0)

    @property
    def shared_heads(self):
        """Whether one pair of heads serves all decoder layers."""
        return not self.refine

    @property
    def variant(self):
        """Name of the published variant with this structure, or None."""
        structure = ('dilation', 'refine', 'two_stage')
        for name, other in VARIANTS.items():
            same = all(getattr(self, f) == getattr(other, f) for f in structure)
            if same and (self.L == 1) == (other.L == 1):
                return name
        return None

    def replace(self, **fields):
        """Return a copy with some fields changed.

        Parameters
        ----------
        **fields
            Any field of `Config`.

        Returns
        -------
        Config
            Checked like any other.

        Raises
        ------
        InputError
            A field is unknown (the nearest names are suggested) or its value is
            impossible.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3, 0.4) or known
                raise InputError(
                    f'the configuration has no field {name!r}; '
                    f'did you mean {" or ".join(near)}?'
                )
        return dataclasses.replace(self, **fields)

    def to_dict(self):
        """Return the fields as a dict that JSON and TOML can hold.

        Returns
        -------
        dict
            Field → value; fields that are None are left out.
        """
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @classmethod
    def from_dict(cls, fields):
        """Return the Config of `to_dict`; missing fields have their defaults.

        Parameters
        ----------
        fields : dict
            Field → value.

        Returns
        -------
        Config
            Checked as in `replace`.
        """
        return cls().replace(**fields)


VARIANTS = {
    'single_scale': Config(L=1),
    'single_scale_dc5': Config(L=1, dilation=True),
    'multi_scale': Config(),
    'refine': Config(refine=True),
    'two_stage': Config(refine=True, two_stage=True),
}


def make_config(variant, **fields):
    """Return the configuration of a published variant, with some fields changed.

    Parameters
    ----------
    variant : {'single_scale', 'single_scale_dc5', 'multi_scale', 'refine', 'two_stage'}
        A key of `VARIANTS`.
    **fields
        Any field of `Config`.

    Returns
    -------
    Config
        Checked like any other.

    Raises
    ------
    InputError
        The variant or a field is unknown, or the combination impossible.

    Examples
    --------
    >>> config = make_config('two_stage', C=64, M=4)
    >>> config.L, config.K, config.Cv
    (4, 4, 16)
    """
    if variant not in VARIANTS:
        raise InputError(
            f'there is no variant {variant!r}; choose one of {", ".join(VARIANTS)}'
        )
    return VARIANTS[variant].replace(**fields)
