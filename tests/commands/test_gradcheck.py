import pytest

import ddetr_np
from ddetr_np import ops, save_model
from ddetr_np.backend import substitute
from ddetr_np.testing import CASES
from ddetr_np.testing_model import SMALL

TINY = ['--set', 'encoder_layers=1', '--set', 'decoder_layers=2', '--set', 'L=2']


def last(result):
    return result.stdout.strip().splitlines()[-1]


@pytest.fixture
def fault(monkeypatch):
    """Plant a 0.1 % fault in an operation's backward pass."""

    def fault(module, name):
        right = getattr(module, name)

        def wrong(*args, **keywords):
            return 1.001 * right(*args, **keywords)

        monkeypatch.setattr(module, name, wrong)

    return fault


def test_every_operation(run):
    result = run('gradcheck')
    assert result.exit_code == 0, result.output
    for name in CASES:
        assert f'{name}: ' in result.stdout
    assert '0 fail; 0 undecided' in last(result)
    assert 'C = 24, M = 3' in result.stdout


def test_a_chosen_operation_at_chosen_sizes(run):
    result = run('gradcheck', '--op', 'softmax', '--set', 'M=4', '--set', 'L=3')
    assert result.exit_code == 0, result.output
    assert '1 operation,' in result.stdout
    assert 'M = 4, L = 3' in result.stdout
    assert 'numeric' in result.stdout
    assert 'analytic' in result.stdout
    assert 'activation.softmax: keys' in result.stdout
    assert 'conv' not in result.stdout


def test_modules_and_backwards_can_be_named(run):
    result = run('gradcheck', '--op', 'norm', '--op', 'l1_backward', '--op', 'norm')
    assert result.exit_code == 0, result.output
    assert '5 operations' in result.stdout


def test_another_seed_is_another_point(run):
    first, again, other = (
        run('gradcheck', '--op', 'l1', '--seed', seed).stdout for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_fault_in_an_operation(run, fault):
    fault(ops.activation, 'softmax_backward')
    result = run('gradcheck', '--op', 'activation')
    assert result.exit_code == 1
    assert 'fail' in result.stdout
    assert '1.0e-03' in result.stdout  # its size
    assert '2 fail; 0 undecided' in last(result)


def test_plain_operations(run):
    key = ops.activation.softmax_backward.key, 'numpy'
    with substitute({key: lambda dA, A: 2 * dA}):
        assert run('gradcheck', '--op', 'softmax').exit_code == 1
        assert run('gradcheck', '--op', 'softmax', '--plain').exit_code == 0


def test_the_tolerance_counts(run, fault):
    fault(ops.activation, 'softmax_backward')
    assert run('gradcheck', '--op', 'softmax', '--tol', '1e-2').exit_code == 0


@pytest.mark.parametrize(('option', 'rounds'), [((), 2), (('--block',), 1)])
def test_the_detector(run, option, rounds):
    result = run('gradcheck', '--model', '--variant', 'two_stage', *TINY, *option)
    assert result.exit_code == 0, result.output
    assert result.stdout.count('two_stage, small') == rounds
    assert 'two_stage, blocked' in result.stdout
    assert ('two_stage, true derivative' in result.stdout) == (rounds == 2)
    for part in ('pictures', 'encoder.0.self_attn', 'pos_trans', 'backbone.0.body'):
        assert part in result.stdout


def test_all_variants(run):
    least = ['--set', 'encoder_layers=0', '--set', 'decoder_layers=1', '--set', 'L=1']
    result = run('gradcheck', '--model', '--no-block', *least)
    assert result.exit_code == 0, result.output
    for name in ddetr_np.config.VARIANTS:
        assert f'{name}, small' in result.stdout


def test_the_detector_in_training(run):
    options = ['--variant', 'multi_scale', '--set', 'dropout=0.3', *TINY]
    rested = run('gradcheck', '--model', *options)
    trained = run('gradcheck', '--model', '--train', *options)
    assert rested.exit_code == trained.exit_code == 0
    assert rested.stdout != trained.stdout


def test_a_fault_in_the_detector(run, fault):
    fault(ops.position, 'box_position_backward')
    options = ['--variant', 'two_stage', *TINY]
    # this derivative is used where nothing is blocked, and nowhere else
    assert run('gradcheck', '--model', '--block', *options).exit_code == 0
    result = run('gradcheck', '--model', '--no-block', *options)
    assert result.exit_code == 1
    assert 'fail' in result.stdout


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint whose every tensor is random, in single precision."""
    from ddetr_np.testing_model import randomise

    def save(change=None):
        model = ddetr_np.build_model('refine', **SMALL | {'C': 32})
        randomise(model)
        if change:
            change(model)
        path = tmp_path / 'toy.safetensors'
        save_model(model, path)
        return path

    return save


def test_a_checkpoint(run, checkpoint):
    result = run('gradcheck', '--weights', checkpoint(), '--block')
    assert result.exit_code == 0, result.output
    assert 'toy.safetensors' in result.stdout
    assert 'C = 32' in ' '.join(result.stdout.split())  # wherever a line ends


def test_a_place_that_is_not_smooth_is_never_passed(run, checkpoint):
    def onto_pixels(model):
        """Let every encoder sample lie on a pixel's centre, as initial weights do."""
        for layer in model.transformer.encoder.layers:
            layer.self_attn.sampling_offsets.weight.data[...] = 0
            layer.self_attn.sampling_offsets.bias.data[...] = 1

    result = run('gradcheck', '--weights', checkpoint(onto_pixels), '--block')
    assert result.exit_code == 3, result.output
    assert 'kink' in result.stdout
    assert ' 0 fail' in result.stdout
    assert ' 0 undecided' not in result.stdout
    assert 'Try another --seed' in result.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--variant', 'refined'], 'two_stage'),
        (['--op', 'sofmax'], 'did you mean softmax'),
        (['--op', 'zzzz'], 'linear.linear'),
        (['--set', 'C=7'], 'C is 7'),
        (['--set', 'c'], 'NAME=VALUE'),
        (['--set', 'heads=2'], "no field 'heads'"),
        (['--model', '--set', 'heads=2'], "no field 'heads'"),
        (['--tol', '0'], '--tol is 0'),
        (['--tol', 'nan'], '--tol is nan'),
        (['--seed', '-1'], '-1'),
        (['--weights', 'gone.pth'], 'gone.pth'),
        (['--weights', 'a.pth', '--variant', 'refine'], 'leave --variant'),
        (['--model', '--op', 'conv'], '--op'),
        (['--no-block'], 'need --model'),
    ],
)
def test_refused(run, here, arguments, message):
    result = run('gradcheck', *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert 'Traceback' not in result.output


def test_what_was_found_before_an_interruption_is_shown(run, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ops.losses, 'giou_backward', interrupt)
    result = run('gradcheck', '--op', 'losses')
    assert result.exit_code == 130
    assert 'losses.l1' in result.stdout
