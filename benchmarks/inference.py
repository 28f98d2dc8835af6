"""Whole inference against its peers, in one process and in turn.

    pip install torch transformers onnxruntime onnx onnxscript torch-ms-deform-attn
    python benchmarks/inference.py
    python benchmarks/inference.py --height 640 --width 853 --runs 11

Peers, each left out where it is not installed: ONNX Runtime on the exported graph of
`transformers`' model (opset 20), `transformers` as it is, and the same with the C++
operator of `torch-ms-deform-attn` in its attention. All have the same random weights.
Printed are medians of times and of the ratios of neighbouring runs, and the time that
the matrix products alone take at the rate that NumPy reaches here.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe

import ddetr_np
from ddetr_np import threads

GMACS = 164  # of the multi-scale model at 800 × 1066


def reference():
    """Return transformers' multi-scale model on its own ResNet-50."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    resnet = transformers.ResNetConfig(out_features=['stage2', 'stage3', 'stage4'])
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=resnet, num_labels=91, dropout=0.0
    )
    return transformers.DeformableDetrForObjectDetection(config).eval()


def forward_of(model):
    """Return the model as a module of tensors: pixels to logits and boxes."""
    import torch

    class Forward(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            out = self.model(pixel_values=pixels, return_dict=True)
            return out.logits, out.pred_boxes

    return Forward().eval()


def onnx_session(forward, pixels, number):
    """Export the graph and return a function that runs it."""
    import onnxruntime
    import torch

    folder = Path(tempfile.mkdtemp())
    path = folder / 'model.onnx'
    torch.onnx.export(
        forward, (pixels,), path, opset_version=20, dynamo=True, verbose=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = number
    session = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider']
    )
    name = session.get_inputs()[0].name
    feed = {name: pixels.numpy()}
    return lambda: session.run(None, feed)


def patched(model):
    """Put the C++ operator into the model's attention; return the model."""
    import torch
    from torch_ms_deform_attn import ms_deform_attn

    def core(self, value, shapes, shapes_list, starts, loc, A, step):
        if not torch.is_tensor(shapes):
            shapes = torch.tensor(shapes)
        return ms_deform_attn(value, shapes, starts, loc, A, step)

    found = 0
    for module in model.modules():
        if type(module).__name__ == 'MultiScaleDeformableAttention':
            module.forward = core.__get__(module)
            found += 1
    if not found:
        raise RuntimeError('this transformers has no MultiScaleDeformableAttention')
    return model


def product_rate():
    """Return multiply-accumulates a second of NumPy's products, in billions."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 2048, 2048)).astype('float32')
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begin)
    return 2048**3 / statistics.median(times) / 1e9


def peers(height, width, number, names):
    """Return (model, {name: function}) of what is asked for and installed."""
    try:
        import torch
    except ImportError:
        return None, {}
    torch.set_num_threads(number)
    torch.manual_seed(0)
    model = reference()
    pixels = torch.randn(1, 3, height, width)
    found = {}

    def run(forward):
        with torch.inference_mode():
            return [a.numpy() for a in forward(pixels)]

    if 'onnx' in names:
        found['ONNX Runtime'] = onnx_session(forward_of(model), pixels, number)
    if 'torch' in names:
        plain = forward_of(model)
        found['transformers'] = lambda: run(plain)
    if 'c++' in names:
        import copy

        other = forward_of(patched(copy.deepcopy(model)))
        found['… C++ operator'] = lambda: run(other)
    return (model, pixels.numpy().transpose(0, 2, 3, 1)), found


def timed(function):
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--runs', type=int, default=7)
    parser.add_argument('--threads', type=int, default=None)
    parser.add_argument('--height', type=int, default=800)
    parser.add_argument('--width', type=int, default=1066)
    parser.add_argument('--peers', nargs='*', default=['onnx', 'torch', 'c++'])
    options = parser.parse_args()
    if options.threads:
        threads.set_threads(options.threads)
    given, others = peers(
        options.height, options.width, threads.get_threads(), options.peers
    )
    if given is None:
        model = ddetr_np.build_model('multi_scale')
        rng = np.random.default_rng(0)
        shape = (1, options.height, options.width, 3)
        images = rng.standard_normal(shape).astype('float32')
    else:
        with tempfile.TemporaryDirectory() as folder:
            given[0].save_pretrained(folder)
            model = ddetr_np.load_model(folder)
        images = np.ascontiguousarray(given[1])

    def ours():
        out, _ = model.forward(images, keep='none')
        return out.logits[-1], out.boxes[-1]

    print(describe())
    rate = product_rate()
    gmacs = GMACS * options.height * options.width / (800 * 1066)
    floor = gmacs / rate
    print(f'products: {rate:.0f} G multiply-accumulates a second, floor {floor:.2f} s')
    _, result = timed(ours)
    for name, function in others.items():
        _, theirs = timed(function)
        worst = max(
            np.abs(a - b).max() / np.abs(b).max()
            for a, b in zip(result, theirs, strict=True)
        )
        print(f'{name} differs by {worst:.1e} of the largest value')
    times = {name: [] for name in ('ours', *others)}
    ratios = {name: [] for name in others}
    for _ in range(options.runs):
        if not others:
            times['ours'].append(timed(ours)[0])
        for name, function in others.items():
            theirs, mine = timed(function)[0], timed(ours)[0]
            times[name].append(theirs)
            times['ours'].append(mine)
            ratios[name].append(mine / theirs)
    for name, t in times.items():
        line = f'{name:16}{statistics.median(t):8.2f} s'
        if name in ratios:
            line += f'   ours is {statistics.median(ratios[name]):.2f} of it'
        print(line)


if __name__ == '__main__':
    main()
