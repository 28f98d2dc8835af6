"""Deformable DETR in NumPy and CuPy: every equation and every gradient by hand.

Public names are imported when they are first used, so that `import ddetr_np` and
`ddetr-np --help` stay quick.
"""

import importlib

__version__ = '0.1.0'

_HOME = {  # public name: the module it lives in
    'Config': 'config',
    'make_config': 'config',
    'InputError': 'errors',
    'NotFiniteError': 'errors',
    'Criterion': 'loss',
    'AdamW': 'train',
    'SGD': 'train',
    'GroupRule': 'train',
    'StepLR': 'train',
    'Cosine': 'train',
    'Warmup': 'train',
    'Ema': 'train',
    'Settings': 'train',
    'read_settings': 'train',
    'train_model': 'train.loop',
    'build_model': 'nn.ddetr',
    'first_not_finite': 'nn.finite',
    'load_model': 'weights',
    'save_model': 'weights',
    'read_picture': 'data.pictures',
    'read_dataset': 'data.reading',
    'check_dataset': 'data.reading',
    'Dataset': 'data.dataset',
    'Loader': 'data.loader',
    'Augment': 'data.augment',
    'Scenes': 'data.scenes',
    'draw_scene': 'data.scenes',
    'write_scenes': 'data.scenes',
    'resize': 'data.prepare',
    'normalise': 'data.prepare',
    'pad_batch': 'data.prepare',
    'postprocess': 'evaluate.postprocess',
    'detect': 'evaluate.detection',
    'Graph': 'fast.graph',
    'coco_figures': 'evaluate.coco_ap',
    'Report': 'evaluate.coco_ap',
    'Detections': 'evaluate.detection',
    'class_name': 'evaluate.detection',
    'look': 'analysis.look',
    'encoder_reads': 'analysis.reads',
    'decoder_reads': 'analysis.reads',
    'gradient_norms': 'analysis.gradient_norm',
    'gradient_shares': 'analysis.gradient_shares',
}
_ROOMS = (
    'analysis', 'backend', 'config', 'data', 'errors', 'evaluate', 'fast', 'loss',
    'module', 'nn', 'ops', 'testing', 'threads', 'train', 'views', 'weights',
)

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        value = getattr(importlib.import_module(f'.{_HOME[name]}', __name__), name)
    elif name in _ROOMS:
        value = importlib.import_module(f'.{name}', __name__)
    else:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOME, *_ROOMS})
