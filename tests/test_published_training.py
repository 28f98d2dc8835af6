"""Five steps of AdamW as the released code takes them, from the same weights."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np.backend import to_device


def draw_batch(rng):
    """Return padded images, mask and targets of one published step."""
    pictures = [
        rng.standard_normal((3, *size)).astype('float32')
        for size in ((128, 160), (96, 144))
    ]
    targets = []
    for i in (0, 1):
        n = 3 + 2 * i
        centre, size = rng.uniform(0.25, 0.75, (n, 2)), rng.uniform(0.1, 0.45, (n, 2))
        boxes = np.concatenate([centre, size], -1)
        targets.append({'labels': rng.integers(1, 91, n), 'boxes': boxes})
    pictures = [p.transpose(1, 2, 0).astype('float64') for p in pictures]
    return *ddetr_np.pad_batch(pictures), targets


@pytest.mark.parametrize(
    'where',
    [
        pytest.param('cpu', marks=pytest.mark.slow),
        pytest.param('gpu', marks=pytest.mark.gpu),
    ],
)
def test_five_steps(where, golden, published_weights, need_gpu):
    device = need_gpu() if where == 'gpu' else 'cpu'
    with np.load(golden / 'official_training_multi_scale.npz') as file:
        published = dict(file)
    model = ddetr_np.build_model('multi_scale', dtype='float64', dropout=0.0)
    model.load_state_dict(published_weights('multi_scale'))
    model.to(device)
    criterion = ddetr_np.Criterion(model.config)
    optimizer = ddetr_np.AdamW(model, lr=2e-4, weight_decay=1e-4, clip=0.1)
    schedule = ddetr_np.StepLR(optimizer, step=3)
    rng = np.random.default_rng(11)
    for t in range(5):
        images, mask, targets = draw_batch(rng)
        images, mask = (to_device(a, device) for a in (images, mask))
        out, cache = model.forward(images, mask, train=True)
        total, losses, dout = criterion(out, targets)
        model.zero_grad()
        model.backward(dout, cache)
        norm = optimizer.step()
        schedule.step()

        step = f'step{t}/'
        expected = {
            key.removeprefix(f'{step}loss/'): float(value)
            for key, value in published.items()
            if key.startswith(f'{step}loss/')
        }
        assert losses == pytest.approx(expected, rel=1e-6)
        assert total == pytest.approx(float(published[f'{step}total_loss']), rel=1e-6)
        assert norm == pytest.approx(float(published[f'{step}grad_norm']), rel=1e-6)
        assert optimizer.lr == published[f'{step}lr'].tolist()  # exactly
    weights = model.state_dict()
    samples = [key for key in published if key.startswith('paramat/')]
    assert len(samples) == 309
    for key in samples:
        index, value = published[key]
        name = key.removeprefix('paramat/')
        reached = weights[name].ravel()[index.astype(int)]
        np.testing.assert_allclose(reached, value, rtol=0, atol=1e-7, err_msg=name)
