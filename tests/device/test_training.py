"""Training on a device: steps, averages and runs as NumPy makes them."""

import functools

import numpy as np
import pytest

from ddetr_np import SGD, AdamW, Criterion, Ema, NotFiniteError, Settings, build_model
from ddetr_np.backend import device_of, plain
from ddetr_np.testing_model import SMALL, random_batch, randomise
from ddetr_np.train.checkpoint import read_checkpoint
from ddetr_np.train.log import read_metrics
from ddetr_np.train.loop import Interrupted, train_model

RUN = {  # two epochs of two steps
    'data': 'scenes', 'variant': 'two_stage', 'epochs': 2, 'batch': 2, 'accumulate': 2,
    'workers': 0, 'lr': 1e-3, 'ema': 0.9, 'warmup': 3, 'drop_every': 1, 'short': 64,
    'long': 64, 'save_every': 2, 'augment': {'kind': 'custom', 'scales': [48, 64]},
    'scenes': {'count': 9, 'height': 64, 'width': 64, 'val_count': 2},
    'model': {
        'backbone': 'resnet18', 'width': 4, 'C': 16, 'M': 2, 'K': 2, 'Nq': 6, 'ffn': 24,
        'encoder_layers': 1, 'decoder_layers': 2, 'freeze_at': 0, 'frozen_norm': False,
    },
}  # fmt: skip

OPTIMISERS = {
    'AdamW': AdamW,
    'SGD': functools.partial(SGD, nesterov=True),
    'without momentum': functools.partial(SGD, momentum=0.0),
}


def model_on(device, **fields):
    fields = {'backbone': 'resnet18', **SMALL, **fields}
    return randomise(build_model('refine', dtype='float64', **fields)).to(device)


def steps(model, optimiser, n=3):
    """Make steps from random gradients; return all that changes."""
    rng = np.random.default_rng(0)
    ema, norms = Ema(model, 0.9), []
    for _ in range(n):
        for p in model.params():
            p.zero_grad()
            grad = rng.standard_normal(p.shape)
            type(p)(p.grad, conv=p.conv).load(grad)
        norms.append(optimiser.step())
        ema.update()
    with ema.applied():
        average = model.state_dict()
    return norms, model.state_dict(), average, optimiser.state_dict(), ema.state_dict()


@pytest.mark.parametrize('name', OPTIMISERS)
def test_steps_averages_and_clipping(gpu, name):
    models = model_on('cpu'), model_on(gpu.name)
    optimisers = [OPTIMISERS[name](m, clip=0.1) for m in models]
    with plain():
        expected = steps(models[0], optimisers[0])
    got = steps(models[1], optimisers[1])
    gpu.check(got, expected, 1e-9)
    for slots in optimisers[1]._state.values():
        assert all(device_of(a) == gpu.name for a in slots.values())


def test_the_norm_is_one_crossing(double):
    model = model_on(double.name)
    optimiser, criterion = AdamW(model), Criterion(model.config)
    images, mask, targets = random_batch(SMALL['num_classes'])
    out, cache = model.forward(*double.put((images, mask)))
    model.backward(criterion(out, targets)[2], cache)
    double.traffic.clear()
    optimiser.step()
    assert double.traffic.to_host == [8 * len(optimiser.params)]
    assert double.traffic.to_device == []
    next(iter(optimiser.params.values())).grad.fill(np.nan)
    with pytest.raises(NotFiniteError, match='the gradient of'):
        optimiser.step()


def test_state_goes_on_where_it_was_saved(gpu):
    """A state saved on either device is taken up on the other."""
    states = []
    for first, then in (('cpu', gpu.name), (gpu.name, 'cpu'), ('cpu', 'cpu')):
        with plain():
            model, other = model_on(first), model_on(then)
            optimiser = AdamW(model)
            steps(model, optimiser)
            other.load_state_dict(model.state_dict())
            resumed = AdamW(other)
            resumed.load_state_dict(optimiser.state_dict())
            states.append(steps(other, resumed, 2))
    gpu.check(states[0], states[2], 1e-9)
    gpu.check(states[1], states[2], 1e-9)


def test_a_run_stopped_and_resumed(double, tmp_path):
    """On the device as on the host, bit for bit: data, steps, figures, checkpoints."""
    stopped = []

    def stop():
        stopped.append(True)
        return len(stopped) == 3

    with plain():
        settings = Settings().replace(**RUN)
        train_model(settings, tmp_path / 'cpu')
        settings = settings.replace(device=double.name)
        with pytest.raises(Interrupted):
            train_model(settings, tmp_path / 'gpu', stop=stop)
        model, _ = train_model(settings, tmp_path / 'gpu', resume=True)
    assert model.device == double.name
    a, b = (read_checkpoint(tmp_path / name) for name in ('cpu', 'gpu'))
    for facts in (a[3], b[3]):
        del facts['seconds'], facts['log_size']
    assert a[3] == b[3]
    double.check((b[0], b[2]), (a[0], a[2]), 0)
    for name in ('model.safetensors', 'best.safetensors'):
        files = [(tmp_path / run / name) for run in ('cpu', 'gpu')]
        assert files[0].exists() == files[1].exists()
        if files[0].exists():
            assert files[0].read_bytes() == files[1].read_bytes()


def test_mixed_precision(gpu, tmp_path):
    """The losses are those of single precision, nearly; a resumed run has its bits."""
    settings = Settings().replace(**RUN, device=gpu.name)
    train_model(settings, tmp_path / 'single')
    settings = settings.replace(precision='mixed')
    train_model(settings, tmp_path / 'mixed')
    stopped = []

    def stop():
        stopped.append(True)
        return len(stopped) == 3

    with pytest.raises(Interrupted):
        train_model(settings, tmp_path / 'again', stop=stop)
    train_model(settings, tmp_path / 'again', resume=True)
    single, mixed, again = (
        [r for r in read_metrics(tmp_path / name) if r['kind'] == 'step']
        for name in ('single', 'mixed', 'again')
    )
    for a, b in zip(mixed, single, strict=True):
        assert a['loss'] == pytest.approx(b['loss'], rel=0.02)
        assert a['loss'] != b['loss']
        assert a['loss_scale'] > 1
    if gpu.traffic:  # on a GPU atomic sums come in any order
        assert [r['loss'] for r in again] == [r['loss'] for r in mixed]
        weights = [read_checkpoint(tmp_path / name) for name in ('mixed', 'again')]
        gpu.check(weights[1][0], weights[0][0], 0)


@pytest.mark.gpu
def test_a_run(real, tmp_path):
    """The run of the host, to single precision: its losses."""
    settings = Settings().replace(**RUN)
    train_model(settings, tmp_path / 'cpu')
    train_model(settings.replace(device=real.name), tmp_path / 'gpu')
    runs = [read_metrics(tmp_path / name) for name in ('cpu', 'gpu')]
    losses = [[r['loss'] for r in run if r['kind'] == 'step'] for run in runs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.slow
def test_memory_does_not_grow(real):
    """Over 1,000 steps CuPy's pool takes nothing more from the driver."""
    import cupy

    model = model_on(real.name, dropout=0.1)
    optimiser, criterion = AdamW(model), Criterion(model.config)
    images, mask, targets = random_batch(SMALL['num_classes'])
    images, mask = real.put((images, mask))
    pool, taken = cupy.get_default_memory_pool(), []
    for step in range(1000):
        model.zero_grad()
        out, cache = model.forward(images, mask, train=True, step=step)
        model.backward(criterion(out, targets)[2], cache)
        optimiser.step()
        del out, cache
        taken.append(pool.total_bytes())
    assert taken[-1] == taken[20]
