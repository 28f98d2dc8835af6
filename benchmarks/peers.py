"""The same detector in this package, PyTorch's `transformers` and ONNX Runtime.

Each function returns {task: function} for a `contest.Contender`, in whose process it is
called: that alone imports the peer. The weights are random, drawn once by PyTorch and
saved to a folder, from which all load them.
"""

import importlib
from pathlib import Path

import numpy as np
from contest import Took

LR, LR_BACKBONE, DECAY, CLIP = 2e-4, 2e-5, 1e-4, 0.1  # as published
GRAPH = 'detector.onnx'


def pictures(H, W, N=1):
    """Return normalised noise (N, H, W, 3), float32."""
    return np.random.default_rng(0).standard_normal((N, H, W, 3), np.float32)


def gradients_of_output(shape, classes=91):
    """Return fixed ∂loss/∂logits and ∂loss/∂boxes of a layer; shape is (N, Nq)."""
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal((*shape, n), np.float32) for n in (classes, 4))


# PyTorch


def without_torch(device, *others):
    """Return why PyTorch, with other packages, has no part on a device, or ''."""
    try:
        import torch

        for name in others:
            importlib.import_module(name)
    except ImportError as error:
        return str(error)
    usable = device == 'cpu' or torch.cuda.is_available()
    return '' if usable else 'it finds no GPU that it can use'


def save_weights(folder, size=None):
    """Draw a multi-scale ResNet-50 model and save it; and, with a size, its ONNX graph.

    Returns {}: for a `Contender`, so that PyTorch's memory goes with the process.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    resnet = transformers.ResNetConfig(out_features=['stage2', 'stage3', 'stage4'])
    model = transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            use_timm_backbone=False, backbone_config=resnet, num_labels=91
        )
    )
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if t.is_floating_point():
                t.copy_(_drawn(name, t, torch.randn(t.shape, generator=rng)))
    model.eval().save_pretrained(folder)
    if size is not None:
        try:
            _export(model, Path(folder) / GRAPH, *size)
        except ImportError as error:
            print(f'without an ONNX graph: {error}', flush=True)
    return {}


def _drawn(name, t, n):
    """Random values that keep the scale of the activations."""
    if t.ndim >= 2:
        return n / t[0].numel() ** 0.5
    if name.endswith('running_var'):
        return 1 + 0.1 * n.abs()
    if name.endswith('weight'):
        return 1 + 0.1 * n
    # initial samples lie on a grid, which is easier on caches than what is learned
    return n if name.endswith('sampling_offsets.bias') else 0.1 * n


def _export(model, path, H, W):
    import torch

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            out = self.model(pixels)
            return out.logits, out.pred_boxes

    pixels = torch.zeros(1, 3, H, W)
    torch.onnx.export(
        Detector().eval(),
        (pixels,),
        str(path),
        input_names=['pixels'],
        output_names=['logits', 'boxes'],
        opset_version=20,
        dynamo=True,
        verbose=False,
    )


def _torch_model(folder, threads, operator):
    import torch
    import transformers
    from transformers.models.deformable_detr import modeling_deformable_detr as source

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    if operator:
        from torch_ms_deform_attn import ms_deform_attn

        def forward(
            self, value, shapes, shapes_list, starts, locations, weights, im2col_step
        ):
            return ms_deform_attn(
                value, shapes, starts, locations.contiguous(), weights, im2col_step
            )

        source.MultiScaleDeformableAttention.forward = forward
    return transformers.DeformableDetrForObjectDetection.from_pretrained(folder)


def torch_inference(folder, H, W, threads, operator=False):
    """PyTorch as it is, or with the C++ operator in its attention."""
    import torch

    model = _torch_model(folder, threads, operator).eval()
    # contiguous as in training, channels first: what the model's own processor makes
    pixels = torch.from_numpy(pictures(H, W)).permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def run():
        out = model(pixels)
        return out.logits.numpy(), out.pred_boxes.numpy()

    return {'inference': run}


def torch_training(folder, H, W, threads, operator=False):
    """PyTorch as it is, or with the C++ operator in its attention and its backward."""
    import torch

    from ddetr_np.weights.names import to_published

    model = _torch_model(folder, threads, operator)
    # as published: stem and first stage frozen (with a backbone of its own,
    # transformers freezes all of it, by a rule made for other names)
    for name, p in model.named_parameters():
        p.requires_grad_('embedder.' not in name and '.encoder.stages.0.' not in name)
    pixels = torch.from_numpy(pictures(H, W)).permute(0, 3, 1, 2).contiguous()
    fixed = gradients_of_output((1, model.config.num_queries))
    dlogits, dboxes = map(torch.from_numpy, fixed)
    learning = [p for p in model.parameters() if p.requires_grad]

    def training_pass():
        out = model(pixels)
        ((out.logits * dlogits).sum() + (out.pred_boxes * dboxes).sum()).backward()

    def gradients():
        model.eval()  # without dropout, whose random numbers differ
        model.zero_grad()
        training_pass()
        found = {
            name: p.grad.numpy()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
        found = {name: g.copy() for name, g in to_published(found).items()}
        model.train()
        return found

    model.train()
    model.zero_grad()
    slow = [
        p
        for name, p in model.named_parameters()
        if 'backbone' in name or 'sampling_offsets' in name or 'reference' in name
    ]
    slow_ids = {id(p) for p in slow}

    def optimizer(**options):
        groups = [
            {'params': [p for p in learning if id(p) not in slow_ids]},
            {'params': [p for p in learning if id(p) in slow_ids], 'lr': LR_BACKBONE},
        ]
        return torch.optim.AdamW(groups, lr=LR, weight_decay=DECAY, **options)

    usual, fused = optimizer(), optimizer(fused=True)

    def step(chosen, clip=True):
        if clip:
            torch.nn.utils.clip_grad_norm_(learning, CLIP)
        chosen.step()

    return {
        'training pass': training_pass,
        'AdamW step': lambda: step(usual),
        'AdamW step, fused': lambda: step(fused),
        'AdamW step, not clipped': lambda: step(usual, False),
        'gradients': gradients,
        'zero': lambda: model.zero_grad(set_to_none=False),
        'size': lambda: sum(p.numel() for p in learning),
    }


# ONNX Runtime


def onnx_inference(folder, H, W, threads):
    """ONNX Runtime on the exported graph, with all its optimisations."""
    import onnxruntime

    path = Path(folder) / GRAPH
    if not path.exists():
        raise ImportError('there is no graph: the export needs onnx and onnxscript')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )
    pixels = np.ascontiguousarray(pictures(H, W).transpose(0, 3, 1, 2))
    return {'inference': lambda: session.run(['logits', 'boxes'], {'pixels': pixels})}


# This package


def _our_model(folder, threads):
    from threadpoolctl import threadpool_limits

    import ddetr_np
    from ddetr_np import threads as pool

    pool.set_threads(threads)
    model = ddetr_np.load_model(folder)
    threadpool_limits(threads, 'blas')  # once the BLAS is loaded; for the process
    return model


def our_inference(folder, H, W, threads):
    """This package."""
    import ddetr_np

    ddetr_np.threads.keep_freed_memory()  # as `ddetr-np detect` does
    model = _our_model(folder, threads)
    images = pictures(H, W)

    def run():
        out, _ = model.forward(images, keep='none')
        return out.logits[-1], out.boxes[-1]

    return {'inference': run}


def our_products(folder, H, W, threads):
    """Only the inference's matrix products, at the rate of NumPy's: its floor."""
    from ddetr_np.analysis.bench import mean_rate, product_rates
    from ddetr_np.analysis.complexity import counting

    model = _our_model(folder, threads)
    with counting(model) as count:
        model.forward(pictures(H, W), keep='none')
    macs, shapes = count.macs(), count.shapes()

    def floor():
        rate = mean_rate(list(product_rates(shapes, model.dtype)))
        return Took(2 * macs / rate)

    return {'inference': floor, 'macs': lambda: macs}


def our_training(folder, H, W, threads, keep='all'):
    """This package."""
    import ddetr_np

    ddetr_np.threads.keep_freed_memory()  # as `ddetr-np train` does
    model = _our_model(folder, threads)
    config = model.config
    images = pictures(H, W)
    fixed = gradients_of_output((1, config.Nq))
    # of the last layer alone: that is what transformers gives out
    dlogits, dboxes = ([None] * (config.decoder_layers - 1) + [d] for d in fixed)
    optimizer = ddetr_np.AdamW(model, LR, DECAY, CLIP)

    def training_pass(train=True):
        out, cache = model.forward(images, train=train, keep=keep)
        model.backward(type(out)(dlogits, dboxes), cache)

    def gradients():
        model.zero_grad()
        training_pass(train=False)
        return model.grad_dict()

    return {
        'training pass': training_pass,
        'AdamW step': optimizer.step,
        'gradients': gradients,
        'zero': model.zero_grad,
        'size': lambda: sum(p.data.size for p in model.params()),
    }
