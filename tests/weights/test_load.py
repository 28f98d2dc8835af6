"""Whole models from files, and into files."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ddetr_np
from ddetr_np.config import VARIANTS
from ddetr_np.errors import InputError
from ddetr_np.weights import convert, load_backbone, read_tensors, write_tensors

TOY = {
    'num_classes': 3,
    'width': 4,
    'C': 16,
    'M': 4,
    'K': 2,
    'Nq': 5,
    'encoder_layers': 1,
    'decoder_layers': 2,
    'ffn': 8,
    'dropout': 0.25,
    'names': ('cat', 'dog', 'bird'),
}


def toy(variant='two_stage', seed=3, **fields):
    return ddetr_np.build_model(variant, seed=seed, **(TOY | fields))


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert_array_equal(a[name], b[name], strict=True)


@pytest.mark.parametrize('suffix', ['.safetensors', '.npz', '.pth'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_saved_model_comes_back(tmp_path, variant, suffix):
    model = toy(variant, initial_wh=0.1, init='released')
    path = tmp_path / f'a{suffix}'
    ddetr_np.save_model(model, path)
    again = ddetr_np.load_model(path)
    assert again.config == model.config
    same(again, model)


def test_dtype_and_overrides(tmp_path):
    model = toy(dtype='float64')
    ddetr_np.save_model(model, tmp_path / 'a.npz')
    again = ddetr_np.load_model(tmp_path / 'a.npz', dtype='float64', dropout=0.5)
    assert again.config == model.config.replace(dropout=0.5)
    same(again, model)
    single = ddetr_np.load_model(str(tmp_path / 'a.npz'))
    assert all(a.dtype == np.float32 for a in single.state_dict().values())
    with pytest.raises(InputError, match="choose 'float32' or 'float64'"):
        ddetr_np.load_model(tmp_path / 'a.npz', dtype='float16')
    with pytest.raises(InputError, match='dropuot'):
        ddetr_np.load_model(tmp_path / 'a.npz', dropuot=0.5)


def test_every_misfit_is_listed_with_the_file(tmp_path):
    tensors = dict(toy().state_dict())
    norm = 'transformer.encoder.layers.0.norm1.weight'
    tensors['transformer.encoder.layers.0.norms1.weight'] = tensors.pop(norm)
    tensors['transformer.enc_output.bias'] = np.zeros(9, 'float32')
    del tensors['input_proj.2.0.bias']
    write_tensors(tmp_path / 'a.npz', tensors, {'config': toy().config.to_dict()})
    with pytest.raises(InputError) as caught:
        ddetr_np.load_model(tmp_path / 'a.npz')
    message = str(caught.value)
    assert message.startswith(str(tmp_path / 'a.npz'))
    for line in (
        f'missing: {norm} (near: transformer.encoder.layers.0.norms1.weight)',
        'missing: input_proj.2.0.bias',
        'unexpected: transformer.encoder.layers.0.norms1.weight',
        'wrong shape: transformer.enc_output.bias is (9,), the model has (16,)',
    ):
        assert line in message


def test_not_finite_weights_are_listed(tmp_path):
    tensors = {name: a.copy() for name, a in toy().state_dict().items()}
    tensors['class_embed.0.bias'][1] = np.nan
    tensors['transformer.level_embed'][0, 0] = -np.inf
    write_tensors(tmp_path / 'a.pth', tensors)
    with pytest.raises(InputError) as caught:
        ddetr_np.load_model(tmp_path / 'a.pth', M=4, Nq=5)
    message = str(caught.value)
    assert 'NaNs or infinities: 2 of' in message
    assert '  class_embed.0.bias\n' in message + '\n'
    assert '  transformer.level_embed\n' in message + '\n'


def to_transformers(tensors):
    """Names of transformers' 4.x with a timm backbone, written down once more here."""
    result = {}
    for name, a in tensors.items():
        if name.startswith('backbone.0.body.'):
            new = name.replace('backbone.0.body.', 'backbone.conv_encoder.model.')
        else:
            new = name.replace('transformer.', '')
            new = new.replace('query_embed.', 'query_position_embeddings.')
            new = new.replace('cross_attn.', 'encoder_attn.')
            new = new.replace('.linear1.', '.fc1.').replace('.linear2.', '.fc2.')
            if new.startswith('encoder.'):
                new = new.replace('.norm1.', '.self_attn_layer_norm.')
                new = new.replace('.norm2.', '.final_layer_norm.')
            else:
                new = new.replace('.norm1.', '.encoder_attn_layer_norm.')
                new = new.replace('.norm2.', '.self_attn_layer_norm.')
                new = new.replace('.norm3.', '.final_layer_norm.')
        if not new.startswith(('class_embed.', 'bbox_embed.')):
            new = 'model.' + new
        if '.in_proj_' in new:
            stem, kind = new.split('in_proj_')
            for part, rows in zip('qkv', np.split(a, 3)):
                result[f'{stem}{part}_proj.{kind}'] = rows.copy()
        else:
            result[new] = a
    return result


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_folder_with_transformers_names(tmp_path, variant):
    model = toy(variant)
    config = model.config
    (tmp_path / 'config.json').write_text(
        json.dumps(
            {
                'model_type': 'deformable_detr',
                'encoder_attention_heads': 4,
                'decoder_attention_heads': 4,
                'dilation': config.dilation,
                'dropout': 0.25,
                'num_queries': 5,
                'two_stage_num_proposals': 5,
                'two_stage': config.two_stage,
                'with_box_refine': config.refine,
                'id2label': {'0': 'cat', '1': 'dog', '2': 'bird'},
            }
        )
    )
    tensors = to_transformers(model.state_dict())
    tensors['model.backbone.conv_encoder.model.bn1.num_batches_tracked'] = np.array(7)
    write_tensors(tmp_path / 'model.safetensors', tensors)
    again = ddetr_np.load_model(tmp_path)
    assert again.config == config
    same(again, model)


# converting


def test_convert(tmp_path, Builder, rng):
    model = toy('refine')
    tensors = {n: a.astype('float16') for n, a in model.state_dict().items()}
    for name in list(tensors):
        if name.startswith('transformer.decoder.bbox_embed.'):
            del tensors[name]  # aliases, which come back
    builder, names = Builder(legacy=True), list(TOY['names'])
    root = {
        'model': {n: builder.tensor(n, a) for n, a in tensors.items()},
        'config': {'M': 4, 'dropout': 0.25, 'refine': True, 'names': names},
    }
    builder.write(tmp_path / 'a.pth', root)
    config = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    assert config == model.config
    convert(tmp_path / 'b.safetensors', tmp_path / 'c.npz')
    convert(tmp_path / 'c.npz', tmp_path / 'd.pth')
    for name in 'b.safetensors', 'c.npz', 'd.pth':
        found, metadata = read_tensors(tmp_path / name)
        assert ddetr_np.Config.from_dict(metadata['config']) == config
        assert set(found) == set(model.state_dict())
        for key, array in tensors.items():
            assert_array_equal(found[key], array, strict=True)


def test_convert_refuses_before_it_writes(tmp_path):
    tensors = dict(toy().state_dict())
    del tensors['input_proj.2.0.bias']
    write_tensors(tmp_path / 'a.npz', tensors, {'config': toy().config.to_dict()})
    with pytest.raises(InputError, match='missing: input_proj'):
        convert(tmp_path / 'a.npz', tmp_path / 'b.pth')
    with pytest.raises(InputError, match='should end in one of'):
        convert(tmp_path / 'absent.npz', tmp_path / 'b.onnx')
    assert [f.name for f in tmp_path.iterdir()] == ['a.npz']


# backbones


@pytest.mark.parametrize('backbone', ['resnet18', 'resnet50'])
def test_load_backbone(tmp_path, backbone):
    prefix = 'backbone.0.body.'
    source = toy(backbone=backbone, seed=1)
    body = {
        n.removeprefix(prefix): a
        for n, a in source.state_dict().items()
        if n.startswith(prefix)
    }
    body |= {'fc.weight': np.zeros((10, 8)), 'bn1.num_batches_tracked': np.array(3)}
    write_tensors(tmp_path / 'resnet.pth', body)
    model = toy(backbone=backbone, seed=2)
    before = model.state_dict()
    assert load_backbone(model, tmp_path / 'resnet.pth') is model
    after = model.state_dict()
    for name, array in after.items():
        expected = source.state_dict() if name.startswith(prefix) else before
        assert_array_equal(array, expected[name])
    del body['layer3.0.conv1.weight']
    body['layer3.0.conv2.weight'] = np.zeros((3, 3, 3, 3))
    write_tensors(tmp_path / 'torn.pth', body)
    with pytest.raises(InputError) as caught:
        load_backbone(model, tmp_path / 'torn.pth')
    assert f'missing: {prefix}layer3.0.conv1.weight' in str(caught.value)
    assert f'wrong shape: {prefix}layer3.0.conv2.weight' in str(caught.value)
    for name, array in model.state_dict().items():
        assert_array_equal(array, after[name])


def test_load_backbone_from_a_detector_and_from_none(tmp_path):
    source, model = toy('refine', seed=1), toy('multi_scale', seed=2)
    ddetr_np.save_model(source, tmp_path / 'a.npz')
    load_backbone(model, tmp_path / 'a.npz')
    name = 'backbone.0.body.layer4.2.conv3.weight'
    assert_array_equal(model.state_dict()[name], source.state_dict()[name])
    write_tensors(tmp_path / 'b.npz', {'x': np.zeros(3)})
    with pytest.raises(InputError, match='holds no ResNet'):
        load_backbone(model, tmp_path / 'b.npz')
    write_tensors(tmp_path / 'c.npz', {'conv1.weight': np.zeros(3)})
    with pytest.raises(InputError, match='holds no ResNet'):
        load_backbone(model, tmp_path / 'c.npz')


def test_a_resnet_is_no_detector(tmp_path):
    names = 'conv1.weight', 'layer1.0.conv1.weight'
    write_tensors(tmp_path / 'a.npz', {name: np.zeros(3) for name in names})
    with pytest.raises(InputError, match='load_backbone'):
        ddetr_np.load_model(tmp_path / 'a.npz')


@pytest.mark.parametrize('suffix', ['.safetensors', '.npz', '.pth'])
def test_half_precision_writes_what_has_two_names_once(tmp_path, suffix):
    model = toy()
    whole, small = tmp_path / f'whole{suffix}', tmp_path / f'small{suffix}'
    ddetr_np.save_model(model, whole)
    convert(whole, small, half=True)
    assert small.stat().st_size < 0.7 * whole.stat().st_size
    tensors, _ = read_tensors(small)
    assert sum('class_embed.0.weight' in name for name in tensors) == 1
    back, expected = ddetr_np.load_model(small), model.state_dict()
    assert list(back.state_dict()) == list(expected)
    for name, a in back.state_dict().items():
        kept = expected[name]
        kept = kept.astype(np.float16) if kept.ndim > 1 else kept
        assert_array_equal(a, kept, name)
    # still one array under both names
    heads = back.class_embed, back.transformer.decoder.class_embed
    assert heads[0][0].weight is heads[1][0].weight
