"""The configuration of a checkpoint: sizes off its weights, the rest beside them."""

import re
from collections import Counter

import numpy as np

from ..config import BACKBONES, BOTTLENECK, Config
from ..errors import InputError
from .names import BACKBONE, scheme

BODY = re.escape(BACKBONE)


def infer_config(tensors, metadata=None, **overrides):
    """Return the Config that published-name tensors fit.

    Sizes are what most of the tensors that show them agree on, so that one wrong tensor
    is found out when the weights are loaded. What shapes do not show — heads M,
    dilation, dropout, class names, the queries of a two-stage model — comes from the
    metadata, else from the published models.

    Parameters
    ----------
    tensors : dict of str → array
        Published names.
    metadata : dict, optional
        As `read_tensors` returns it.
    **overrides
        Fields of `Config` that the caller knows better.

    Returns
    -------
    Config
        Overrides go before what shapes show, and that before the metadata.

    Raises
    ------
    InputError
        These are no weights of a Deformable DETR, or of one this package cannot build;
        the message says why.
    """
    metadata = metadata or {}
    shapes = {name: np.shape(array) for name, array in tensors.items()}
    _check_kind(shapes)
    told = _told(metadata)
    names = told.get('names') or ()
    if not isinstance(names, (list, tuple)):
        _refuse('names in the configuration', names, 'lists of names')
    known = {**Config().to_dict(), **told, **overrides}
    fields = {**told, **_sizes(shapes, known), **_backbone(shapes)}
    if len(names) != fields.get('num_classes'):
        fields.pop('names', None)  # of another model
    if 'refine' not in told:
        fields['refine'] = _has_refinement(tensors, fields)
    fields.update(overrides)
    return Config.from_dict(fields)


def _check_kind(shapes):
    if any(name.startswith('transformer.') for name in shapes):
        return
    first = ', '.join(list(shapes)[:3])
    if scheme(shapes) in ('resnet', 'published'):
        raise InputError(
            'these are the weights of a ResNet alone; load them into a model with '
            'ddetr_np.weights.load_backbone(model, path)'
        )
    raise InputError(
        "these are no weights of a Deformable DETR: expected the authors' names "
        f"(transformer.…) or transformers' (model.encoder.…), found {first}, …"
    )


# what the weights show


def _common(shapes, pattern, axis, rank):
    """The most common length of an axis among the tensors of a pattern, or None."""
    found = Counter(
        shape[axis]
        for name, shape in shapes.items()
        if len(shape) == rank and re.fullmatch(pattern, name)
    )
    return found.most_common(1)[0][0] if found else None


def _count(shapes, pattern):
    # the patterns take two digits: no name may ask for a million layers
    found = [int(m[1]) for name in shapes if (m := re.match(pattern, name))]
    return max(found) + 1 if found else 0


def _sizes(shapes, known):
    """Fields that shapes show; those of absent tensors are left out."""
    layer = r'transformer\.(?:en|de)coder\.layers\.\d+\.'
    any_head = r'(?:transformer\.decoder\.)?class_embed\.\d+\.'
    found = {
        'C': _common(shapes, layer + r'norm\d\.weight', 0, 1),
        'L': _count(shapes, r'input_proj\.(\d\d?)\.'),
        'Nq': _common(shapes, r'query_embed\.weight', 0, 2),
        'num_classes': _common(shapes, any_head + 'weight', 0, 2),
        'ffn': _common(shapes, layer + r'linear1\.weight', 0, 2),
        'decoder_layers': _count(shapes, r'transformer\.decoder\.layers\.(\d\d?)\.'),
    }
    found['L'] = found['L'] or _common(shapes, r'transformer\.level_embed', 0, 2)
    found = {name: value for name, value in found.items() if value}
    found['encoder_layers'] = _count(shapes, r'transformer\.encoder\.layers\.(\d\d?)\.')
    found['two_stage'] = any(
        name.startswith(('transformer.enc_output', 'transformer.pos_trans'))
        for name in shapes
    )
    rows = _common(shapes, layer + r'\w+_attn\.attention_weights\.weight', 0, 2)
    if rows and 'L' in found:
        M, L = known['M'], found['L']
        if type(M) is not int or M < 1 or rows % (M * L):
            raise InputError(
                f'attention_weights has {rows} = M·L·K rows, with L = {L} levels; they '
                f'are no multiple of M·L with M = {M!r}. Pass the number of heads, M='
            )
        found['K'] = rows // (M * L)
    return found


def _backbone(shapes):
    blocks = tuple(
        _count(shapes, BODY + rf'layer{stage}\.(\d\d?)\.') for stage in (1, 2, 3, 4)
    )
    bottleneck = any(
        re.fullmatch(BODY + r'layer\d\.\d+\.conv3\.weight', name) for name in shapes
    )
    for name, expected in BACKBONES.items():
        if blocks == expected and bottleneck == (name in BOTTLENECK):
            found = {'backbone': name}
            width = _common(shapes, BODY + r'bn1\.\w+', 0, 1)
            return {**found, 'width': width} if width else found
    raise InputError(
        f'the backbone has {blocks} {"bottleneck" if bottleneck else "basic"} blocks; '
        f'expected one of {", ".join(BACKBONES)}, under the names {BACKBONE}layer1.0.…'
    )


def _has_refinement(tensors, fields):
    # the published files with refinement show the box heads to the decoder, too
    if any(name.startswith('transformer.decoder.bbox_embed.') for name in tensors):
        return True
    last = 'bbox_embed.{}.layers.2.bias'
    first = tensors.get(last.format(0))
    others = [
        tensors[last.format(i)]
        for i in range(1, fields.get('decoder_layers', 0))
        if last.format(i) in tensors
    ]
    return any(not np.array_equal(first, other) for other in others)


# what is told beside them


def _told(metadata):
    if 'config' in metadata:
        return dict(metadata['config'])
    if 'transformers' in metadata:
        return from_transformers(metadata['transformers'])
    if 'args' in metadata:
        return from_args(metadata['args'])
    return {}


def _refuse(what, value, expected):
    raise InputError(f'{what} is {value!r}; this package builds {expected} only')


def _take(source, names):
    """Fields under other names, where they are given."""
    return {
        field: source[name]
        for name, field in names.items()
        if source.get(name) is not None
    }


def from_args(args):
    """Return Config fields from the `args` of the authors' training script.

    Parameters
    ----------
    args : dict
        The script's options by name, 'nheads', 'num_queries' and others.

    Returns
    -------
    dict
        M, Nq, dilation, dropout and refine, those that are given.

    Raises
    ------
    InputError
        They describe a model this package cannot build.
    """
    if args.get('position_embedding') not in (None, 'sine', 'v2'):
        _refuse('args.position_embedding', args['position_embedding'], "'sine'")
    points = [args.get('enc_n_points'), args.get('dec_n_points')]
    if None not in points and points[0] != points[1]:
        _refuse('args.enc_n_points, args.dec_n_points', points, 'models with one K')
    names = {
        'nheads': 'M',
        'num_queries': 'Nq',
        'dilation': 'dilation',
        'dropout': 'dropout',
        'with_box_refine': 'refine',
    }
    return _take(args, names)


def from_transformers(config):
    """Return Config fields from a config.json of transformers' Deformable DETR.

    Parameters
    ----------
    config : dict
        The file's content.

    Returns
    -------
    dict
        dilation, and of M, Nq, dropout, refine and names those that are given.

    Raises
    ------
    InputError
        It describes another model, or one this package cannot build.
    """
    kind = config.get('model_type', 'deformable_detr')
    if kind != 'deformable_detr':
        _refuse('model_type in config.json', kind, "'deformable_detr'")
    only = {'activation_function': 'relu', 'position_embedding_type': 'sine'}
    for name, expected in only.items():
        if config.get(name, expected) != expected:
            _refuse(f'{name} in config.json', config[name], repr(expected))
    for what in 'n_points', 'attention_heads', 'ffn_dim':
        pair = [config.get(f'{side}_{what}') for side in ('encoder', 'decoder')]
        if None not in pair and pair[0] != pair[1]:
            _refuse(
                f'encoder_{what}, decoder_{what} in config.json',
                pair,
                'models with the same number in both',
            )
    names = {
        'encoder_attention_heads': 'M',
        'dropout': 'dropout',
        'with_box_refine': 'refine',
    }
    fields = _take(config, names)
    queries = 'two_stage_num_proposals' if config.get('two_stage') else 'num_queries'
    fields |= _take(config, {queries: 'Nq'})
    fields['dilation'] = _dilation(config)
    labels = _labels(config.get('id2label'))
    return {**fields, 'names': labels} if labels else fields


def _dilation(config):
    """DC5 or not; refuse backbones other than a plain ResNet."""
    backbone = config.get('backbone_config') or {}
    if not isinstance(backbone, dict):
        _refuse('backbone_config in config.json', backbone, 'an object')
    kind = backbone.get('model_type', 'timm_backbone')
    if kind == 'timm_backbone':
        name = backbone.get('backbone') or config.get('backbone') or 'resnet50'
        if str(name).partition('.')[0] not in BACKBONES:
            _refuse('backbone in config.json', name, ', '.join(BACKBONES))
        stride = backbone.get('output_stride')
        if stride not in (None, 16, 32):
            _refuse('output_stride in config.json', stride, '32, or 16 for DC5')
        return bool(config.get('dilation')) or stride == 16
    if kind != 'resnet':
        _refuse('the backbone in config.json', kind, 'ResNets')
    if backbone.get('hidden_act', 'relu') != 'relu':
        _refuse('hidden_act in config.json', backbone['hidden_act'], "'relu'")
    for name in 'downsample_in_first_stage', 'downsample_in_bottleneck':
        if backbone.get(name):
            _refuse(f'{name} in config.json', True, 'ResNets without it')
    basic = backbone.get('layer_type', 'bottleneck') == 'basic'
    width = backbone.get('embedding_size', 64)
    if type(width) is not int:
        _refuse('embedding_size in config.json', width, 'whole numbers')
    expected = [width * (1 if basic else 4) * factor for factor in (1, 2, 4, 8)]
    sizes = backbone.get('hidden_sizes', [256, 512, 1024, 2048])
    if sizes != expected:
        _refuse('hidden_sizes in config.json', sizes, f'{expected} for its stem')
    return False  # transformers' own ResNet has no dilated form


def _labels(id2label):
    """Class names by id, or None for none and for transformers' placeholders."""
    if not isinstance(id2label, dict) or not id2label:
        return None
    try:
        named = {int(i): str(name) for i, name in id2label.items()}
    except ValueError:
        return None
    if min(named) < 0 or max(named) >= 10_000:
        return None
    if all(name == f'LABEL_{i}' for i, name in named.items()):
        return None
    return [named.get(i, 'N/A') for i in range(max(named) + 1)]
