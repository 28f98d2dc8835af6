"""The gradient check of the whole detector, from the loss to the pictures."""

import numpy as np

from .backend import get_xp, to_device
from .loss import Criterion
from .testing import TOLERANCE, check_direction

STEP = 2.0**-12  # kinks are dense in a whole model: start close
SMALL = {  # fields of a detector that is checked in seconds
    'C': 16,
    'M': 2,
    'K': 2,
    'Nq': 6,
    'ffn': 24,
    'encoder_layers': 2,
    'decoder_layers': 3,
    'num_classes': 4,
    'width': 4,
}


def randomise(model, seed=0):
    """Give every tensor random values, statistics and attention weights too.

    Initial values hide errors: a weight that is zero sends no gradient on, and the
    initial sampling points lie on pixel centres, where bilinear sampling has a kink.

    Parameters
    ----------
    model : Module
        Overwritten in place.
    seed : int
        Of the values.

    Returns
    -------
    model
        The same.
    """
    rng = np.random.default_rng(seed)
    for name, p in model.named_params():
        n = rng.standard_normal(p.data.shape)
        if name.endswith('running_var'):
            n = 1 + 0.1 * abs(n)
        elif p.data.ndim >= 2:
            n *= np.sqrt(p.shape[0] / p.data.size)  # 1/√fan-in keeps the scale
        elif name.endswith('weight'):
            n = 1 + 0.1 * n
        elif not name.endswith('sampling_offsets.bias'):
            n *= 0.1
        p.data[...] = get_xp(p.data).asarray(n)
    return model


def random_batch(num_classes, sizes=((52, 68), (44, 60)), boxes=(3, 2), seed=0):
    """Return random pictures of different sizes, padded, with their targets.

    Parameters
    ----------
    num_classes : int
        Labels are below it.
    sizes : sequence of (H, W)
        The pictures' pixels; the batch has the largest of each.
    boxes : sequence of int
        How many targets each picture has.
    seed : int
        Of pictures and targets.

    Returns
    -------
    images : (N, H, W, 3) float64 array
        Normal numbers; 0 in the padding.
    mask : (N, H, W) bool array
        True in the padding.
    targets : list of dict
        'labels' (n,) int and 'boxes' (n, 4): cx, cy, w, h in [0, 1], fractions of the
        picture without its padding.
    """
    rng = np.random.default_rng(seed)
    H, W = np.max(sizes, axis=0)
    images = np.zeros((len(sizes), H, W, 3))
    mask = np.ones((len(sizes), H, W), bool)
    targets = []
    for i, ((h, w), n) in enumerate(zip(sizes, boxes)):
        images[i, :h, :w] = rng.standard_normal((h, w, 3))
        mask[i, :h, :w] = False
        box = np.concatenate(
            [rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.1, 0.5, (n, 2))], -1
        )
        targets.append({'labels': rng.integers(0, num_classes, n), 'boxes': box})
    return images, mask, targets


def check_model(
    model,
    images,
    mask,
    targets,
    block=True,
    train=False,
    seed=0,
    tol=TOLERANCE,
    step=STEP,
):
    """Check the gradient of the loss by the pictures and by each part of the model.

    The matching, the choice of proposals and, if gradients are blocked, what the
    released code detaches are held at the base point. Learning batch norms do not have
    their running statistics disturbed: they are put back.

    Parameters
    ----------
    model : DeformableDETR
        In float64, with random tensors (`randomise`).
    images, mask, targets
        As `random_batch` makes them, on any device: they go to the model's.
    block : bool
        As in `DeformableDETR.backward`.
    train : bool
        With dropout and the batch's statistics.
    seed : int
        Of the directions.
    tol : float
        As for `check_direction`.
    step : float
        The largest one tried, as for `check_direction`.

    Yields
    ------
    GradientCheck
    """
    rng = np.random.default_rng(seed)
    images, mask = (to_device(a, model.device) for a in (images, mask))

    def direction_of(a):
        return to_device(rng.standard_normal(a.shape), model.device)

    criterion = Criterion(model.config)
    statistics = {n: p.data.copy() for n, p in model.named_params() if p.buffer}
    out, cache = model.forward(images, mask, train=train)
    matches, held = criterion.match(out, targets), cache.hold(block)
    _, _, dout = criterion(out, targets, matches)
    model.zero_grad()
    dimages = model.backward(dout, cache, images=True, block=block)

    def loss(pictures):
        out, _ = model.forward(pictures, mask, train=train, keep='none', held=held)
        return np.array(criterion(out, targets, matches)[0])

    which = 'blocked' if block else 'true derivative'
    name = f'{model.config.variant or "model"}, {which}'
    one = np.ones(())
    v = direction_of(images) * ~mask[..., None]
    yield check_direction(
        lambda t: loss(images + t * v),
        one,
        (dimages * v).sum(),
        name,
        'pictures',
        tol,
        step,
    )
    for part, params in parts(model).items():
        base = [p.data.copy() for p in params]
        # a direction in proportion to the tensor: a small one is not blown up
        direction = [direction_of(b) * _spread(b) for b in base]

        def along(t, params=params, base=base, direction=direction):
            for p, b, v in zip(params, base, direction):
                p.data[...] = b + t * v
            return loss(images)

        analytic = sum((p.grad * v).sum() for p, v in zip(params, direction))
        try:
            yield check_direction(along, one, analytic, name, part, tol, step)
        finally:
            for p, b in zip(params, base):
                p.data[...] = b
    for n, p in model.named_params():
        if p.buffer:
            p.data[...] = statistics[n]


def _spread(array):
    return float((array**2).mean()) ** 0.5 or 1.0


def parts(model):
    """Return {part of the model: its learning Params}, in the order of the names.

    Parameters
    ----------
    model : Module
        Attributes named as in the published checkpoints.

    Returns
    -------
    dict
        Beginning of the names, less 'transformer' and 'layers' → list of Param. A layer
        of the encoder or decoder is a part, each attention in it another.
    """
    found = {}
    for name, p in model.named_params():
        if p.learns:
            words = [w for w in name.split('.') if w not in ('transformer', 'layers')]
            depth = 3 if words[0] == 'backbone' else 1
            # a layer of the encoder or decoder is a part; its attention is another
            if words[0] in ('encoder', 'decoder'):
                depth = 3 if 'attn' in words[2] else 2
            found.setdefault('.'.join(words[:depth]), []).append(p)
    return found
