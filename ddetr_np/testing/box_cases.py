"""Cases of boxes and losses."""

import numpy as np

from .table import Case, cases_of, distinct, off_zero


@cases_of('boxes.box_from_reference')
def _box_from_reference(rng, c):
    for label, n in (('point', 2), ('box', 4)):
        inputs = {
            'delta': rng.standard_normal((2, c.Nq, 4)),
            'p_hat': rng.uniform(0.05, 0.95, (2, c.Nq, n)),
        }
        yield Case(label, inputs)


@cases_of('boxes.cxcywh_to_xyxy')
def _cxcywh_to_xyxy(rng, c):
    yield Case('boxes', {'box': rng.uniform(0, 1, (2, c.Nq, 4))})


@cases_of('losses.sigmoid_focal_loss')
def _sigmoid_focal_loss(rng, c):
    x = 3 * rng.standard_normal((2, c.Nq, c.num_classes))
    for gamma in (2.0, 0.0, 1.5):
        settings = {'target': rng.random(x.shape) < 0.3, 'gamma': gamma}
        yield Case(f'γ = {gamma}', {'x': x}, settings)
    yield Case('large logits', {'x': 10 * x}, settings)


@cases_of('losses.l1')
def _l1(rng, c):
    b = rng.standard_normal((c.Nq, 4))
    yield Case('boxes', {'a': b + off_zero(rng, c.Nq, 4), 'b': b})


@cases_of('losses.giou')
def _giou(rng, c):
    # four distinct edges along each axis, in order; which are a's makes the case
    edges = np.sort(distinct(rng, c.Nq, 2, 4), -1)
    for label, x, y in (
        ('overlap', (0, 2), (0, 2)),
        ('inside', (1, 2), (1, 2)),
        ('apart along x', (0, 1), (0, 2)),
        ('apart along both', (2, 3), (0, 1)),
    ):
        a = _corners(edges, x, y)
        b = _corners(edges, *(sorted({0, 1, 2, 3} - set(axis)) for axis in (x, y)))
        yield Case(label, {'a': a, 'b': b})


def _corners(edges, x, y):
    """Return boxes x0, y0, x1, y1 of the edges (n, 2, 4) with these indices."""
    (x0, x1), (y0, y1) = x, y
    picked = [edges[:, 0, x0], edges[:, 1, y0], edges[:, 0, x1], edges[:, 1, y1]]
    return np.stack(picked, -1)
