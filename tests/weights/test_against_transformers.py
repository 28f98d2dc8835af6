"""Names and shapes of transformers' models against the published ones."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ddetr_np
from ddetr_np.config import VARIANTS
from ddetr_np.weights.infer import infer_config
from ddetr_np.weights.names import to_published

pytestmark = pytest.mark.oracle
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

VARIANTS_WITHOUT_DILATION = [v for v in VARIANTS if v != 'single_scale_dc5']


def build(variant, resnet=None, **fields):
    """A model of transformers with its own ResNet (50 unless told)."""
    config = VARIANTS[variant]
    stages = ['stage2', 'stage3', 'stage4'] if config.L > 1 else ['stage4']
    return transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            use_timm_backbone=False,
            backbone_config=transformers.ResNetConfig(
                out_features=stages, **(resnet or {})
            ),
            num_feature_levels=config.L,
            with_box_refine=config.refine,
            two_stage=config.two_stage,
            **{'num_labels': 91, **fields},
        )
    )


@pytest.mark.parametrize('variant', VARIANTS_WITHOUT_DILATION)
def test_names_and_shapes(variant):
    golden = Path(__file__).resolve().parents[1] / 'golden'
    official = json.loads((golden / 'official_state_dicts.json').read_text())[variant]
    with torch.device('meta'):
        model = build(variant)
    zero = np.float32(0)  # a view of one number: full size without the memory
    tensors = {
        name: np.broadcast_to(zero, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    }
    published = to_published(tensors)
    assert {n: list(a.shape) for n, a in published.items()} == official
    told = {'transformers': json.loads(model.config.to_json_string(use_diff=False))}
    assert infer_config(published, told) == VARIANTS[variant]


RESNETS = {
    'resnet18': {'layer_type': 'basic', 'depths': [2, 2, 2, 2]},
    'resnet34': {'layer_type': 'basic', 'depths': [3, 4, 6, 3]},
    'resnet50': {'layer_type': 'bottleneck', 'depths': [3, 4, 6, 3]},
    'resnet101': {'layer_type': 'bottleneck', 'depths': [3, 4, 23, 3]},
}


@pytest.mark.parametrize('backbone', RESNETS)
@pytest.mark.parametrize('variant', VARIANTS_WITHOUT_DILATION)
def test_a_saved_folder_loads(tmp_path, variant, backbone):
    expansion = 1 if RESNETS[backbone]['layer_type'] == 'basic' else 4
    resnet = {
        **RESNETS[backbone],
        'embedding_size': 8,
        'hidden_sizes': [8 * expansion * factor for factor in (1, 2, 4, 8)],
    }
    model = build(
        variant,
        resnet,
        d_model=32,
        encoder_layers=1,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_n_points=2,
        decoder_n_points=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=9,
        two_stage_num_proposals=9,
        dropout=0.25,
        id2label={0: 'cat', 1: 'dog', 2: 'bird'},
        num_labels=3,
    )
    torch.manual_seed(5)
    state = model.state_dict()
    with torch.no_grad():
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.normal_()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.save_pretrained(tmp_path)
    ours = ddetr_np.load_model(tmp_path)
    expected = VARIANTS[variant].replace(
        backbone=backbone,
        width=8,
        C=32,
        M=4,
        K=2,
        Nq=9,
        encoder_layers=1,
        decoder_layers=3,
        ffn=24,
        dropout=0.25,
        num_classes=3,
        names=('cat', 'dog', 'bird'),
    )
    assert ours.config == expected
    # what transformers has in memory, renamed; norms' counters aside
    published = to_published({name: t.numpy() for name, t in state.items()})
    found = ours.state_dict()
    assert set(found) == set(published)
    for name, array in published.items():
        assert_array_equal(found[name], array)
