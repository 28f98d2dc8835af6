"""The set loss of all decoder layers and of the first stage, and its gradient."""

import math
from typing import Any, NamedTuple

import numpy as np

from ..backend import get_xp, to_host
from ..errors import InputError, NotFiniteError
from ..ops.boxes import cxcywh_to_xyxy, cxcywh_to_xyxy_backward
from ..ops.losses import (
    giou,
    giou_backward,
    l1,
    l1_backward,
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
)
from .matcher import Matches, hungarian, match_cost
from .targets import Target, read_targets


class Weights(NamedTuple):
    """What a loss counts in the total, and in the matching's cost.

    Parameters
    ----------
    ce, bbox, giou : float
        Of the class (focal loss), of the box's L1 distance and of its generalised IoU.
    """

    ce: float = 2.0
    bbox: float = 5.0
    giou: float = 2.0


WEIGHTS = Weights()


class Stage(NamedTuple):
    """One prediction that is compared with the targets.

    Parameters
    ----------
    name : str
        What errors call it: 'the first stage', 'decoder layer 0' …
    suffix : str
        Of its losses' names: '_enc', '_0' …; '' for the last layer.
    logits : (N, n, classes) array
        Of n queries, or of the first stage's tokens.
    boxes : (N, n, 4) array
        cx, cy, w, h of the same, as fractions of the unpadded picture.
    """

    name: str  # for errors
    suffix: str  # of its losses
    logits: Any  # (N, n, classes)
    boxes: Any  # (N, n, 4)


class Criterion:
    """Focal loss of the classes, L1 and generalised IoU of the matched boxes.

    Parameters
    ----------
    config : Config
        For num_classes.
    weights : Weights or (float, float, float)
        Of the class, L1 and GIoU loss, in the total and in the matching.
    alpha, gamma : float
        Of the focal loss, in the loss and in the matching.

    Examples
    --------
    >>> from ddetr_np import draw_scene, load_model, normalise, pad_batch
    >>> model, scene = load_model('scenes'), draw_scene(0)
    >>> out, cache = model.forward(*pad_batch([normalise(scene.picture)]))
    >>> H, W = scene.picture.shape[:2]
    >>> x0, y0, x1, y1 = scene.boxes.T / [[W], [H], [W], [H]]
    >>> boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)
    >>> target = {'labels': scene.labels, 'boxes': boxes}
    >>> total, losses, dout = Criterion(model.config)(out, [target], cache=cache)
    >>> model.backward(dout, cache)
    >>> losses['loss_giou'] < 1, dout.boxes.shape == out.boxes.shape
    (True, True)
    """

    def __init__(self, config, weights=WEIGHTS, alpha=0.25, gamma=2.0):
        self.num_classes = config.num_classes
        self.weights = Weights(*weights)
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, out, targets, matches=None, num_boxes=None, cache=None):
        """Return the loss, its parts, and its gradient.

        Parameters
        ----------
        out : Output
            logits (D, N, Nq, classes), boxes (D, N, Nq, 4); two-stage also
            proposal_logits (N, S, classes) and proposal_boxes (N, S, 4), otherwise
            None.
        targets : sequence of dict, one a picture
            'labels' (n,) integers and 'boxes' (n, 4): cx, cy, w, h as fractions of the
            unpadded picture. n may be 0.
        matches : Matches or None
            A matching to hold, as from `match`; None matches anew.
        num_boxes : float or None
            What the losses are divided by; None takes the batch's number of boxes. For
            a batch in parts give the whole batch's number; where gradients are averaged
            over processes, the mean of the processes' numbers. Held at 1 from below.
        cache : Cache or None
            Of the forward pass. Where a prediction is not finite, the pass is run again
            to say in which layer that began.

        Returns
        -------
        total : float
            Σ weight · loss over all layers.
        losses : dict of float
            Unweighted: loss_ce, loss_bbox, loss_giou of the last layer; the other
            layers' with _0, _1 …, the first stage's with _enc. Without a gradient:
            cardinality_error of each (by how many the queries whose best class is not
            the last differ from the targets), and class_error (percentage of matched
            queries of the last layer whose best class is wrong; 100 without boxes).
        dout : like out
            ∂total/∂out; the matching is held.

        Raises
        ------
        InputError
            A target is unusable; its picture is named.
        NotFiniteError
            A prediction or a loss is not finite; the first one is named.
        """
        stages, targets = self._read(out, targets, cache)
        if matches is None:
            matches = self._match(out, targets)
        if num_boxes is None:
            num_boxes = sum(len(t.labels) for t in targets)
        num_boxes = max(float(num_boxes), 1.0)

        parts, gradients = [], []
        first = [matches.proposals] if out.proposal_logits is not None else []
        for stage, pairs in zip(stages, [*first, *matches.layers]):
            seen = _as_objects(targets) if stage.suffix == '_enc' else targets
            part, gradient = self._stage(stage, seen, pairs, num_boxes)
            parts.append(part)
            gradients.append(gradient)
        parts = _to_floats(parts)
        for stage, part in zip(stages, parts):
            _need_finite_losses(stage, part)
        losses = {k: v for part in (parts[-1], *parts[:-1]) for k, v in part.items()}
        total = sum(
            weight * losses[f'loss_{name}{stage.suffix}']
            for stage in stages
            for name, weight in self.weights._asdict().items()
        )
        return total, losses, _like(out, gradients)

    def match(self, out, targets):
        """Return the `Matches` of least cost.

        Parameters
        ----------
        out, targets
            As of `__call__`.

        Returns
        -------
        Matches

        Raises
        ------
        InputError
            A target is unusable; its picture is named.
        NotFiniteError
            A prediction is not finite; the first one is named.
        """
        _, targets = self._read(out, targets)
        return self._match(out, targets)

    def _read(self, out, targets, cache=None):
        """Check both arguments; return the stages in the order they were computed."""
        stages = _stages(out)
        _need_finite(stages, cache)
        _, N, _, classes = out.logits.shape
        if classes != self.num_classes:
            raise InputError(
                f'the prediction has {classes} classes, the criterion num_classes = '
                f"{self.num_classes}; make it with the model's configuration"
            )
        return stages, read_targets(targets, N, classes, out.boxes.dtype)

    def _match(self, out, targets):
        layers = self._match_pictures(out.logits, out.boxes, targets)
        proposals = None
        if out.proposal_logits is not None:
            first = out.proposal_logits[None], out.proposal_boxes[None]
            (proposals,) = self._match_pictures(*first, _as_objects(targets))
        return Matches(layers, proposals)

    def _match_pictures(self, logits, boxes, targets):
        """Return matches[d][i] of logits (D, N, n, classes) and boxes (D, N, n, 4)."""
        # all layers of a picture in one cost: one crossing to the host
        costs = [
            match_cost(
                logits[:, i], boxes[:, i], t, self.weights, self.alpha, self.gamma
            )
            for i, t in enumerate(targets)
        ]
        # a GPU works on the next cost while the host solves this one
        return [list(layer) for layer in zip(*map(hungarian, costs))]

    def _stage(self, stage, targets, pairs, num_boxes):
        """Return one stage's {name: () array} and the gradients (dlogits, dboxes)."""
        xp = get_xp(stage.logits)
        queries = xp.asarray(np.concatenate([q for q, _ in pairs]))
        pictures = xp.asarray(np.repeat(range(len(pairs)), [len(q) for q, _ in pairs]))
        chosen = [(t.labels[j], t.boxes[j]) for t, (_, j) in zip(targets, pairs)]
        labels, aims = (xp.asarray(np.concatenate(a)) for a in zip(*chosen))
        matched = pictures, queries

        ce, dlogits = self._class_loss(stage.logits, matched, labels, num_boxes)
        bbox, overlap, dboxes = self._box_losses(stage.boxes, matched, aims, num_boxes)
        best = stage.logits.argmax(-1)
        figures = {
            'loss_ce': ce,
            'loss_bbox': bbox,
            'loss_giou': overlap,
            'cardinality_error': cardinality_error(best, self.num_classes, targets),
        }
        if not stage.suffix:
            figures['class_error'] = xp.asarray(class_error(best[matched], labels))
        figures = {name + stage.suffix: v for name, v in figures.items()}
        return figures, (dlogits, dboxes)

    def _class_loss(self, logits, matched, labels, num_boxes):
        """Return the focal loss of all queries and classes, and ∂total/∂logits."""
        positive = get_xp(logits).zeros(logits.shape, bool)
        positive[(*matched, labels)] = True
        ce, cache = sigmoid_focal_loss(logits, positive, self.alpha, self.gamma)
        dlogits = sigmoid_focal_loss_backward(self.weights.ce / num_boxes, cache)
        return ce.sum() / num_boxes, dlogits

    def _box_losses(self, boxes, matched, aims, num_boxes):
        """Return L1 and 1 − GIoU of the matched boxes, and ∂total/∂boxes."""
        xp = get_xp(boxes)
        chosen = boxes[matched]
        distance, sign = l1(chosen, aims)
        overlap, cache = giou(cxcywh_to_xyxy(chosen), cxcywh_to_xyxy(aims))

        each = xp.full(len(aims), 1 / num_boxes, boxes.dtype)
        dchosen, _ = l1_backward(self.weights.bbox * each[:, None], sign)
        dcorners, _ = giou_backward(-self.weights.giou * each, cache)
        dboxes = xp.zeros_like(boxes)
        # a query is matched once at most, so nothing needs to be summed
        dboxes[matched] = dchosen + cxcywh_to_xyxy_backward(dcorners)
        return distance.sum() / num_boxes, (1 - overlap).sum() / num_boxes, dboxes


def class_error(best, labels):
    """Return the percentage of labels that best misses; 100 of none.

    Parameters
    ----------
    best : (n,) int array
        Best class of each matched query.
    labels : (n,) int array
        Class of the target that it is matched to.

    Returns
    -------
    () array or float
        In [0, 100].
    """
    return 100 - 100 * (best == labels).mean() if len(labels) else 100.0


def cardinality_error(best, num_classes, targets):
    """Return |queries whose best class is not the last − targets|, mean over pictures.

    Parameters
    ----------
    best : (N, Nq) int array
        Best class of each query.
    num_classes : int
        The last of them is num_classes − 1.
    targets : list of Target
        One a picture; on the host.

    Returns
    -------
    () array
        0 or more.
    """
    found = (best != num_classes - 1).sum(1)
    there = get_xp(best).asarray([len(t.labels) for t in targets])
    return abs(found - there).mean()


def _need_finite(stages, cache):
    """Raise NotFiniteError that names the first prediction with a NaN or infinity."""
    xp = get_xp(stages[0].logits)
    names = [(s, name) for s in stages for name in ('logits', 'boxes')]
    finite = [xp.isfinite(getattr(s, name)).all((1, 2)) for s, name in names]
    finite = to_host(xp.stack(finite))  # of each, by picture: one crossing
    if not finite.all():
        i, picture = np.unravel_index(finite.argmin(), finite.shape)
        stage, name = names[i]
        raise NotFiniteError(
            f'{name} of {stage.name}, picture {picture}, are not finite; '
            f'{_origin(cache)}: check this picture and the weights for NaN and '
            'infinity, or lower the learning rate'
        )


def _to_floats(parts):
    """Return dicts of () arrays as dicts of float: one crossing for all of them."""
    values = [v for part in parts for v in part.values()]
    floats = iter(to_host(get_xp(*values).stack(values)).tolist())
    return [{name: next(floats) for name in part} for part in parts]


def _need_finite_losses(stage, losses):
    for name, value in losses.items():
        if not math.isfinite(value):
            raise NotFiniteError(
                f'{name} is {value}, though the predictions of {stage.name} are '
                'finite: they are too large for their precision; check the weights '
                'or lower the learning rate'
            )


def _origin(cache):
    """Where it began, if the forward pass's cache is there to say."""
    if cache is None:
        return "criterion(…, cache=cache) with the forward pass's names the first layer"
    found = cache.first_not_finite()
    if found is None:  # the predictions or the weights were changed since
        return 'the forward pass, run again, is finite'
    return f'it begins here: {found}'


def _stages(out):
    """Return the Stages of an Output in the order they were computed."""
    stages = []
    if out.proposal_logits is not None:
        stages.append(
            Stage('the first stage', '_enc', out.proposal_logits, out.proposal_boxes)
        )
    last = len(out.logits) - 1
    for d, (logits, boxes) in enumerate(zip(out.logits, out.boxes)):
        suffix = '' if d == last else f'_{d}'
        stages.append(Stage(f'decoder layer {d}', suffix, logits, boxes))
    return stages


def _as_objects(targets):
    """Class 0 for every target: the first stage only tells objects from the rest."""
    return [Target(t.labels * 0, t.boxes) for t in targets]


def _like(out, gradients):
    """Put the stages' (dlogits, dboxes) where their predictions stand in `out`."""
    xp = get_xp(out.logits)
    proposal_logits = proposal_boxes = None
    if out.proposal_logits is not None:
        (proposal_logits, proposal_boxes), *gradients = gradients
    dlogits, dboxes = zip(*gradients)
    return out._replace(
        logits=xp.stack(dlogits),
        boxes=xp.stack(dboxes),
        proposal_logits=proposal_logits,
        proposal_boxes=proposal_boxes,
    )
