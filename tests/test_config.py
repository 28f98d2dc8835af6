import dataclasses
import json
import math

import numpy as np
import pytest

from ddetr_np.config import BACKBONES, VARIANTS, Config, make_config
from ddetr_np.errors import InputError


def test_defaults_are_the_published_ones():
    c = Config()
    assert (c.C, c.M, c.L, c.K, c.Nq) == (256, 8, 4, 4, 300)
    assert (c.encoder_layers, c.decoder_layers, c.ffn) == (6, 6, 1024)
    assert (c.num_classes, c.dropout, c.backbone) == (91, 0.1, 'resnet50')
    assert (c.freeze_at, c.frozen_norm, c.width, c.init) == (2, True, 64, 'released')
    assert c.base_scale == 0.05
    assert c.proposal_iou == 1  # no suppression
    # σ(−2), the released code's bias
    assert math.isclose(math.log(c.initial_wh / (1 - c.initial_wh)), -2)
    assert (c.Cv, c.groups) == (32, 32)


@pytest.mark.parametrize(
    ('variant', 'L', 'dilation', 'refine', 'two_stage'),
    [
        ('single_scale', 1, False, False, False),
        ('single_scale_dc5', 1, True, False, False),
        ('multi_scale', 4, False, False, False),
        ('refine', 4, False, True, False),
        ('two_stage', 4, False, True, True),
    ],
)
def test_variants(variant, L, dilation, refine, two_stage):
    c = make_config(variant)
    assert (c.L, c.dilation, c.refine, c.two_stage) == (L, dilation, refine, two_stage)
    assert c.variant == variant
    assert c.shared_heads == (not refine)
    # toy sizes do not change what it is
    toy = {'C': 16, 'M': 2, 'K': 1, 'Nq': 5, 'ffn': 8, 'backbone': 'resnet101'}
    assert make_config(variant, **toy).variant == variant


def test_variants_are_all_there():
    assert len(VARIANTS) == 5
    assert make_config('refine', L=1).variant is None
    assert make_config('multi_scale', L=2).variant == 'multi_scale'
    assert make_config('multi_scale', two_stage=True).variant is None


IMPOSSIBLE = [  # fields, and what the reason says
    ({'num_classes': 0}, 'num_classes is 0; it must be at least 1'),
    ({'width': 0}, 'width'),
    ({'C': -4}, 'C is -4'),
    ({'C': 0}, 'C is 0'),
    ({'M': 0}, 'M is 0'),
    ({'L': 0}, 'L is 0'),
    ({'K': 0}, 'K is 0'),
    ({'Nq': 0}, 'Nq is 0'),
    ({'ffn': 0}, 'ffn is 0'),
    ({'encoder_layers': -1}, 'at least 0'),
    ({'decoder_layers': 0}, 'decoder_layers is 0; it must be at least 1'),
    ({'backbone': 'vgg16'}, "'vgg16'; it must be one of .*resnet18"),
    ({'init': 'mine'}, "'released' or 'paper'"),
    ({'dropout': 1.0}, r'in \[0, 1\)'),
    ({'dropout': -0.1}, r'in \[0, 1\)'),
    ({'dropout': math.nan}, r'in \[0, 1\)'),
    ({'initial_wh': 0.0}, 'between 0 and 1'),
    ({'initial_wh': 1.0}, 'between 0 and 1'),
    ({'base_scale': 0.0}, 'between 0 and 1'),
    ({'base_scale': 1.5}, 'between 0 and 1'),
    ({'base_scale': math.nan}, 'between 0 and 1'),
    ({'proposal_iou': 0.0}, 'above 0, at most 1'),
    ({'proposal_iou': 1.1}, 'above 0, at most 1'),
    ({'proposal_iou': math.nan}, 'above 0, at most 1'),
    ({'freeze_at': 6}, r'0 \(nothing\) to 5'),
    ({'freeze_at': -1}, r'0 \(nothing\) to 5'),
    ({'C': 100}, 'multiple of M = 8'),
    ({'C': 18, 'M': 3}, 'multiple of 4'),
    ({'init': 'paper', 'M': 4}, 'eight directions'),
    ({'dilation': True, 'backbone': 'resnet18'}, 'no dilated form'),
    ({'dilation': True, 'backbone': 'resnet34'}, 'no dilated form'),
    ({'names': ('cat', 'dog')}, 'one for each of 91 classes'),
    ({'names': 'ab', 'num_classes': 2}, "names is 'ab'; it must be a list"),
    ({'names': 3}, 'names is 3; it must be a list'),
    ({'C': 256.0}, 'of type int'),
    ({'C': '256'}, 'of type int'),
    ({'C': None}, 'of type int'),
    ({'C': np.array([8, 8])}, 'of type int'),
    ({'L': True}, 'of type int'),
    ({'refine': 1}, 'of type bool'),
    ({'refine': 'yes'}, 'of type bool'),
    ({'dropout': '0.1'}, 'of type float'),
    ({'dropout': True}, 'of type float'),
    ({'backbone': 50}, 'of type str'),
]


@pytest.mark.parametrize(('fields', 'reason'), IMPOSSIBLE, ids=str)
def test_the_impossible_is_refused_with_the_reason(fields, reason):
    with pytest.raises(InputError, match=reason):
        make_config('multi_scale', **fields)
    with pytest.raises(InputError, match=reason):
        Config(**fields)


@pytest.mark.parametrize(
    'fields',
    [
        {'C': 4, 'M': 1, 'K': 1, 'Nq': 1, 'ffn': 1, 'num_classes': 1},
        {'encoder_layers': 0, 'decoder_layers': 1},
        {'dropout': 0},
        {'dropout': 0.0},
        {'L': 7},
        {'two_stage': True, 'refine': False},
        {'init': 'paper'},
        {'names': ('cat', 'dog'), 'num_classes': 2},
        {'names': ['cat', 'dog'], 'num_classes': 2},
        {'freeze_at': 0, 'frozen_norm': False},
        *({'backbone': name} for name in BACKBONES),
    ],
    ids=str,
)
def test_the_possible_is_allowed(fields):
    c = make_config('multi_scale', **fields)
    for name, value in fields.items():
        expected = tuple(value) if name == 'names' else value
        assert getattr(c, name) == expected


def test_numpy_numbers_become_python_s():
    c = Config(
        C=np.int64(64),
        dropout=np.float32(0.5),
        refine=np.bool_(True),
        backbone=np.str_('resnet18'),
        names=np.array(['cat', 'dog']),
        num_classes=np.int32(2),
    )
    types = [type(getattr(c, f)) for f in ('C', 'dropout', 'refine', 'backbone')]
    assert types == [int, float, bool, str]
    assert c.names == ('cat', 'dog')
    assert [type(name) for name in c.names] == [str, str]
    json.dumps(c.to_dict())
    assert hash(c) == hash(c.replace())


def test_whole_numbers_may_stand_for_floats():
    assert type(Config(dropout=0).dropout) is float


@pytest.mark.parametrize(
    ('wrong', 'near'), [('num_class', 'num_classes'), ('two_stages', 'two_stage')]
)
def test_unknown_fields_get_a_suggestion(wrong, near):
    with pytest.raises(InputError, match=f"{wrong}'; did you mean .*{near}"):
        make_config('refine', **{wrong: 1})


def test_a_field_like_no_other_gets_the_list():
    with pytest.raises(InputError, match=r'encoder_layers'):
        Config().replace(zzzzzz=1)


def test_unknown_variants_get_the_list():
    with pytest.raises(InputError, match='no variant .*two_stage'):
        make_config('three_stage')


@pytest.mark.parametrize(
    'config',
    [
        *VARIANTS.values(),
        Config(num_classes=2, names=('a', 'ü'), dropout=0.0, initial_wh=0.1),
        Config(C=12, M=3, L=2, K=1, Nq=3, backbone='resnet18', freeze_at=0),
    ],
)
def test_round_trip_through_json(config):
    fields = json.loads(json.dumps(config.to_dict()))
    assert Config.from_dict(fields) == config


def test_from_dict_fills_in_and_refuses():
    assert Config.from_dict({'L': 2}) == Config(L=2)
    with pytest.raises(InputError, match='no field'):
        Config.from_dict({'levels': 2})


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().C = 3


@pytest.mark.parametrize(
    ('C', 'groups'), [(256, 32), (64, 32), (24, 24), (36, 18), (100, 25), (4, 4)]
)
def test_groups_are_32_or_the_next_divisor(C, groups):
    assert Config(C=C, M=1).groups == groups
