"""The sampling core against its peers, in one process and in turn.

    pip install torch torch-ms-deform-attn
    python benchmarks/core.py
    python benchmarks/core.py --runs 31 --threads 1 --height 640 --width 640

Peers: the C++ operator of the package `torch-ms-deform-attn`, and PyTorch's formulation
by `grid_sample`. Each is left out where it is not installed. Printed are medians of
times, and medians of the ratios of neighbouring runs: a busy machine slows both. Either
is first as often as second, and each begins after a pause: PyTorch's threads go on
looking for work, on a core of ours, for milliseconds after their last.
"""

import argparse
import statistics
import time

import numpy as np
from machine import describe

from ddetr_np import backend, ops, threads

PAUSE = 0.05  # seconds, before each run


def shapes_of(height, width):
    """Return the four levels of the multi-scale model: strides 8, 16, 32 and 64."""
    return tuple((-(-height // s), -(-width // s)) for s in (8, 16, 32, 64))


def inputs(shapes, M=8, K=4, Cv=32, seed=0):
    """Return value, loc, A and dy of an encoder layer: queries look about them."""
    rng = np.random.default_rng(seed)
    S, L = sum(H * W for H, W in shapes), len(shapes)
    places = [
        np.stack(np.meshgrid((np.arange(W) + 0.5) / W, (np.arange(H) + 0.5) / H), -1)
        for H, W in shapes
    ]
    p = np.concatenate([a.reshape(-1, 2) for a in places])
    sizes = np.array([(W, H) for H, W in shapes])
    offset = rng.normal(0, 2, (S, M, L, K, 2)) / sizes[:, None]
    loc = p[:, None, None, None] + offset
    A = rng.random((S, M, L, K))
    A /= A.sum((2, 3), keepdims=True)
    value, dy = rng.standard_normal((2, S, M, Cv))
    return tuple(a[None].astype('float32') for a in (value, loc, A, dy))


class Ours:
    """This package; `plain` is its readable operation."""

    def __init__(self, shapes, value, loc, A, dy):
        self.arguments, self.dy = (value, shapes, loc, A), dy

    def forward(self):
        y, self.cache = ops.ms_deform_attn.ms_deform_attn(*self.arguments)
        return y

    def backward(self):
        return ops.ms_deform_attn.ms_deform_attn_backward(self.dy, self.cache)


class Plain(Ours):
    def forward(self):
        with backend.plain():
            return super().forward()

    def backward(self):
        with backend.plain():
            return super().backward()


class Torch:
    """A function of PyTorch tensors and its automatic gradients."""

    def __init__(self, function, shapes, value, loc, A, dy):
        import torch

        self.function = function
        self.leaves = [torch.tensor(a, requires_grad=True) for a in (value, loc, A)]
        self.dy = torch.tensor(dy).flatten(2)
        self.shapes = torch.tensor(shapes)
        sizes = self.shapes.prod(1)
        self.starts = sizes.cumsum(0) - sizes

    def forward(self):
        self.y = self.function(self.shapes, self.starts, *self.leaves)
        return self.y.detach().numpy().reshape(*self.leaves[0].shape[:1], -1)

    def backward(self):
        for leaf in self.leaves:
            leaf.grad = None
        self.y.backward(self.dy)
        return tuple(leaf.grad.numpy() for leaf in self.leaves)


def peers(number):
    """Return {name: function} of the peers that are installed."""
    try:
        import torch
        import torch_ms_deform_attn as package
    except ImportError:
        return {}
    torch.set_num_threads(number)
    return {
        'C++ operator': lambda shapes, starts, value, loc, A: package.ms_deform_attn(
            value, shapes, starts, loc, A, 64
        ),
        'grid_sample': lambda shapes, starts, value, loc, A: (
            package.ms_deform_attn_core_pytorch(value, shapes, loc, A)
        ),
    }


def agree(ours, other):
    """Return the largest difference, relative to the largest value, of y and grads."""
    pairs = [(ours.forward(), other.forward())]
    pairs += zip(ours.backward(), other.backward())
    return max(
        np.abs(a.ravel() - b.ravel()).max() / np.abs(a).max() for a, b in pairs
    )


def timed(function):
    time.sleep(PAUSE)
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--runs', type=int, default=15)
    parser.add_argument('--threads', type=int, default=None)
    parser.add_argument('--height', type=int, default=800)
    parser.add_argument('--width', type=int, default=1066)
    parser.add_argument('--plain', action='store_true', help='the readable one, too')
    options = parser.parse_args()
    if options.threads:
        threads.set_threads(options.threads)
    shapes = shapes_of(options.height, options.width)
    arrays = inputs(shapes)
    ours = Ours(shapes, *arrays)
    others = {
        name: Torch(function, shapes, *arrays)
        for name, function in peers(threads.get_threads()).items()
    }
    if options.plain:
        others['readable'] = Plain(shapes, *arrays)
    print(describe())
    print(f'levels {shapes}, {arrays[0].shape[1]} queries, {options.runs} runs')
    print(f'{"":14}{"forward":>10}{"backward":>10}{"ours/it":>16}{"differs by":>12}')
    times = {name: ([], []) for name in ('ours', *others)}
    ratios = {name: ([], []) for name in others}
    differences = {name: agree(ours, other) for name, other in others.items()}
    for run in range(options.runs):
        for name, other in others.items():
            for i, step in enumerate(('forward', 'backward')):
                pair = (other, ours) if run % 2 else (ours, other)
                took = {who: timed(getattr(who, step)) for who in pair}
                times[name][i].append(took[other])
                times['ours'][i].append(took[ours])
                ratios[name][i].append(took[ours] / took[other])
        if not others:
            for i, step in enumerate(('forward', 'backward')):
                times['ours'][i].append(timed(getattr(ours, step)))
    for name, pair in times.items():
        forward, backward = (1e3 * statistics.median(t) for t in pair)
        line = f'{name:14}{forward:7.1f} ms{backward:7.1f} ms'
        if name in ratios:
            a, b = (statistics.median(r) for r in ratios[name])
            line += f'{a:8.2f}{b:8.2f}{differences[name]:12.1e}'
        print(line)


if __name__ == '__main__':
    main()
