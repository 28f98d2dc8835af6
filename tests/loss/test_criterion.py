import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np.config import Config
from ddetr_np.errors import InputError, NotFiniteError
from ddetr_np.loss import Criterion
from ddetr_np.nn.ddetr import Output
from ddetr_np.testing import check_direction

CLASSES = 5
D, N, Nq, S = 3, 2, 7, 11


def criterion(num_classes=CLASSES, **settings):
    return Criterion(Config(num_classes=num_classes), **settings)


def prediction(two_stage=True, seed=0, dtype='float64'):
    rng = np.random.default_rng(seed)

    def logits(*shape):
        return rng.standard_normal((*shape, CLASSES)).astype(dtype)

    def boxes(*shape):
        centre, size = rng.uniform(0.3, 0.7, (2, *shape, 2))
        return np.concatenate([centre, size], -1).astype(dtype)

    out = Output(logits(D, N, Nq), boxes(D, N, Nq))
    if two_stage:
        first = {'proposal_logits': logits(N, S), 'proposal_boxes': boxes(N, S)}
        out = out._replace(**first)
    return out


def targets(*numbers, seed=1):
    rng = np.random.default_rng(seed)
    return [
        {
            'labels': rng.integers(0, CLASSES, n),
            'boxes': np.concatenate(rng.uniform(0.2, 0.6, (2, n, 2)), -1),
        }
        for n in numbers
    ]


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
def test_published_losses_and_matching(variant, golden):
    z = np.load(golden / f'official_{variant}.npz')
    out = Output(z['pred_logits'][None], z['pred_boxes'][None])
    published = [{'labels': z[f'labels{i}'], 'boxes': z[f'boxes{i}']} for i in (0, 1)]
    c = criterion(num_classes=91)
    total, losses, _ = c(out, published)
    names = {'loss_ce', 'loss_bbox', 'loss_giou', 'class_error', 'cardinality_error'}
    assert set(losses) == names
    for name in names:
        assert_allclose(losses[name], z[f'loss/{name}'], rtol=1e-12, err_msg=name)
    parts = 2 * losses['loss_ce'] + 5 * losses['loss_bbox'] + 2 * losses['loss_giou']
    assert_allclose(total, parts, rtol=1e-15)
    matches = c.match(out, published)
    for i in (0, 1):
        query, target = matches.layers[0][i]
        assert_array_equal(query, z[f'match_query{i}'])
        assert_array_equal(target, z[f'match_target{i}'])


def test_names_and_total():
    total, losses, dout = criterion()(prediction(), targets(2, 3))
    kinds = ('loss_ce', 'loss_bbox', 'loss_giou', 'cardinality_error')
    suffixes = ('', '_0', '_1', '_enc')
    expected = {k + s for k in kinds for s in suffixes} | {'class_error'}
    assert set(losses) == expected
    weights = dict(zip(kinds, (2, 5, 2, 0)))
    parts = sum(w * losses[k + s] for k, w in weights.items() for s in suffixes)
    assert_allclose(total, parts, rtol=1e-14)
    for name, gradient in dout._asdict().items():
        assert gradient.shape == getattr(prediction(), name).shape


def test_a_pair_by_hand():
    # one query answers exactly, so only its class and the other queries' cost anything
    box = np.array([0.4, 0.5, 0.2, 0.4])
    logits = np.array([[[[2.0, -1.0], [0.5, -3.0]]]])
    boxes = np.array([[[box, box + 0.1]]])
    found = [{'labels': np.array([0]), 'boxes': box[None]}]
    total, losses, _ = criterion(num_classes=2)(Output(logits, boxes), found)
    p = 1 / (1 + np.exp(-logits.ravel()))
    ce = -0.25 * (1 - p[0]) ** 2 * np.log(p[0])
    ce -= 0.75 * (p[1:] ** 2 * np.log(1 - p[1:])).sum()
    assert_allclose(losses['loss_ce'], ce)
    assert_allclose([losses['loss_bbox'], losses['loss_giou']], 0, atol=1e-15)
    assert losses['class_error'] == 0
    assert losses['cardinality_error'] == 1  # both queries' best class is not the last
    assert_allclose(total, 2 * ce)


def test_logged_figures_by_hand():
    logits = np.full((1, 2, 3, 4), -5.0)
    best = [[0, 1, 3], [3, 3, 3]]
    for i, row in enumerate(best):
        for q, label in enumerate(row):
            logits[0, i, q, label] = 5
    boxes = np.full((1, 2, 3, 4), 0.5)
    boxes[0, :, :, 0] = [0.2, 0.5, 0.8]
    found = [  # the boxes say who answers: queries 0, 1, 2
        {'labels': np.array([0, 2, 2]), 'boxes': boxes[0, 0]},
        {'labels': np.zeros(0, int), 'boxes': np.zeros((0, 4))},
    ]
    weights = (0, 5, 2)
    _, losses, _ = criterion(4, weights=weights)(Output(logits, boxes), found)
    assert_allclose(losses['class_error'], 200 / 3)
    assert_allclose(losses['cardinality_error'], (abs(2 - 3) + 0) / 2)


@pytest.mark.parametrize('numbers', [(2, 3), (0, 4), (9, 2), (0, 0)])
@pytest.mark.parametrize('part', Output._fields)
def test_gradient_in_a_random_direction(numbers, part):
    c, out, found = criterion(), prediction(), targets(*numbers)
    matches = c.match(out, found)
    dout = c(out, found, matches)[2]
    v = np.random.default_rng(5).standard_normal(getattr(out, part).shape)

    def along(t):
        moved = out._replace(**{part: getattr(out, part) + t * v})
        return np.array(c(moved, found, matches)[0])

    analytic = (getattr(dout, part) * v).sum()
    check = check_direction(along, np.ones(()), analytic, part)
    assert check.verdict == 'ok', check


def test_without_any_box():
    total, losses, dout = criterion()(prediction(), targets(0, 0))
    assert np.isfinite(total)
    for name, value in losses.items():
        if 'bbox' in name or 'giou' in name:
            assert value == 0
    assert losses['class_error'] == 100  # as published
    assert not dout.boxes.any()
    assert not dout.proposal_boxes.any()
    assert dout.logits.all()
    # an empty list has no second axis
    bare = [{'labels': [], 'boxes': []}] * N
    assert criterion()(prediction(), bare)[0] == total


def test_more_targets_than_queries():
    c, out, found = criterion(), prediction(), targets(9, 1)
    query, target = c.match(out, found).layers[0][0]
    assert_array_equal(query, np.arange(Nq))
    assert len(set(target)) == Nq
    _, losses, _ = c(out, found)
    _, alone, _ = c(out, found, num_boxes=1)
    assert_allclose(alone['loss_bbox'], 10 * losses['loss_bbox'])  # all ten count


def test_matching_is_held():
    c, out, found = criterion(), prediction(), targets(2, 3)
    matches = c.match(out, found)
    total, losses, dout = c(out, found)
    held, held_losses, held_dout = c(out, found, matches)
    assert held == total
    assert held_losses == losses
    for a, b in zip(held_dout, dout):
        assert_array_equal(a, b)
    other = matches._replace(
        layers=[[(q, t[::-1]) for q, t in layer] for layer in matches.layers]
    )
    assert c(out, found, other)[0] > total


def test_batch_in_parts():
    c, out, found = criterion(), prediction(), targets(2, 3)
    total, losses, dout = c(out, found)
    totals, parts = [], []
    for i in range(N):
        part = Output(out.logits[:, i : i + 1], out.boxes[:, i : i + 1])
        first = (a[i : i + 1] for a in (out.proposal_logits, out.proposal_boxes))
        part = part._replace(**dict(zip(Output._fields[2:], first)))
        t, _, d = c(part, found[i : i + 1], num_boxes=5)
        totals.append(t)
        parts.append(d)
    assert_allclose(sum(totals), total, rtol=1e-14)
    for name, axis in zip(Output._fields, (1, 1, 0, 0)):
        together = np.concatenate([getattr(p, name) for p in parts], axis)
        assert_allclose(together, getattr(dout, name), rtol=1e-14)


def test_the_first_stage_knows_one_class():
    c, out, found = criterion(), prediction(), targets(2, 3)
    other = [{**t, 'labels': (t['labels'] + 1) % CLASSES} for t in found]
    (_, a, da), (_, b, db) = c(out, found), c(out, other)
    assert a['loss_ce_enc'] == b['loss_ce_enc']
    assert a['loss_ce_0'] != b['loss_ce_0']
    assert_array_equal(da.proposal_logits, db.proposal_logits)
    assert da.proposal_logits[..., 1:].all()  # all classes are in its focal loss
    pushed_up = da.proposal_logits < 0
    assert pushed_up.sum() == 5
    assert pushed_up[..., 0].sum() == 5


def test_single_precision_in_and_out():
    out, found = prediction(dtype='float32'), targets(2, 3)
    total, _, dout = criterion()(out, found)
    assert all(a.dtype == 'float32' for a in dout)
    assert isinstance(total, float)
    precise, _, dprecise = criterion()(prediction(), found)
    assert_allclose(total, precise, rtol=1e-6)
    for a, b in zip(dout, dprecise):
        assert_allclose(a, b, atol=1e-6)


def test_inputs_are_left_alone():
    out, found = prediction(), targets(2, 3)
    copies = [a.copy() for a in out]
    criterion()(out, found)
    for a, b in zip(out, copies):
        assert_array_equal(a, b)
    for a, b in zip(found, targets(2, 3)):
        assert_array_equal(a['boxes'], b['boxes'])


@pytest.mark.parametrize(
    ('part', 'where', 'message'),
    [
        ('logits', (1, 0, 3, 2), 'logits of decoder layer 1, picture 0'),
        ('boxes', (2, 1, 0, 0), 'boxes of decoder layer 2, picture 1'),
        ('proposal_logits', (1, 4, 3), 'logits of the first stage, picture 1'),
        ('proposal_boxes', (0, 4, 3), 'boxes of the first stage, picture 0'),
    ],
)
@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('numbers', [(2, 3), (0, 0)])
def test_what_is_not_finite_is_named(part, where, message, value, numbers):
    out = prediction()
    getattr(out, part)[where] = value
    if part != 'boxes':
        out.boxes[2] = np.nan  # later: the first is named
    with pytest.raises(NotFiniteError, match=message):
        criterion()(out, targets(*numbers))


@pytest.mark.filterwarnings('ignore:overflow')
def test_a_loss_that_overflows_is_named():
    out = prediction(dtype='float32')
    out.logits[1] = 3e38
    with pytest.raises(NotFiniteError, match='loss_ce_1 is inf.* decoder layer 1'):
        criterion()(out, targets(2, 3))


def three_boxes(i, j, value):
    boxes = np.full((3, 4), 0.5)
    boxes[i, j] = value
    return boxes


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'labels': np.array([0, 5, 1])}, r'label 5 of box 1 is not in \[0, 5\)'),
        ({'labels': np.array([0, -1, 1])}, 'label -1 of box 1'),
        ({'labels': np.array([0.0, 1.0, 2.0])}, 'labels are float64'),
        ({'labels': np.array([0, 1])}, r'\(2,\) and \(3, 4\)'),
        ({'boxes': np.full((3, 5), 0.5)}, r'\(3,\) and \(3, 5\)'),
        ({'boxes': three_boxes(2, 2, np.nan)}, 'box 2 .*finite'),
        ({'boxes': three_boxes(2, 2, 0)}, 'box 2 .*above 0'),
        ({'boxes': three_boxes(0, 3, -0.1)}, 'box 0 .*above 0'),
        ({'boxes': three_boxes(1, 0, 64)}, 'box 1 .*fractions'),
        ({'boxes': None}, 'boxes'),
    ],
)
def test_targets_that_cannot_be_used(change, message):
    found = targets(2, 3)
    found[1] = {**found[1], **change}
    with pytest.raises(InputError, match=f'picture 1: .*{message}'):
        criterion()(prediction(), found)


def test_classes_of_another_model():
    with pytest.raises(InputError, match='5 classes, the criterion num_classes = 91'):
        criterion(91)(prediction(), targets(2, 3))


def test_targets_that_are_missing():
    with pytest.raises(InputError, match='1 targets for a batch of 2 pictures'):
        criterion()(prediction(), targets(2))
    with pytest.raises(InputError, match="picture 0: .*without 'boxes'"):
        criterion()(prediction(), [{'labels': np.array([1])}] * 2)


@pytest.mark.oracle
@pytest.mark.parametrize('numbers', [(2, 3), (0, 4), (1, 0)])
def test_against_autograd(numbers):
    torch = pytest.importorskip('torch')
    from scipy.optimize import linear_sum_assignment

    out, found = prediction(), targets(*numbers)
    total, losses, dout = criterion()(out, found)
    leaves = [torch.tensor(a, requires_grad=True) for a in out]
    logits, boxes, first_logits, first_boxes = leaves
    number = sum(numbers)

    def corners(b):
        return torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)

    def overlap(a, b):
        def area(c):
            return (c[..., 2:] - c[..., :2]).clamp(min=0).prod(-1)

        both = torch.maximum(a, b), torch.minimum(a, b)
        inter = area(torch.cat([both[0][..., :2], both[1][..., 2:]], -1))
        hull = area(torch.cat([both[1][..., :2], both[0][..., 2:]], -1))
        union = area(a) + area(b) - inter
        return inter / union - (hull - union) / hull

    expected = {}
    stages = [(f'_{d}' if d < D - 1 else '', logits[d], boxes[d]) for d in range(D)]
    for suffix, x, b in [*stages, ('_enc', first_logits, first_boxes)]:
        ce = bbox = giou = 0
        for i, t in enumerate(found):
            aims = torch.tensor(t['boxes'])
            labels = torch.tensor(t['labels']) * (suffix != '_enc')
            with torch.no_grad():
                p = x[i].sigmoid()
                positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
                negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
                cost = 2 * (positive - negative)[:, labels]
                cost = cost + 5 * torch.cdist(b[i], aims, p=1)
                cost = cost - 2 * overlap(corners(b[i])[:, None], corners(aims))
            q, j = map(torch.tensor, linear_sum_assignment(cost))
            one = torch.zeros_like(x[i])
            one[q, labels[j]] = 1
            p = x[i].sigmoid()
            ce = ce - (0.25 * one * (1 - p) ** 2 * p.log()).sum()
            ce = ce - (0.75 * (1 - one) * p**2 * (1 - p).log()).sum()
            bbox = bbox + (b[i, q] - aims[j]).abs().sum()
            giou = giou + (1 - overlap(corners(b[i, q]), corners(aims[j]))).sum()
        for name, value in (('ce', ce), ('bbox', bbox), ('giou', giou)):
            expected[f'loss_{name}{suffix}'] = value / number
    weights = {'ce': 2, 'bbox': 5, 'giou': 2}
    full = sum(weights[name.split('_')[1]] * v for name, v in expected.items())
    full.backward()
    for name, value in expected.items():
        assert_allclose(losses[name], value.detach(), rtol=1e-12, err_msg=name)
    assert_allclose(total, full.detach(), rtol=1e-12)
    for leaf, gradient in zip(leaves, dout):
        assert_allclose(gradient, leaf.grad, rtol=1e-10, atol=1e-13)
