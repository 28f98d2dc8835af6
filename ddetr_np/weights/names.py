"""Other people's tensor names, turned into the published ones.

transformers renames every module of the decoder and splits the stacked projections of
its self-attention; its ResNet has names of its own, timm's and torchvision's have the
published ones without their prefix.
"""

import re

import numpy as np

from ..errors import InputError

BACKBONE = 'backbone.0.body.'

# transformers' ResNet → torchvision's. Each rule is (pattern, replacement).
RESNET = [
    (r'^embedder\.embedder\.convolution\.', 'conv1.'),
    (r'^embedder\.embedder\.normalization\.', 'bn1.'),
    (r'\.shortcut\.convolution\.', '.downsample.0.'),
    (r'\.shortcut\.normalization\.', '.downsample.1.'),
    (
        r'\.layer\.(\d)\.convolution\.',
        lambda m: f'.conv{int(m[1]) + 1}.',
    ),
    (
        r'\.layer\.(\d)\.normalization\.',
        lambda m: f'.bn{int(m[1]) + 1}.',
    ),
    (
        r'^encoder\.stages\.(\d)\.layers\.',
        lambda m: f'layer{int(m[1]) + 1}.',
    ),
]

# transformers' Deformable DETR → published, behind its leading 'model.'. Version 5
# says backbone, o_proj and mlp.fc1 in memory for backbone.conv_encoder, out_proj, fc1.
TRANSFORMER = [
    (r'\.self_attn\.o_proj\.', '.self_attn.out_proj.'),
    (r'(layers\.\d+)\.(?:mlp\.)?fc([12])\.', r'\1.linear\2.'),
    (r'^(encoder\.layers\.\d+)\.self_attn_layer_norm\.', r'\1.norm1.'),
    (r'^(encoder\.layers\.\d+)\.final_layer_norm\.', r'\1.norm2.'),
    (r'^(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.', r'\1.norm1.'),
    (r'^(decoder\.layers\.\d+)\.self_attn_layer_norm\.', r'\1.norm2.'),
    (r'^(decoder\.layers\.\d+)\.final_layer_norm\.', r'\1.norm3.'),
    (r'^(decoder\.layers\.\d+)\.encoder_attn\.', r'\1.cross_attn.'),
]
OUTSIDE = ('input_proj.',)  # tensors the published model keeps beside its transformer
QUERIES = 'query_position_embeddings.'
HF_BACKBONE = re.compile(r'^backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?')
SPLIT = re.compile(r'(.*\.self_attn\.)[qkv]_proj\.(weight|bias)$')


def scheme(tensors):
    """Say whose names these are: 'published', 'transformers', 'resnet' or None.

    Parameters
    ----------
    tensors : dict of str → array
        Only the names count.

    Returns
    -------
    {'published', 'transformers', 'resnet'} or None
        'resnet' is a ResNet alone, by torchvision's, timm's or transformers' names;
        under the detector's prefix it is 'published'. None: nobody's.
    """
    if any(name.startswith('transformer.') for name in tensors):
        return 'published'
    if any(re.match(r'model\.(en|de)coder\.layers\.', name) for name in tensors):
        return 'transformers'
    plain = {_resnet_name(name) for name in tensors}
    if {'conv1.weight', 'layer1.0.conv1.weight'} <= plain:
        return 'resnet'
    if any(name.startswith(BACKBONE) for name in tensors):
        return 'published'
    return None


def to_published(tensors):
    """Rename tensors to the published names; unknown names stay as they are.

    Parameters
    ----------
    tensors : dict of str → array
        Published names, transformers' (of any version), or a ResNet's alone with
        torchvision's, timm's or transformers' names, whose classifier is dropped.

    Returns
    -------
    dict of str → array
        Without batch norms' `num_batches_tracked`.

    Raises
    ------
    InputError
        Two tensors have one published name.
    """
    kind = scheme(tensors)
    rename = {
        'transformers': _from_transformers,
        'resnet': lambda name: BACKBONE + _resnet_name(name),
    }.get(kind, lambda name: name)
    result, origin = {}, {}
    for name, array in tensors.items():
        if name.endswith('.num_batches_tracked'):
            continue
        if kind == 'resnet' and re.match(r'(fc|classifier(\.\d+)?)\.', name):
            continue
        new = rename(name)
        if new in result:
            raise InputError(
                f'{origin[new]} and {name} both stand for {new}; keep one of them'
            )
        result[new], origin[new] = array, name
    return _stack_projections(result) if kind == 'transformers' else result


def _from_transformers(name):
    if not name.startswith('model.'):
        return name  # the heads
    name = name.removeprefix('model.')
    backbone = HF_BACKBONE.match(name)
    if backbone:
        return BACKBONE + _resnet_name(name[backbone.end() :])
    if name.startswith(QUERIES):
        return 'query_embed.' + name.removeprefix(QUERIES)
    if name.startswith(OUTSIDE):
        return name
    return 'transformer.' + _substitute(name, TRANSFORMER)


def _resnet_name(name):
    name = re.sub(r'^(resnet|backbone)\.(?=embedder|encoder)', '', name)
    return _substitute(name, RESNET)


def _substitute(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _stack_projections(tensors):
    """Stack U (queries), V (keys) and W' (values) of Eq. 1 into `in_proj_…`."""
    result = {}
    for name, array in tensors.items():
        match = SPLIT.match(name)
        parts = [f'{match[1]}{p}_proj.{match[2]}' for p in 'qkv'] if match else []
        same = {np.shape(tensors[part]) for part in parts if part in tensors}
        if match and all(part in tensors for part in parts) and len(same) == 1:
            if name == parts[0]:
                stacked = np.concatenate([tensors[part] for part in parts])
                result[f'{match[1]}in_proj_{match[2]}'] = stacked
        else:
            result[name] = array  # an incomplete set stays, to be listed as unexpected
    return result


def fill_tied_heads(tensors):
    """Give every decoder layer the head that transformers saved for all of them.

    Version 5 ties `class_embed.1` and on to `class_embed.0` even with refinement, and
    of tied tensors only one is saved. Heads that the file does have are left alone.

    Parameters
    ----------
    tensors : dict of str → array
        Published names.

    Returns
    -------
    dict of str → array
    """
    result = dict(tensors)
    heads = _indices(tensors, r'(?:transformer\.decoder\.)?bbox_embed\.(\d\d?)\.')
    layers = _indices(tensors, r'transformer\.decoder\.layers\.(\d\d?)\.')
    for kind in 'class_embed', 'bbox_embed':
        have = _indices(tensors, rf'(?:transformer\.decoder\.)?{kind}\.(\d\d?)\.')
        if have == {0}:
            first = [name for name in tensors if f'{kind}.0.' in name]
            for i in sorted((heads | layers) - {0}):
                for name in first:
                    result[name.replace(f'{kind}.0.', f'{kind}.{i}.')] = tensors[name]
    return result


def _indices(tensors, pattern):
    return {int(m[1]) for name in tensors if (m := re.match(pattern, name))}
