import tomllib
from pathlib import Path

import pytest

from ddetr_np import (
    AdamW,
    Criterion,
    InputError,
    Settings,
    build_model,
    make_config,
    read_settings,
)
from ddetr_np.data import augment
from ddetr_np.train.state import make_optimizer
from ddetr_np.train.toml import parse_setting


def test_published_defaults(tiny):
    s = Settings()
    assert s.batch * s.accumulate == 32
    assert (s.epochs, s.schedule, s.drop_every, s.drop) == (50, 'step', 40, 0.1)
    assert (s.ema, s.warmup) == (0, 0)
    assert (s.short, s.long) == (800, 1333)
    assert s.augment.make(800, 1333) is augment.published
    model = build_model('two_stage', **tiny)
    ours, published = make_optimizer(s, model), AdamW(model)
    assert ours.lr == published.lr
    assert ours.clip == published.clip == 0.1
    assert [list(g.params) for g in ours.groups] == [
        list(g.params) for g in published.groups
    ]
    assert vars(ours)['betas'] == published.betas
    criterion = Criterion(model.config)
    assert (s.ce, s.bbox, s.giou) == tuple(criterion.weights)
    assert (s.alpha, s.gamma) == (criterion.alpha, criterion.gamma)


def test_toml_goes_round(tmp_path, small):
    settings = small(data='a "quoted"\\path\né', lr=1e-5, **{'model.dropout': 0})
    settings.write(tmp_path / 's.toml')
    assert read_settings(tmp_path / 's.toml') == settings
    assert tomllib.loads(settings.to_toml())['model']['dropout'] == 0.0
    assert read_settings(tmp_path / 's.toml', settings.replace(lr=1.0)) == settings


@pytest.mark.parametrize(
    ('text', 'pair'),
    [
        ('lr=1e-3', ('lr', 1e-3)),
        ('skip_bad=true', ('skip_bad', True)),
        ('skip_bad=True', ('skip_bad', True)),
        ('model.C = 128', ('model.C', 128)),
        ('augment.scales=[240, 320]', ('augment.scales', [240, 320])),
        ('augment.share=(0.5, 1)', ('augment.share', (0.5, 1))),
        ('device=cuda:0', ('device', 'cuda:0')),
        ('data=C:\\pictures', ('data', 'C:\\pictures')),
        ('val=', ('val', '')),
    ],
)
def test_pairs(text, pair):
    assert parse_setting(text) == pair
    Settings().replace(**{'augment.kind': 'custom', pair[0]: pair[1]})


@pytest.mark.parametrize('text', ['lr', '=3', ''])
def test_no_pairs(text):
    with pytest.raises(InputError, match='expected NAME=VALUE'):
        parse_setting(text)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('lrr', 1, "no setting 'lrr'; did you mean lr"),
        ('C', 1, 'did you mean model.C'),
        ('augment.flipx', 1, 'did you mean augment.flip_x'),
        ('model.layers', 1, 'there is no setting'),
        ('model.num_classes', 3, 'comes from the data set'),
        ('model', 3, 'model is a table'),
        ('lr', 'fast', "lr is 'fast'; expected a number"),
        ('lr', True, 'expected a number'),
        ('lr', float('nan'), 'finite'),
        ('epochs', 1.5, 'expected a whole number'),
        ('skip_bad', 1, 'expected true or false'),
        ('betas', [0.9], r'a list of numbers, as \[0.9, 0.999\]'),
        ('augment.scales', [0.5], 'expected a list of numbers'),
        ('model.C', 'wide', 'expected a whole number'),
        ('epochs', 0, 'it must be 1 or more'),
        ('workers', -1, 'it must be 0 or more'),
        ('ema', 1, r'in \[0, 1\)'),
        ('lr', -1, '0 or more'),
        ('schedule', 'linear', 'one of step, cosine, constant'),
        ('variant', 'huge', 'one of single_scale'),
        ('long', 10, 'at least short'),
        ('augment.flip_y', 0.5, 'augment.kind = "custom"'),
        ('augment.kind', 'mine', 'choose published, custom or none'),
        ('scenes.val_seed', 1, 'choose two'),
    ],
)
def test_bad_settings(name, value, message):
    with pytest.raises(InputError, match=message):
        Settings().replace(**{name: value})


def test_files_that_will_not_do(tmp_path):
    with pytest.raises(InputError, match='does not exist'):
        read_settings(tmp_path / 'none.toml')
    (tmp_path / 'bad.toml').write_text('lr = = 3')
    with pytest.raises(InputError, match='bad.toml is no TOML file: .*line 1'):
        read_settings(tmp_path / 'bad.toml')


def test_augmentation_is_what_was_said():
    settings = Settings().replace(
        augment={'kind': 'custom', 'scales': [240], 'flip_y': 0.5}
    )
    assert settings.augment.make(800, 1333) == augment.Augment((240,), flip_y=0.5)
    none = Settings().replace(augment={'kind': 'none'})
    assert none.augment.make(240, 320) == augment.Plain(240, 320)


def test_the_documented_file(tmp_path):
    guide = Path(__file__).parents[2] / 'docs' / 'training.md'
    text = guide.read_text(encoding='utf-8').split('```toml\n')[1].split('```')[0]
    (tmp_path / 'small.toml').write_text(text, encoding='utf-8')
    settings = read_settings(tmp_path / 'small.toml')
    assert settings.ema == 0.999
    make_config(settings.variant, **settings.model)
