import json

import pytest
from PIL import Image

from ddetr_np import build_model

FIELDS = [
    'C=16', 'M=2', 'K=2', 'Nq=6', 'ffn=24', 'encoder_layers=2', 'decoder_layers=3',
    'num_classes=4', 'width=4',
]  # fmt: skip
TINY = [word for field in FIELDS for word in ('--set', field)]


@pytest.fixture
def count(run):
    def count(*arguments):
        return run('complexity', '--size', 64, 96, *arguments)

    return count


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
def test_formula_and_count_side_by_side(count, here, tiny, variant):
    result = count('--variant', variant, *TINY, '--modules', '--json', 'out.json')
    assert result.exit_code == 0, result.output
    assert 'equal to what was counted, in every part' in result.stdout
    assert 'DIFFERENT' not in result.stdout
    assert 'self_attn.value_proj' in result.stdout
    assert 'published' not in result.stdout  # this is no published model
    figures = json.loads((here / 'out.json').read_text())
    params = sum(p.data.size for p in build_model(variant, **tiny).params())
    assert figures['trainable'] == params
    assert f'{params:,} parameters' in result.stdout
    assert figures['options']['config']['ffn'] == 24
    for part, work in figures['formula'].items():
        assert work['products'] == figures['parts'][part]['macs']
        assert work['sampled'] == figures['parts'][part]['sampled']
    assert figures['macs'] == figures['modules']['']['macs']
    assert figures['sampled_by_paper'] * 4 == figures['sampled'] * 5


def test_a_published_model(count):
    result = count('--variant', 'single_scale')
    assert result.exit_code == 0, result.output
    assert '33,844,193: the same' in result.stdout
    assert '222,400: the same' in result.stdout
    for figure in ('78.61', '128.68', '171.14', '175.27', '+1.31%'):
        assert figure in result.stdout
    assert 'within 2 %' in result.stdout


def test_without_an_encoder(count):
    result = count(*TINY, '--set', 'encoder_layers=0')
    assert result.exit_code == 0, result.output
    assert 'in every part' in result.stdout


@pytest.mark.slow
def test_plots_are_written(count, here):
    result = count(*TINY, '--plots', 'new/plots')
    assert result.exit_code == 0, result.output
    for name in ('attention', 'models'):
        path = here / 'new' / 'plots' / name
        with Image.open(path.with_suffix('.png')) as image:
            assert image.width > 1500
        assert '<svg' in path.with_suffix('.svg').read_text(encoding='utf-8')[:1000]
        assert str(path.relative_to(here).with_suffix('.svg')) in result.stdout


def test_what_cannot_be_counted_is_refused_at_once(count, here):
    for arguments, there in (
        (('--variant', 'three_stage'), 'single_scale_dc5'),
        (('--set', 'heads=4'), 'no field'),
        (('--set', 'C=15'), 'multiple of'),
        (('--json', 'nowhere/out.json'), 'no folder nowhere'),
        (('--size', 0, 5), 'x>=1'),
    ):
        result = count(*arguments)
        assert result.exit_code == 2
        assert there in result.stderr
    (here / 'file').touch()
    assert count('--plots', 'file').exit_code == 2
