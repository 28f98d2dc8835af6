"""The configuration read off weights and what stands beside them."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddetr_np import build_model
from ddetr_np.config import VARIANTS, Config
from ddetr_np.errors import InputError
from ddetr_np.weights.infer import from_args, from_transformers, infer_config

TOY = {
    'num_classes': 7,
    'backbone': 'resnet18',
    'width': 4,
    'C': 32,
    'M': 4,
    'L': 3,
    'K': 2,
    'Nq': 9,
    'encoder_layers': 1,
    'decoder_layers': 3,
    'ffn': 24,
}


@pytest.fixture(scope='module')
def official():
    golden = Path(__file__).resolve().parents[1] / 'golden'
    shapes = json.loads((golden / 'official_state_dicts.json').read_text())
    zero = np.float32(0)  # a view of one number: full size without the memory
    return {
        variant: {name: np.broadcast_to(zero, shape) for name, shape in those.items()}
        for variant, those in shapes.items()
    }


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_published_state_dicts(official, variant):
    overrides = {'dilation': True} if variant == 'single_scale_dc5' else {}
    assert infer_config(official[variant], **overrides) == VARIANTS[variant]


def test_dc5_from_what_stands_beside(official):
    tensors = official['single_scale_dc5']
    for metadata in (
        {'args': {'dilation': True}},
        {'transformers': {'dilation': True, 'num_feature_levels': 1}},
        {'transformers': {'backbone_config': {'output_stride': 16}}},
    ):
        assert infer_config(tensors, metadata) == VARIANTS['single_scale_dc5']
    assert infer_config(tensors) == VARIANTS['single_scale']


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('backbone', ['resnet18', 'resnet34', 'resnet50', 'resnet101'])
def test_toy_sizes(variant, backbone):
    fields = TOY | {'backbone': backbone}
    if variant.startswith('single_scale'):
        fields['L'] = 1
    if variant == 'single_scale_dc5':
        if backbone in ('resnet18', 'resnet34'):
            return
        fields['dilation'] = True
    model = build_model(variant, **fields)
    tensors = model.state_dict()
    own = {'config': model.config.to_dict()}
    assert infer_config(tensors, own) == model.config
    # without it, only M, the dilation and the queries of two stages must be told
    told = {name: fields[name] for name in ('M', 'Nq', 'dilation') if name in fields}
    assert infer_config(tensors, **told) == model.config


def test_refinement_without_the_decoder_s_aliases():
    for variant in 'multi_scale', 'refine':
        model = build_model(variant, **TOY)
        tensors = {
            name: array
            for name, array in model.state_dict().items()
            if not name.startswith('transformer.decoder.bbox_embed')
        }
        tensors['bbox_embed.1.layers.2.bias'] = (
            tensors['bbox_embed.1.layers.2.bias'] + model.config.refine
        )
        assert infer_config(tensors, M=4).refine == model.config.refine


def test_two_stage_without_refinement_comes_back():
    model = build_model('two_stage', **(TOY | {'refine': False}))
    told = {'config': model.config.to_dict()}
    assert infer_config(model.state_dict(), told) == model.config


def test_one_wrong_tensor_does_not_mislead(official):
    tensors = dict(official['refine'])
    tensors['class_embed.0.weight'] = np.zeros((5, 256))
    tensors['transformer.encoder.layers.0.norm1.weight'] = np.zeros(5)
    tensors['transformer.decoder.layers.0.linear1.weight'] = np.zeros((5, 256))
    del tensors['transformer.level_embed'], tensors['backbone.0.body.bn1.bias']
    assert infer_config(tensors) == VARIANTS['refine']


def test_the_authors_args(official):
    args = {
        'nheads': 4,
        'num_queries': 77,
        'dropout': 0.0,
        'with_box_refine': True,
        'two_stage': True,
        'enc_n_points': 8,
        'dec_n_points': 8,
        'position_embedding': 'sine',
        'lr': 1e-4,
    }
    config = infer_config(official['two_stage'], {'args': args})
    expected = VARIANTS['two_stage'].replace(M=4, K=8, Nq=77, dropout=0.0)
    assert config == expected
    for wrong in {'dec_n_points': 4}, {'position_embedding': 'learned'}:
        with pytest.raises(InputError, match=f'args.*{next(iter(wrong))}'):
            from_args(args | wrong)


HF = {
    'model_type': 'deformable_detr',
    'activation_function': 'relu',
    'backbone': 'resnet50',
    'use_timm_backbone': True,
    'backbone_config': None,
    'd_model': 256,
    'dilation': False,
    'dropout': 0.2,
    'encoder_attention_heads': 8,
    'decoder_attention_heads': 8,
    'encoder_n_points': 4,
    'decoder_n_points': 4,
    'encoder_ffn_dim': 1024,
    'decoder_ffn_dim': 1024,
    'num_queries': 300,
    'position_embedding_type': 'sine',
    'two_stage': False,
    'with_box_refine': False,
}
RESNET = {
    'model_type': 'resnet',
    'embedding_size': 64,
    'hidden_sizes': [256, 512, 1024, 2048],
    'layer_type': 'bottleneck',
    'hidden_act': 'relu',
    'downsample_in_first_stage': False,
    'downsample_in_bottleneck': False,
}


def test_config_json(official):
    labels = {str(i): f'class {i}' for i in range(91) if i != 12}
    fields = from_transformers(HF | {'id2label': labels})
    assert fields['names'][11:14] == ['class 11', 'N/A', 'class 13']
    metadata = {'transformers': HF | {'id2label': labels}}
    config = infer_config(official['multi_scale'], metadata)
    assert config == Config(dropout=0.2, names=fields['names'])
    # labels of another model, and transformers' placeholders, are no names
    for labels in {'0': 'a', '1': 'b'}, {str(i): f'LABEL_{i}' for i in range(91)}:
        metadata = {'transformers': HF | {'id2label': labels}}
        assert infer_config(official['multi_scale'], metadata).names is None
    two = HF | {'two_stage': True, 'two_stage_num_proposals': 50, 'num_queries': 9}
    assert from_transformers(two)['Nq'] == 50


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'model_type': 'detr'}, "model_type in config.json is 'detr'"),
        ({'activation_function': 'gelu'}, "is 'gelu'; this package builds 'relu' only"),
        ({'position_embedding_type': 'learned'}, "'learned'"),
        ({'decoder_n_points': 8}, r'decoder_n_points in config.json is \[4, 8\]'),
        ({'decoder_attention_heads': 4}, r'attention_heads in config.json is \[8, 4\]'),
        ({'decoder_ffn_dim': 4}, r'decoder_ffn_dim in config.json is \[1024, 4\]'),
        ({'backbone': 'swin_tiny'}, "'swin_tiny'; this package builds resnet18"),
        ({'backbone_config': {'backbone': 'resnet50d'}}, "'resnet50d'"),
        ({'backbone_config': {'output_stride': 8}}, 'output_stride'),
        ({'backbone_config': {'model_type': 'swin'}}, "'swin'"),
        ({'backbone_config': RESNET | {'hidden_act': 'gelu'}}, 'hidden_act'),
        ({'backbone_config': RESNET | {'downsample_in_bottleneck': 1}}, 'downsample'),
        ({'backbone_config': RESNET | {'embedding_size': 32}}, r'\[128, 256, 512'),
        ({'backbone_config': 'resnet'}, 'an object'),
    ],
)
def test_models_of_transformers_that_cannot_be_built(change, reason):
    with pytest.raises(InputError, match=reason):
        from_transformers(HF | change)


@pytest.mark.parametrize('basic', [False, True])
def test_transformers_own_resnet(basic):
    backbone = dict(RESNET)
    if basic:
        backbone |= {'layer_type': 'basic', 'hidden_sizes': [64, 128, 256, 512]}
    # its ResNet has no dilated form: transformers passes over the setting
    fields = from_transformers(HF | {'dilation': True, 'backbone_config': backbone})
    assert fields['dilation'] is False


def test_what_is_no_deformable_detr(official):
    with pytest.raises(InputError, match='load_backbone'):
        infer_config({'backbone.0.body.conv1.weight': np.zeros(1)})
    with pytest.raises(InputError, match='no weights of a Deformable DETR.*found x, y'):
        infer_config({'x': np.zeros(1), 'y': np.zeros(1)})
    tensors = {n: a for n, a in official['refine'].items() if 'layer3.5' not in n}
    with pytest.raises(InputError, match=r'\(3, 4, 5, 3\) bottleneck blocks'):
        infer_config(tensors)


def test_the_number_of_heads_must_divide(official):
    with pytest.raises(InputError, match='Pass the number of heads, M='):
        infer_config(official['multi_scale'], M=24)
    with pytest.raises(InputError, match='Nqq.*Nq'):
        infer_config(official['multi_scale'], Nqq=24)


@pytest.mark.parametrize('kind', ['config', 'args', 'transformers', 'backbone'])
def test_junk_beside_the_weights(official, kind):
    """Any value in any place: a Config or an InputError."""
    tensors = official['multi_scale']
    args = {'nheads': 8, 'num_queries': 300, 'dilation': False, 'dropout': 0.1}
    args |= {'with_box_refine': False, 'enc_n_points': 4, 'dec_n_points': 4}
    args |= {'position_embedding': 'sine'}
    sound = {
        'config': Config(names=('a',) * 91).to_dict(),
        'args': args,
        'transformers': HF | {'id2label': {'0': 'a'}},
        'backbone': RESNET,
    }[kind]
    refused = 0
    for name in sound:
        for junk in None, 'x', [1], {'a': 1}, {}, -1, 0, 1.5, True, 10**30, '':
            fields = sound | {name: junk}
            metadata = {kind: fields}
            if kind == 'backbone':
                metadata = {'transformers': HF | {'backbone_config': fields}}
            try:
                infer_config(tensors, metadata)
            except InputError:
                refused += 1
    assert refused


def test_names_that_ask_for_endless_layers(official):
    tensors = dict(official['refine'])
    part = 'transformer.{}coder.layers'
    for stem in part.format('de'), part.format('en'), 'input_proj':
        tensors[f'{stem}.{"9" * 5000}.norm1.weight'] = np.zeros(256)
    assert infer_config(tensors) == VARIANTS['refine']
