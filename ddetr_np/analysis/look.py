"""One picture sent through a model, to be looked into: what A.5 and A.6 begin with."""

from typing import Any, NamedTuple

import numpy as np

from ..backend import pooled, to_device, to_host
from ..data.pictures import read_picture
from ..data.prepare import normalise, pad_batch, resize
from ..errors import InputError
from ..evaluate.detection import class_name, detection_size
from ..evaluate.postprocess import postprocess
from ..module import Inputs, recall
from ..nn.reference_points import encoder_reference_points


class Look(NamedTuple):
    """A picture and the pass it made.

    Parameters
    ----------
    model : DeformableDETR
        Which made it.
    picture : (H, W, 3) uint8 array
        Upright, in its own size.
    images : (1, h, w, 3) array
        Resized and normalised: what the model saw.
    out : Output
        What the model said, its arrays on its device.
    cache : Cache
        What the pass kept for the views and a backward pass.
    best : Best
        Scores, labels and boxes (pixels of `picture`) of all detections, best first,
        and the query of each.
    """

    model: Any
    picture: np.ndarray
    images: Any
    out: Any
    cache: Any
    best: Any


def look(model, picture, short=None, long=None, keep='inputs'):
    """Send a picture through a model and keep what the views need.

    Parameters
    ----------
    model : DeformableDETR
        On any device.
    picture : path, PIL image or array
        What `read_picture` takes.
    short, long : int, optional
        Pixels to which the sides are resized; the model's if not given.
    keep : {'inputs', 'all'}
        As in `DeformableDETR.forward`. With 'inputs' a layer that is looked into is
        computed again, and memory stays small.

    Returns
    -------
    Look

    Raises
    ------
    InputError
        The picture cannot be used.
    """
    picture = read_picture(picture)
    short, long = detection_size(model.config, short, long)
    images, mask = pad_batch([normalise(resize(picture, short, long))], model.dtype)
    images, mask = (to_device(a, model.device) for a in (images, mask))
    out, cache = model.forward(images, mask, keep=keep)
    every = out.logits.shape[2] * out.logits.shape[3]
    size = picture.shape[:2]
    (best,) = postprocess(out.logits[-1], out.boxes[-1], [size], every)
    return Look(model, picture, images, out, cache, best)


class Sampling(NamedTuple):
    """Where the queries of a layer read (Eq. 3), on the host.

    Points are x, y in [0, 1] of the picture, (0, 0) its top left; they may lie outside.

    Parameters
    ----------
    p_hat : (Nq, 2 or 4) array
        Reference points, or boxes cx, cy, w, h. In the encoder each token's own place.
    loc : (Nq, M, L, K, 2) array
        Sampling points φ_l(p̂) + Δp.
    A : (Nq, M, L, K) array
        Attention weights; Σ_lk = 1.
    shapes : tuple of (H, W)
        The levels' maps, in tokens.
    """

    p_hat: np.ndarray
    loc: np.ndarray
    A: np.ndarray
    shapes: tuple


@pooled()
def encoder_sampling(seen, layer=-1):
    """Return where every token of every level reads in an encoder layer.

    Parameters
    ----------
    seen : Look
        What `look` returned, with either `keep`.
    layer : int
        From 0; negative ones count from the last.

    Returns
    -------
    Sampling
        A row for each of the S tokens, finest level first, row by row.

    Raises
    ------
    InputError
        There is no such layer.
    """
    layers = seen.model.transformer.encoder.layers
    i = index_of(layer, len(layers), 'encoder layer')
    core = _self_attn(layers[i], seen.cache.encoder[i]).core
    p_hat = encoder_reference_points(seen.cache.shapes, seen.cache.ratios)[:, :, 0]
    return _sampling(p_hat, core, seen.cache.shapes)


def _self_attn(layer, cache):
    if not isinstance(cache, Inputs):
        return recall(layer, cache).self_attn
    # most of the layer's work follows its attention, and is not asked for
    x, pos, p_hat, shapes, padding = cache.inputs
    return layer.self_attn.forward(x + pos, p_hat, x, shapes, padding)[1]


@pooled()
def decoder_sampling(seen, layer=-1):
    """Return where every query reads in a decoder layer; as `encoder_sampling`.

    Parameters
    ----------
    seen : Look
        What `look` returned, with either `keep`.
    layer : int
        From 0; negative ones count from the last.

    Returns
    -------
    Sampling
        A row for each query.

    Raises
    ------
    InputError
        There is no such layer.
    """
    layers = seen.model.transformer.decoder.layers
    i = index_of(layer, len(layers), 'decoder layer')
    core = recall(layers[i], seen.cache.decoder.layers[i]).cross_attn.core
    return _sampling(seen.cache.decoder.p_hats[i], core, seen.cache.shapes)


def _sampling(p_hat, core, shapes):
    # one picture has no padding: a fraction of its maps is one of the picture
    p_hat, loc, A = (to_host(a)[0] for a in (p_hat, core.loc, core.A))
    return Sampling(p_hat, loc, A, tuple(shapes))


def pick_detection(seen, i=0, threshold=0.5):
    """Return the index in `seen.best` of the i-th detection, the best being 0.

    Parameters
    ----------
    seen : Look
        Its `best` holds the detections, best first.
    i : int
        Among those that score `threshold` or more.
    threshold : float
        In [0, 1].

    Returns
    -------
    int
        The same i, once it is known to exist.

    Raises
    ------
    InputError
        There is no such detection; says what there is.
    """
    best = seen.best
    n = int((best.scores >= threshold).sum())
    if n == 0:
        name = class_name(seen.model.config, int(best.labels[0]))
        raise InputError(
            f'nothing in this picture scores {threshold:g} or more; the best is {name} '
            f'with {best.scores[0]:.3f}: lower the threshold, or choose a query or a '
            'place'
        )
    if not hasattr(i, '__index__') or not 0 <= i < n:
        raise InputError(
            f'there is no detection {i}; those that score {threshold:g} or more are 0 '
            f'to {n - 1}'
        )
    return int(i)


def pick_query(seen, query):
    """Return the index in `seen.best` of a query's best class.

    Parameters
    ----------
    seen : Look
        Its `best` has every query under every class.
    query : int
        Of the decoder, from 0; negative ones count from the last.

    Returns
    -------
    int
        Of the query's (query, class) pairs the first, which scores best.

    Raises
    ------
    InputError
        There is no such query; says what there is.
    """
    query = index_of(query, seen.out.boxes.shape[2], 'query')
    return int(np.flatnonzero(seen.best.queries == query)[0])


def pick_place(seen, x, y):
    """Return the index in `seen.best` of the best box that holds a place.

    Where none does, it is the nearest one's.

    Parameters
    ----------
    seen : Look
        Of all its detections, however low they score, one is picked.
    x, y : float
        Pixels of the picture.

    Returns
    -------
    int
        Of equally near boxes, the one that scores best.

    Raises
    ------
    InputError
        The place is outside the picture.
    """
    check_place(seen.picture, x, y)
    x0, y0, x1, y1 = seen.best.boxes.T
    apart = (
        np.maximum(np.maximum(a - p, p - b), 0)
        for a, p, b in ((x0, x, x1), (y0, y, y1))
    )
    return int(np.hypot(*apart).argmin())  # the first of equals scores best


def token_at(seen, x, y, level=0):
    """Return the encoder's token nearest to a place, as a row of `encoder_sampling`.

    Parameters
    ----------
    seen : Look
        Gives the picture's size and the levels' maps.
    x, y : float
        Pixels of the picture.
    level : int
        From 0, the finest; negative ones count from the last.

    Returns
    -------
    int
        Of all levels' tokens, finest level first, row by row.

    Raises
    ------
    InputError
        The place is outside the picture, or there is no such level.
    """
    check_place(seen.picture, x, y)
    shapes = seen.cache.shapes
    level = index_of(level, len(shapes), 'level')
    (H, W), (h, w) = seen.picture.shape[:2], shapes[level]
    i, j = min(int(y / H * h), h - 1), min(int(x / W * w), w - 1)
    return sum(a * b for a, b in shapes[:level]) + i * w + j


def middle_token(seen, i):
    """Return the finest level's token in the middle of detection i of `seen.best`.

    A middle outside the picture is moved to its edge.

    Parameters
    ----------
    seen : Look
        Gives the boxes and the picture's size.
    i : int
        Index into `seen.best`: 0 is the best.

    Returns
    -------
    int
        As from `token_at`.
    """
    H, W = seen.picture.shape[:2]
    x0, y0, x1, y1 = seen.best.boxes[i]
    return token_at(
        seen, np.clip((x0 + x1) / 2, 0, W), np.clip((y0 + y1) / 2, 0, H)
    )


def check_place(picture, x, y):
    """Raise InputError if a place is outside a picture.

    Parameters
    ----------
    picture : (H, W, 3) array
        Only its size counts.
    x, y : float
        Pixels; 0 ≤ x ≤ W and 0 ≤ y ≤ H are inside.

    Raises
    ------
    InputError
        It is; says what range there is.
    """
    H, W = picture.shape[:2]
    if not (0 <= x <= W and 0 <= y <= H):
        raise InputError(
            f'the place {x:g}, {y:g} is outside the picture, which has x from 0 to {W} '
            f'and y from 0 to {H}'
        )


def index_of(i, n, what):
    """Return i from 0 to n − 1; negative ones count from the end.

    Parameters
    ----------
    i : int
        What was asked for, of any integer type.
    n : int
        How many there are.
    what : str
        What is counted, for the message: 'query', 'encoder layer', …

    Returns
    -------
    int
        Python's own.

    Raises
    ------
    InputError
        There is no such thing; says what there is.
    """
    if not hasattr(i, '__index__') or not -n <= i < n:
        there = f'0 to {n - 1}' if n else 'none'
        raise InputError(f'there is no {what} {i}; this model has {there}')
    return int(i) % n
