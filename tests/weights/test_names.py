"""Other names to the published ones."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddetr_np.errors import InputError
from ddetr_np.weights.names import fill_tied_heads, scheme, to_published

PAIRS = """
model.level_embed                                       transformer.level_embed
model.reference_points.bias                             transformer.reference_points.bias
model.query_position_embeddings.weight                  query_embed.weight
model.input_proj.3.0.weight                             input_proj.3.0.weight
model.input_proj.3.1.bias                               input_proj.3.1.bias
model.enc_output.weight                                 transformer.enc_output.weight
model.enc_output_norm.bias                              transformer.enc_output_norm.bias
model.pos_trans.weight                                  transformer.pos_trans.weight
model.pos_trans_norm.weight                             transformer.pos_trans_norm.weight
class_embed.6.bias                                      class_embed.6.bias
bbox_embed.0.layers.2.weight                            bbox_embed.0.layers.2.weight
model.decoder.bbox_embed.1.layers.0.bias   transformer.decoder.bbox_embed.1.layers.0.bias
model.decoder.class_embed.1.weight         transformer.decoder.class_embed.1.weight
model.encoder.layers.5.self_attn_layer_norm.weight      transformer.encoder.layers.5.norm1.weight
model.encoder.layers.5.final_layer_norm.bias            transformer.encoder.layers.5.norm2.bias
model.encoder.layers.5.fc1.weight                       transformer.encoder.layers.5.linear1.weight
model.encoder.layers.5.mlp.fc2.bias                     transformer.encoder.layers.5.linear2.bias
model.encoder.layers.5.self_attn.sampling_offsets.bias  transformer.encoder.layers.5.self_attn.sampling_offsets.bias
model.decoder.layers.10.encoder_attn_layer_norm.bias    transformer.decoder.layers.10.norm1.bias
model.decoder.layers.10.self_attn_layer_norm.bias       transformer.decoder.layers.10.norm2.bias
model.decoder.layers.10.final_layer_norm.bias           transformer.decoder.layers.10.norm3.bias
model.decoder.layers.10.encoder_attn.output_proj.bias   transformer.decoder.layers.10.cross_attn.output_proj.bias
model.decoder.layers.10.self_attn.out_proj.weight       transformer.decoder.layers.10.self_attn.out_proj.weight
model.decoder.layers.11.self_attn.o_proj.weight         transformer.decoder.layers.11.self_attn.out_proj.weight
model.backbone.conv_encoder.model.conv1.weight          backbone.0.body.conv1.weight
model.backbone.conv_encoder.model._backbone.bn1.bias    backbone.0.body.bn1.bias
model.backbone.model.layer4.2.conv3.weight              backbone.0.body.layer4.2.conv3.weight
model.backbone.model._backbone.layer1.0.downsample.1.running_mean backbone.0.body.layer1.0.downsample.1.running_mean
model.backbone.conv_encoder.model.embedder.embedder.convolution.weight backbone.0.body.conv1.weight
model.backbone.conv_encoder.model.embedder.embedder.normalization.running_var backbone.0.body.bn1.running_var
model.backbone.conv_encoder.model.encoder.stages.0.layers.0.shortcut.convolution.weight backbone.0.body.layer1.0.downsample.0.weight
model.backbone.conv_encoder.model.encoder.stages.3.layers.0.shortcut.normalization.bias backbone.0.body.layer4.0.downsample.1.bias
model.backbone.conv_encoder.model.encoder.stages.2.layers.22.layer.0.convolution.weight backbone.0.body.layer3.22.conv1.weight
model.backbone.model.encoder.stages.2.layers.22.layer.2.normalization.weight backbone.0.body.layer3.22.bn3.weight
"""  # noqa: E501
PAIRS = [tuple(line.split()) for line in PAIRS.strip().splitlines()]


@pytest.mark.parametrize(('theirs', 'published'), PAIRS)
def test_transformers_names(theirs, published):
    array = np.zeros(1)
    # what says that these are transformers' names
    tensors = {'model.encoder.layers.9.fc1.bias': array, theirs: array}
    assert list(to_published(tensors))[1] == published


def test_projections_are_stacked_in_order(rng):
    prefix = 'model.decoder.layers.3.self_attn.'
    parts = {p: rng.standard_normal((4, 4)) for p in 'kqv'}
    bias = {p: rng.standard_normal(4) for p in 'kqv'}
    tensors = {f'{prefix}{p}_proj.weight': parts[p] for p in 'kqv'}
    tensors |= {f'{prefix}{p}_proj.bias': bias[p] for p in 'kqv'}
    found = to_published(tensors)
    target = 'transformer.decoder.layers.3.self_attn.in_proj_'
    assert set(found) == {target + 'weight', target + 'bias'}
    assert_array_equal(found[target + 'weight'][:4], parts['q'])
    assert_array_equal(found[target + 'weight'][4:8], parts['k'])
    assert_array_equal(found[target + 'weight'][8:], parts['v'])
    assert_array_equal(found[target + 'bias'], np.r_[bias['q'], bias['k'], bias['v']])


def test_an_incomplete_projection_stays_to_be_reported():
    tensors = {
        'model.decoder.layers.0.self_attn.q_proj.bias': np.zeros(2),
        'model.decoder.layers.0.self_attn.k_proj.bias': np.zeros(2),
    }
    assert set(to_published(tensors)) == {
        'transformer.decoder.layers.0.self_attn.q_proj.bias',
        'transformer.decoder.layers.0.self_attn.k_proj.bias',
    }


TORCHVISION = 'conv1.weight layer1.0.conv1.weight bn1.num_batches_tracked fc.bias'
TRANSFORMERS = (
    'resnet.embedder.embedder.convolution.weight '
    'resnet.encoder.stages.0.layers.0.layer.0.convolution.weight classifier.1.weight'
)


@pytest.mark.parametrize('names', [TORCHVISION, TRANSFORMERS])
def test_a_resnet_alone(names):
    tensors = {name: np.zeros(1) for name in names.split()}
    assert scheme(tensors) == 'resnet'
    assert list(to_published(tensors)) == [
        'backbone.0.body.conv1.weight',
        'backbone.0.body.layer1.0.conv1.weight',
    ]


def test_published_names_stay():
    names = ['transformer.level_embed', 'class_embed.0.bias', 'input_proj.0.0.bias']
    tensors = {name: np.zeros(1) for name in [*names, 'x.num_batches_tracked']}
    assert list(to_published(tensors)) == names


def test_two_tensors_of_one_name():
    prefix = 'model.decoder.layers.0.self_attn.o'
    tensors = {f'{prefix}ut_proj.bias': np.zeros(1), f'{prefix}_proj.bias': np.zeros(1)}
    with pytest.raises(InputError, match='both stand for transformer.decoder.layers.0'):
        to_published(tensors)


def test_tied_heads_are_filled_but_lost_ones_are_not():
    array = np.zeros(1)
    tensors = {f'transformer.decoder.layers.{i}.norm1.bias': array for i in range(3)}
    tensors |= {'class_embed.0.bias': np.ones(1)}
    box = 'transformer.decoder.bbox_embed.{}.layers.0.bias'
    tensors |= {box.format(i): array for i in (0, 2)}
    found = fill_tied_heads(tensors)
    assert set(found) - set(tensors) == {'class_embed.1.bias', 'class_embed.2.bias'}
    assert_array_equal(found['class_embed.2.bias'], [1])
