"""The first tensor that is not finite is named, and nothing else is."""

import warnings

import numpy as np
import pytest

import ddetr_np
from ddetr_np.errors import NotFiniteError
from ddetr_np.testing_model import random_batch, randomise


@pytest.fixture(params=['multi_scale', 'two_stage'])
def model(request, tiny):
    model = ddetr_np.build_model(request.param, dtype='float32', **tiny, seed=0)
    return randomise(model)


def params(model):
    return dict(model.named_params(aliases=True))


def blame(model, keep='all', train=False, where=None, poison=np.nan):
    """Poison a weight or the pictures; return what the criterion says."""
    images, mask, targets = random_batch(4)
    if where is None:
        images[1, 3, 4, 0] = poison
    else:
        params(model)[where].data.flat[0] = poison
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out, cache = model.forward(images, mask, train=train, keep=keep)
    with pytest.raises(NotFiniteError) as error:
        ddetr_np.Criterion(model.config)(out, targets, cache=cache)
    return str(error.value)


DEPTHS = [
    'backbone.0.body.conv1.weight',
    'backbone.0.body.bn1.running_var',
    'backbone.0.body.layer1.0.conv2.weight',
    'backbone.0.body.layer3.2.bn3.bias',
    'backbone.0.body.layer4.0.downsample.0.weight',
    'input_proj.1.0.weight',
    'input_proj.0.1.bias',
    'transformer.level_embed',
    'transformer.encoder.layers.0.self_attn.sampling_offsets.bias',
    'transformer.encoder.layers.1.linear2.weight',
    'transformer.decoder.layers.0.self_attn.in_proj_weight',
    'transformer.decoder.layers.1.norm3.weight',
    'transformer.decoder.layers.2.cross_attn.value_proj.bias',
]


@pytest.mark.parametrize('name', DEPTHS)
def test_a_weight(model, name):
    message = blame(model, where=name)
    assert f'it begins here: the weight {name} is not finite' in message


@pytest.mark.parametrize(
    ('variant', 'name'),
    [
        ('multi_scale', 'transformer.reference_points.weight'),
        ('multi_scale', 'query_embed.weight'),
        ('multi_scale', 'class_embed.0.bias'),
        ('multi_scale', 'bbox_embed.0.layers.1.weight'),
        ('two_stage', 'transformer.enc_output.weight'),
        ('two_stage', 'transformer.pos_trans_norm.bias'),
        ('two_stage', 'transformer.decoder.class_embed.3.weight'),
        ('refine', 'transformer.decoder.bbox_embed.1.layers.2.bias'),
    ],
)
def test_a_weight_that_only_some_variants_have(tiny, variant, name):
    model = randomise(ddetr_np.build_model(variant, **tiny))
    assert f'the weight {name} is not finite' in blame(model, where=name)


@pytest.mark.parametrize('keep', ['all', 'inputs', 'none'])
@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
def test_a_picture(model, keep, poison):
    message = blame(model, keep, poison=poison)
    assert 'the pictures are not finite, picture 1 of the batch' in message
    assert 'decoder layer 0' in message or 'first stage' in message


@pytest.mark.parametrize(
    'name',
    [
        'backbone.0.body.conv1.weight',
        'backbone.0.body.layer2.1.conv1.weight',
        'transformer.encoder.layers.1.linear1.weight',
    ],
)
def test_an_overflow_of_finite_weights(model, name):
    """The layer is named, its weights are not accused."""
    params(model)[name].data[...] = 3e38
    images, mask, _ = random_batch(4)
    with np.errstate(all='ignore'):
        found = ddetr_np.first_not_finite(model, images, mask)
    layer = name.rpartition('.')[0]
    assert found.tensor == 'output'
    assert layer.startswith(found.layer)
    assert len(found.layer.split('.')) >= 4
    assert f'the output of {found.layer} is not finite, picture 0' in str(found)


def test_learning_norms_in_training(tiny):
    model = ddetr_np.build_model('multi_scale', **tiny, frozen_norm=False, freeze_at=0)
    randomise(model)
    name = 'backbone.0.body.layer2.0.bn2.weight'
    params(model)[name].data[0] = np.nan
    before = {n: p.data.copy() for n, p in model.named_params()}
    images, mask, _ = random_batch(4)
    found = ddetr_np.first_not_finite(model, images, mask, train=True)
    assert found == (name, name.rpartition('.')[0], None)
    for n, p in model.named_params():
        np.testing.assert_array_equal(p.data, before[n], err_msg=n)
        assert not vars(model).get('forward')


def test_what_is_finite_is_not_accused(model):
    """The proposals of padded tokens are +∞ by design."""
    images, mask, targets = random_batch(4)
    assert mask.any()
    assert ddetr_np.first_not_finite(model, images, mask) is None
    assert ddetr_np.first_not_finite(model, images) is None
    out, cache = model.forward(images, mask)
    assert cache.first_not_finite() is None
    out.logits[0, 1, 2, 3] = np.nan  # a caller's doing
    with pytest.raises(NotFiniteError, match='run again, is finite'):
        ddetr_np.Criterion(model.config)(out, targets, cache=cache)


def test_without_the_cache_the_way_to_know_more_is_named(model):
    images, mask, targets = random_batch(4)
    out, _ = model.forward(images, mask)
    out.logits[2, 1, 2, 3] = np.nan
    expected = r'logits of decoder layer 2, picture 1, are not finite.*cache=cache'
    with pytest.raises(NotFiniteError, match=expected):
        ddetr_np.Criterion(model.config)(out, targets)


def test_the_model_stays_as_it_was(model):
    images, mask, _ = random_batch(4)
    before = model.forward(images, mask)[0].logits
    bad = images.copy()
    bad[0, 0, 0, 0] = np.inf
    ddetr_np.first_not_finite(model, bad, mask)
    weight = params(model)['transformer.encoder.layers.0.norm1.weight'].data
    kept, weight[0] = weight[0], np.nan
    assert ddetr_np.first_not_finite(model, images, mask).picture is None
    weight[0] = kept
    np.testing.assert_array_equal(model.forward(images, mask)[0].logits, before)
    assert not any('forward' in vars(m) for m in model.modules())
