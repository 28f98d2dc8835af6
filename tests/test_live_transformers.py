"""The whole detector against `transformers`: outputs, and PyTorch's gradients.

Every tensor is random, batch-norm statistics and attention weights too, which an
initialisation leaves trivial.
"""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import ddetr_np
from ddetr_np.config import VARIANTS
from ddetr_np.weights.names import to_published

pytestmark = pytest.mark.oracle
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = ((3, 200, 232), (3, 168, 264))
DEPTHS = {'resnet18': [2, 2, 2, 2], 'resnet50': [3, 4, 6, 3]}


def build(variant, backbone='resnet50', **fields):
    """A small model of transformers on its own ResNet, every tensor random."""
    config = VARIANTS[variant]
    expansion = 1 if backbone == 'resnet18' else 4
    resnet = transformers.ResNetConfig(
        layer_type='basic' if backbone == 'resnet18' else 'bottleneck',
        depths=DEPTHS[backbone],
        embedding_size=16,
        hidden_sizes=[16 * expansion * 2**s for s in range(4)],
        out_features=['stage4'] if config.L == 1 else ['stage2', 'stage3', 'stage4'],
    )
    sizes = {
        'd_model': 64,
        'encoder_layers': 3,
        'decoder_layers': 3,
        'encoder_ffn_dim': 96,
        'decoder_ffn_dim': 96,
        'num_queries': 40,
        'two_stage_num_proposals': 40,
        'dropout': 0.0,
        'num_labels': 11,
    }
    model = transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            use_timm_backbone=False,
            backbone_config=resnet,
            num_feature_levels=config.L,
            with_box_refine=config.refine,
            two_stage=config.two_stage,
            **{**sizes, **fields},
        )
    )
    if config.dilation:
        dilate(model)
    draw(model)
    return model.eval()


def dilate(model):
    """DC5, which transformers cannot build: the last stage loses its stride."""
    (stage,) = [m for n, m in model.named_modules() if n.endswith('encoder.stages.3')]
    for i, block in enumerate(stage.layers):
        for conv in block.modules():
            if isinstance(conv, torch.nn.Conv2d):
                conv.stride = (1, 1)
                if conv.kernel_size == (3, 3) and i > 0:
                    conv.dilation = conv.padding = (2, 2)


def draw(model, seed=0):
    """Draw every tensor, keeping the activations' scale."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if not t.is_floating_point():
                continue
            n = torch.randn(t.shape, generator=rng)
            if t.ndim >= 2:
                n /= t[0].numel() ** 0.5
            elif name.endswith('running_var'):
                n = 1 + 0.1 * n.abs()
            elif name.endswith('weight'):
                n = 1 + 0.1 * n
            elif not name.endswith('sampling_offsets.bias'):
                n *= 0.1
            t.copy_(n)


def untie(heads):
    """Give each decoder layer a class head of its own, which transformers may tie."""
    for head in heads:
        for name in ('weight', 'bias'):
            t = getattr(head, name).detach()
            noise = torch.randn(t.shape, dtype=t.dtype) / 16
            setattr(head, name, torch.nn.Parameter(t + noise))


def proposal_positions(proposals):
    """Sine positions of the boxes σ(proposals) (A.4), in the proposals' precision."""
    n = 32  # C / 2 channels for each of x, y, w, h
    i = torch.arange(n, dtype=proposals.dtype) // 2
    angle = proposals.sigmoid()[..., None] * 2 * torch.pi / 10_000 ** (2 * i / n)
    pairs = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1)
    return pairs.flatten(2)


def batch(dtype):
    """Pictures of different sizes, padded: PyTorch's and ours."""
    rng = np.random.default_rng(1)
    pictures = [rng.standard_normal(s) for s in SIZES]
    images, mask = ddetr_np.pad_batch([p.transpose(1, 2, 0) for p in pictures], dtype)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return images, mask, pixels, torch.from_numpy(~mask).long()


def distance(a, b):
    """‖a − b‖ / ‖b‖."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize('backbone', DEPTHS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_saved_folder_gives_the_same_logits_and_boxes(tmp_path, variant, backbone):
    if variant == 'single_scale_dc5' and backbone == 'resnet18':
        pytest.skip('basic blocks have no dilated form')
    model = build(variant, backbone)
    model.save_pretrained(tmp_path)
    dilation = {'dilation': True} if VARIANTS[variant].dilation else {}
    ours = ddetr_np.load_model(tmp_path, **dilation)
    assert ours.config.variant == variant
    images, mask, pixels, valid = batch('float32')
    with torch.no_grad():
        expected = model(pixels, valid)
    out, cache = ours.forward(images, mask)
    logits, boxes = out.logits[-1], out.boxes[-1]
    if ours.config.two_stage:
        theirs = expected.enc_outputs_coord_logits.sigmoid().numpy()
        assert distance(out.proposal_boxes, theirs) < 1e-4
        ranking = expected.enc_outputs_class.numpy()
        assert distance(out.proposal_logits, ranking) < 1e-4
        top = torch.topk(expected.enc_outputs_class[..., 0], 40, dim=1)[1].numpy()
        for i in range(2):
            order = same_proposals(top[i], cache.proposals, i)
            logits[i], boxes[i] = logits[i][order], boxes[i][order]
    assert distance(logits, expected.logits.numpy()) < 1e-4
    assert distance(boxes, expected.pred_boxes.numpy()) < 1e-4


def same_proposals(top, proposals, i):
    """Return our queries in the order of their proposals, near-equal ones anyhow.

    Tokens without a base box share one logit and one box: any stands for any.
    """

    def key(token):
        return -1 if proposals.dropped[i, token] else token

    ours = {}
    for q, token in enumerate(proposals.top[i]):
        ours.setdefault(key(token), []).append(q)
    order = [ours[key(token)].pop() for token in top]
    assert sorted(order) == list(range(len(top)))
    return order


def published_loss(outputs, classes, coordinates, targets):
    """The set loss, from the paper, as a PyTorch scalar."""
    stages = [(c, b, targets) for c, b in zip(classes, coordinates)]
    if outputs.get('enc_outputs_class') is not None:
        objects = [{**t, 'labels': 0 * t['labels']} for t in targets]
        boxes = outputs.enc_outputs_coord_logits.sigmoid()
        stages.append((outputs.enc_outputs_class, boxes, objects))
    n = sum(len(t['labels']) for t in targets)
    total = 0
    for logits, boxes, aims in stages:
        p = logits.sigmoid()
        positive = torch.zeros_like(logits)
        for i, t in enumerate(aims):
            label, box = torch.from_numpy(t['labels']), torch.from_numpy(t['boxes'])
            with torch.no_grad():
                q = p[i]
                gain = 0.25 * (1 - q) ** 2 * -(q + 1e-8).log()
                loss = 0.75 * q**2 * -(1 - q + 1e-8).log()
                cost = 2 * (gain - loss)[:, label]
                cost += 5 * torch.cdist(boxes[i], box, p=1)
                cost -= 2 * overlap(boxes[i][:, None], box[None])
            row, column = linear_sum_assignment(cost.numpy())
            positive[i, row, label[column]] = 1
            found, aim = boxes[i][row], box[column]
            total += 5 * (found - aim).abs().sum()
            total += 2 * (1 - overlap(found, aim)).sum()
        pt = torch.where(positive > 0, p, 1 - p)
        alpha = torch.where(positive > 0, 0.25, 0.75)
        total += 2 * (-alpha * (1 - pt) ** 2 * pt.log()).sum()
    return total / n


def overlap(a, b):
    """Generalised IoU of boxes cx, cy, w, h, broadcast."""
    low_a, high_a = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    low_b, high_b = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    inner = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0)
    outer = torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)
    inner, outer = inner.prod(-1), outer.prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inner
    return inner / union - (outer - union) / outer


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_gradient_is_autograds(variant):
    """In float64, nothing frozen, not even the stem: every Param, and the pictures."""
    model = build(variant).double()
    if variant == 'refine':
        untie(model.class_embed)
    if variant == 'two_stage':  # its own works in single precision
        model.model.get_proposal_pos_embed = proposal_positions
    for p in model.parameters():
        p.requires_grad_(True)
    state = {n: t.detach().numpy() for n, t in model.state_dict().items()}
    ours = ddetr_np.build_model(
        variant, dtype='float64', C=64, encoder_layers=3, decoder_layers=3, ffn=96,
        Nq=40, dropout=0.0, num_classes=11, width=16, freeze_at=0,
    )  # fmt: skip
    ours.load_state_dict(to_published(state))
    images, mask, pixels, valid = batch('float64')
    rng = np.random.default_rng(2)
    targets = [
        {
            'labels': rng.integers(0, 11, n),
            'boxes': np.concatenate(
                [rng.uniform(0.25, 0.75, (n, 2)), rng.uniform(0.1, 0.45, (n, 2))], -1
            ),
        }
        for n in (5, 2)
    ]
    pixels.requires_grad_(True)
    theirs = published_loss(*forward_all(model, pixels, valid), targets)
    theirs.backward()
    out, cache = ours.forward(images, mask)
    total, _, dout = ddetr_np.Criterion(ours.config)(out, targets)
    ours.zero_grad()
    dimages = ours.backward(dout, cache, images=True)
    np.testing.assert_allclose(total, theirs.item(), rtol=1e-9)
    grads = ours.grad_dict()
    expected = to_published(
        {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    )
    compared = 0
    for name, g in expected.items():
        if name in grads:
            assert distance(grads[name], g) < 1e-7, name
            compared += 1
    assert compared > 100
    assert distance(dimages.transpose(0, 3, 1, 2), pixels.grad.numpy()) < 1e-7


def forward_all(model, pixels, valid):
    """Return transformers' outputs, and every decoder layer's logits and boxes."""
    outputs = model(pixels, valid)
    classes, boxes = [], []
    for d in range(outputs.intermediate_hidden_states.shape[1]):
        h = outputs.intermediate_hidden_states[:, d]
        p_hat = outputs.init_reference_points
        if d > 0:
            p_hat = outputs.intermediate_reference_points[:, d - 1]
        guess = (p_hat.clamp(1e-5, 1) / (1 - p_hat).clamp(1e-5, 1)).log()
        guess = torch.nn.functional.pad(guess, (0, 4 - p_hat.shape[-1]))
        classes.append(model.class_embed[d](h))
        boxes.append((model.bbox_embed[d](h) + guess).sigmoid())
    torch.testing.assert_close(boxes[-1], outputs.pred_boxes)
    return outputs, classes, boxes
