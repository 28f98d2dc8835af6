"""Figure 6 against `transformers`: what its sampling function is given is what we draw.

Every tensor is random, attention weights too, which an initialisation leaves equal.
"""

import numpy as np
import pytest

import ddetr_np
from ddetr_np.analysis.look import look
from ddetr_np.analysis.reads import all_layers
from ddetr_np.config import VARIANTS

pytestmark = pytest.mark.oracle
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

H, W = 150, 210  # of the picture, pixels
LAYERS, NQ = 3, 30


def build(variant):
    """A small model of transformers on its own ResNet, every tensor random."""
    config = VARIANTS[variant]
    resnet = transformers.ResNetConfig(
        layer_type='basic',
        depths=[2, 2, 2, 2],
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        out_features=['stage4'] if config.L == 1 else ['stage2', 'stage3', 'stage4'],
    )
    model = transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            use_timm_backbone=False,
            backbone_config=resnet,
            num_feature_levels=config.L,
            with_box_refine=config.refine,
            two_stage=config.two_stage,
            d_model=64,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            num_queries=NQ,
            two_stage_num_proposals=NQ,
            num_labels=5,
        )
    )
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if not t.is_floating_point() or name.endswith('sampling_offsets.bias'):
                continue
            n = torch.randn(t.shape, generator=rng)
            if t.ndim >= 2:
                n /= t[0].numel() ** 0.5
            elif name.endswith('running_var'):
                n = 1 + 0.1 * n.abs()
            elif name.endswith('weight'):
                n = 1 + 0.1 * n
            else:
                n *= 0.1
            t.copy_(n)
    return model.eval()


def listen(modules):
    """Return a list that fills with (points, weights) of each sampling, in order."""
    heard = []

    def hook(module, given):
        loc, A = given[4], given[5]
        heard.append((loc[0].numpy(), A[0].numpy()))

    for module in modules:
        module.register_forward_pre_hook(hook)
    return heard


@pytest.mark.parametrize('variant', [v for v in VARIANTS if v != 'single_scale_dc5'])
def test_points_and_weights_are_what_transformers_samples(tmp_path, variant):
    model = build(variant)
    encoder = listen([layer.self_attn.attn for layer in model.model.encoder.layers])
    decoder = listen([layer.encoder_attn.attn for layer in model.model.decoder.layers])
    model.save_pretrained(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
    seen = look(ddetr_np.load_model(tmp_path), pixels, short=200, long=333)
    with torch.no_grad():
        expected = model(torch.from_numpy(seen.images.transpose(0, 3, 1, 2).copy()))
    S = sum(h * w for h, w in seen.cache.shapes)
    for part, heard, n in (('encoder', encoder, S), ('decoder', decoder, NQ)):
        assert len(heard) == LAYERS
        for q in {0, 7, n // 2, n - 1}:
            frames = all_layers(seen, part, q)
            for reads, (loc, A) in zip(frames, heard, strict=True):
                assert len(loc) == n
                # a thousandth of a pixel
                np.testing.assert_allclose(reads.loc, loc[q] * [W, H], atol=1e-3)
                np.testing.assert_allclose(reads.A, A[q], atol=1e-5)
                np.testing.assert_allclose(reads.A.sum((1, 2)), 1, atol=1e-6)
                assert np.ptp(reads.A) > 0.01
            if part == 'decoder':
                cx, cy, w, h = expected.pred_boxes[0, q].numpy() * [W, H, W, H]
                corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
                np.testing.assert_allclose(reads.box, corners, atol=2e-3)
