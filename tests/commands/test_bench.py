import contextlib
import json

import pytest

from ddetr_np.analysis.timing import Spent

TINY = [
    'C=16', 'M=2', 'K=2', 'Nq=6', 'ffn=24', 'encoder_layers=2', 'decoder_layers=3',
    'num_classes=4', 'width=4',
]  # fmt: skip
PARTS = [
    'core, forward', 'core, backward', 'backbone', 'encoder', 'decoder',
    'whole inference', 'whole training pass', 'AdamW step',
]  # fmt: skip
PASSES = 'whole inference', 'inference, layer by layer', 'whole training pass'


@pytest.fixture
def bench(run, monkeypatch):
    # copying what fits no cache takes a second
    monkeypatch.setattr('ddetr_np.analysis.machine.COPIED', 1 << 22)

    def bench(*arguments):
        fields = [word for field in TINY for word in ('--set', field)]
        return run('bench', '--size', 64, 96, '--runs', 1, *fields, *arguments)

    return bench


def test_every_part_has_a_time_and_a_floor(bench, here):
    result = bench('--json', 'out.json')
    assert result.exit_code == 0, result.output
    for name in PARTS:
        assert name in result.stdout
    assert 'GFLOP/s' in result.stdout
    figures = json.loads((here / 'out.json').read_text())
    assert [r['name'] for r in figures['rows']] == PARTS
    for row in figures['rows']:
        assert row['median'] > 0
        assert row['floor'] > 0
        assert bool(row['macs']) != bool(row['bytes'])
        assert row['peak'] is None or row['peak'] > 1e7
    macs = {r['name']: r['macs'] for r in figures['rows']}
    parts = macs['backbone'] + macs['encoder'] + macs['decoder']
    assert 0.8 * macs['whole inference'] < parts < macs['whole inference']
    assert 2 * macs['whole inference'] < macs['whole training pass']
    assert macs['whole training pass'] < 3 * macs['whole inference']
    assert figures['options']['config']['ffn'] == 24
    assert figures['profile'] is None


def test_the_profile_lists_modules(bench, here):
    result = bench('--profile', '--json', 'out.json', '--variant', 'two_stage')
    assert result.exit_code == 0, result.output
    assert 'transformer.encoder.layers.*' in result.stdout
    profile = json.loads((here / 'out.json').read_text())['profile']
    inference, by_layer, training_pass = (
        {row['module'] for row in profile[name]} for name in PASSES
    )
    assert 'transformer.decoder.layers.2.cross_attn.output_proj' in training_pass
    # one step for the encoder's layers: their modules are not called
    attention = 'transformer.encoder.layers.1.self_attn'
    assert attention not in inference
    assert {attention, f'{attention}.value_proj'} <= by_layer
    assert inference < by_layer


def test_the_profile_of_plain_operations_has_each_layer_at_once(bench, here):
    result = bench('--profile', '--plain', '--json', 'out.json')
    assert result.exit_code == 0, result.output
    profile = json.loads((here / 'out.json').read_text())['profile']
    assert list(profile) == [PASSES[0], PASSES[2]]
    names = {row['module'] for row in profile['whole inference']}
    assert 'transformer.encoder.layers.1.self_attn' in names


def test_the_profile_is_of_the_median_run(bench, here, monkeypatch):
    # of each pass, the first call does not count
    seconds = iter([3, 1, 4, 7, 5, 6, 20, 60, 50])

    @contextlib.contextmanager
    def timing(model):
        s = next(seconds)
        yield {('', 'forward'): Spent(1, s, s)}

    monkeypatch.setattr('ddetr_np.analysis.bench.timing', timing)
    result = bench('--profile', '--runs', 3, '--json', 'out.json')
    assert result.exit_code == 0, result.output
    assert next(seconds, None) is None
    profile = json.loads((here / 'out.json').read_text())['profile']
    assert [row['total'] for [row] in profile.values()] == [3, 6, 50]


def test_the_plain_operations_too(bench):
    result = bench('--plain', '--threads', 1, '--batch', 2, '--dtype', 'float64')
    assert result.exit_code == 0, result.output
    assert '2 × 64 × 96, float64, plain operations' in result.stdout
    assert '1 threads' in result.stdout


def test_without_an_encoder_there_is_no_core(bench):
    result = bench('--set', 'encoder_layers=0', '--profile')
    assert result.exit_code == 0, result.output
    assert 'layer by layer' not in result.stdout
    assert 'core, forward' not in result.stdout
    assert '│ encoder' not in result.stdout
    assert '│ decoder' in result.stdout


def test_what_cannot_be_measured_is_refused_at_once(bench):
    result = bench('--json', 'nowhere/out.json')
    assert result.exit_code == 2
    assert 'no folder nowhere' in result.stderr
    assert bench('--variant', 'three_stage').exit_code == 2
    assert bench('--set', 'C=15').exit_code == 2
    assert bench('--runs', 0).exit_code == 2
