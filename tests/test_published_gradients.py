"""The published backward pass: every loss, the matching, and every gradient, met."""

import contextlib

import numpy as np
import pytest

import ddetr_np
from ddetr_np.backend import plain, to_device, to_host


@pytest.fixture(
    scope='module',
    params=[
        'twins',
        pytest.param('plain', marks=pytest.mark.slow),
        pytest.param('gpu', marks=pytest.mark.gpu),
    ],
)
def operations(request):
    return request.param


@pytest.fixture(scope='module', params=['multi_scale', 'two_stage'])
def passed(request, operations, published_model, published_pass, need_gpu):
    arrays, images, mask, targets = published_pass(request.param)
    device = need_gpu() if operations == 'gpu' else 'cpu'
    model = published_model(request.param)
    images, mask = (to_device(a, device) for a in (images, mask))
    criterion = ddetr_np.Criterion(model.config)
    try:
        model.to(device).zero_grad()
        with plain() if operations == 'plain' else contextlib.nullcontext():
            out, cache = model.forward(images, mask, train=True)
            total, losses, dout = criterion(out, targets)
            dimages = to_host(model.backward(dout, cache, images=True))
        matches = criterion.match(out, targets)
        grads = model.grad_dict()
    finally:
        model.to('cpu')  # other tests use it
    return model, arrays, total, losses, matches, dimages, grads


def test_every_loss(passed):
    _, arrays, total, losses, *_ = passed
    published = {k[5:]: v for k, v in arrays.items() if k.startswith('loss/')}
    assert set(losses) == set(published)
    for name, value in published.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(total, arrays['total_loss'], rtol=1e-9)


def test_the_matching(passed):
    _, arrays, _, _, matches, *_ = passed
    for i in range(2):
        query, target = matches.layers[-1][i]
        np.testing.assert_array_equal(query, arrays[f'match_query{i}'])
        np.testing.assert_array_equal(target, arrays[f'match_target{i}'])


def test_every_gradient(passed):
    model, arrays, _, _, _, _, grads = passed
    published = {k[9:] for k in arrays if k.startswith('gradnorm/')}
    learning = {n for n, p in model.named_params() if p.learns}
    assert learning == published
    for name in published:
        norm = arrays[f'gradnorm/{name}']
        tolerance = 1e-7 * norm
        assert abs(np.linalg.norm(grads[name]) - norm) <= tolerance, name
        index, value = arrays[f'gradat/{name}']
        found = grads[name].ravel()[index.astype(int)]
        assert np.abs(found - value).max() <= tolerance, name


def test_the_pictures_gradient(passed):
    _, arrays, _, _, _, dimages, _ = passed
    for i in range(2):
        expected = arrays[f'grad_image{i}']
        H, W = expected.shape[1:]
        found = dimages[i, :H, :W].transpose(2, 0, 1)
        off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert off < 1e-6  # stored in single precision
