"""Steps of training, against PyTorch's model, loss, gradients and AdamW."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import ddetr_np
from ddetr_np import Settings
from ddetr_np.data.loader import Batch
from ddetr_np.train.loop import learn
from ddetr_np.train.state import State
from ddetr_np.train.team import Team

pytestmark = pytest.mark.oracle
torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

STEPS = 20
SIZES = ((72, 88), (64, 96))
FROZEN = ('embedder', 'stages.0', 'normalization')  # of transformers' backbone


@pytest.fixture(scope='module')
def live():
    """tests/test_live_transformers.py: the same model and loss in PyTorch."""
    path = Path(__file__).parents[1] / 'test_live_transformers.py'
    spec = importlib.util.spec_from_file_location('live', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def groups(model, lr):
    """The published groups, by transformers' names."""
    slow, rest = [], []
    for name, p in model.named_parameters():
        in_backbone = '.backbone.' in name
        # transformers freezes by the names of another ResNet
        p.requires_grad_(not in_backbone or not any(w in name for w in FROZEN))
        if not p.requires_grad:
            continue
        special = 'reference_points' in name or 'sampling_offsets' in name
        (slow if in_backbone or special else rest).append(p)
    return [{'params': rest, 'lr': lr}, {'params': slow, 'lr': 0.1 * lr}]


def draw_batch(rng):
    """Pictures of two sizes, padded, with targets; ours, and PyTorch's arrays."""
    pictures = [rng.standard_normal((*size, 3)) for size in SIZES]
    images, mask = ddetr_np.pad_batch(pictures, 'float64')
    targets = [
        {
            'labels': rng.integers(0, 11, n),
            'boxes': np.concatenate(
                [rng.uniform(0.25, 0.75, (n, 2)), rng.uniform(0.1, 0.45, (n, 2))], -1
            ),
        }
        for n in (3, 2)
    ]
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    batch = Batch(images, mask, targets, [0, 1])
    return batch, pixels, torch.from_numpy(~mask).long()


@pytest.mark.parametrize(
    ('variant', 'accumulate'),
    [('single_scale', 1), ('multi_scale', 1), ('multi_scale', 2), ('refine', 1),
     ('two_stage', 1)],
)  # fmt: skip
def test_the_first_steps(live, variant, accumulate):
    """Every tensor is random, so the sampling points lie off the kinks."""
    theirs = live.build(variant, 'resnet18', encoder_layers=1, decoder_layers=2,
                        num_queries=12, two_stage_num_proposals=12).double()
    if variant == 'refine':
        live.untie(theirs.class_embed)
    if variant == 'two_stage':
        theirs.model.get_proposal_pos_embed = live.proposal_positions
    ours = ddetr_np.build_model(
        variant, dtype='float64', backbone='resnet18', C=64, encoder_layers=1,
        decoder_layers=2, ffn=96, Nq=12, dropout=0.0, num_classes=11, width=16,
    )  # fmt: skip
    names = theirs.state_dict().items()
    state = {n: t.detach().numpy().copy() for n, t in names}
    ours.load_state_dict(live.to_published(state))

    settings = Settings(accumulate=accumulate)
    training = State(settings, ours, steps=STEPS)
    team = Team(ours, ddetr_np.Criterion(ours.config))
    optimizer = torch.optim.AdamW(groups(theirs, settings.lr), weight_decay=1e-4)
    learning = [p for g in optimizer.param_groups for p in g['params']]
    rng = np.random.default_rng(3)
    batches = [draw_batch(rng) for _ in range(2 * accumulate)]
    losses = []
    for step in range(STEPS):
        first = step * accumulate % len(batches)
        some = batches[first : first + accumulate]
        figures = learn(training, team, [batch for batch, _, _ in some])
        boxes = [sum(len(t['labels']) for t in batch.targets) for batch, _, _ in some]
        optimizer.zero_grad()
        total = 0.0
        for (batch, pixels, valid), n in zip(some, boxes):
            outputs = live.forward_all(theirs, pixels, valid)
            # published_loss divides by its own batch's boxes
            part = live.published_loss(*outputs, batch.targets) * n / sum(boxes)
            part.backward()
            total += part.item()
        norm = torch.nn.utils.clip_grad_norm_(learning, 0.1).item()
        optimizer.step()
        assert figures['loss'] == pytest.approx(total, rel=1e-6, abs=0), step
        assert figures['grad_norm'] == pytest.approx(norm, rel=1e-6), step
        losses.append((figures['loss'], total))
    print(variant, accumulate, 'largest difference',
          max(abs(a - b) / b for a, b in losses), 'from', losses[0], 'to', losses[-1])
    assert losses[-1][0] < 0.98 * losses[0][0]  # it has learnt
    after = live.to_published(
        {n: t.detach().numpy() for n, t in theirs.state_dict().items()}
    )
    for name, array in ours.state_dict().items():
        if name in after:
            np.testing.assert_allclose(array, after[name], atol=1e-6, err_msg=name)
