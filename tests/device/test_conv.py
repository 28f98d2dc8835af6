"""The convolution for GPUs needs no kernel of its own: it is judged on the double."""

import numpy as np
import pytest

from ddetr_np import ops
from ddetr_np.fast import gpu_conv
from ddetr_np.testing import cases, run_backward, run_forward

TWINS = {
    'conv2d': (gpu_conv.gpu_conv2d, gpu_conv.gpu_conv2d_backward),
    'conv_norm_relu': (
        gpu_conv.gpu_conv_norm_relu, gpu_conv.gpu_conv_norm_relu_backward
    ),
}  # fmt: skip
EVERY_CASE = [
    pytest.param(name, case, id=f'{name}: {case.label}')
    for name in TWINS
    for case in cases(f'conv.{name}')
]


@pytest.mark.parametrize('tile', ['rows', 'pictures', 'all'])
@pytest.mark.parametrize(('name', 'case'), EVERY_CASE)
def test_it_is_the_plain_one(gpu, name, case, tile, monkeypatch):
    kernel = case.inputs['W'].shape
    row = 9 * np.prod(kernel[:3])
    monkeypatch.setattr(
        gpu_conv, 'TILE', {'rows': 2 * row, 'pictures': 7 * row, 'all': 1 << 27}[tile]
    )
    plain = (getattr(ops.conv, f'{name}{end}').plain for end in ('', '_backward'))
    results = []
    for (forward, backward), moved in ((plain, case), (TWINS[name], gpu.put(case))):
        y, cache = run_forward(forward, moved)
        dy = np.random.default_rng(0).standard_normal(y.shape)
        dy = dy if moved is case else gpu.put(dy)
        gradients = run_backward(backward, moved, dy, cache)
        # either backward takes either cache
        other = ops.conv.conv2d_backward.plain
        if name == 'conv2d':
            again = run_backward(other, moved, dy, cache)
        else:
            again = gradients
        results.append(gpu.fetch((y, gradients, again)))
    (y, first, _), (y2, *others) = results
    np.testing.assert_allclose(y2, y, rtol=1e-11, atol=1e-11 * np.abs(y).max())
    for gradients in others:
        assert gradients.keys() == first.keys()
        for argument, g in first.items():
            scale = np.abs(g).max()
            np.testing.assert_allclose(gradients[argument], g, 1e-11, 1e-11 * scale)


def test_it_stands_in_on_a_gpu():
    from ddetr_np.backend import twins

    for name in TWINS:
        for i, end in enumerate(('', '_backward')):
            key = f'conv.{name}{end}', 'cupy'
            assert twins()[key] is TWINS[name][i] or 'cudnn' in twins()[key].__module__
