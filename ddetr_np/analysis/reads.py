"""What one query reads (Eq. 3), in pixels of its picture: the numbers of Figure 6."""

from typing import NamedTuple

import numpy as np

from ..backend import to_host
from ..evaluate.detection import class_name
from ..ops.activation import sigmoid
from ..ops.boxes import cxcywh_to_xyxy
from .look import decoder_sampling, encoder_sampling, index_of

NAME = 28  # characters of a class's name above its box


class Reads(NamedTuple):
    """What one query of one layer reads (Eq. 3), on its picture.

    Points are x, y in pixels of the picture, (0, 0) its top left; they may lie outside.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
        Upright, in its own size.
    reference : (2 or 4,) array
        The reference point, or the box x, y, w, h (centre and size).
    loc : (M, L, K, 2) array
        Sampling points.
    A : (M, L, K) array
        Attention weights; Σ_lk = 1.
    shapes : tuple of (H, W)
        The levels' maps, in tokens.
    title : str
        Of which layer and query.
    box : (4,) array or None
        x0, y0, x1, y1 that the layer predicts from what it read.
    label : str
        Category and confidence.
    """

    picture: np.ndarray
    reference: np.ndarray
    loc: np.ndarray
    A: np.ndarray
    shapes: tuple
    title: str = ''
    box: np.ndarray | None = None
    label: str = ''


def encoder_reads(seen, token, layer=-1, sampling=None):
    """Return what a token reads in an encoder layer.

    Parameters
    ----------
    seen : Look
        What `look` returned, with either `keep`.
    token : int
        Of all levels' tokens, finest level first, row by row; see `token_at`.
    layer : int
        From 0; negative ones count from the last.
    sampling : Sampling, optional
        The layer's, where it is known already.

    Returns
    -------
    Reads

    Raises
    ------
    InputError
        There is no such layer or token; says what there is.
    """
    layer = index_of(layer, len(seen.cache.encoder), 'encoder layer')
    token = index_of(token, sum(h * w for h, w in seen.cache.shapes), 'token')
    level, place = 0, token
    for h, w in seen.cache.shapes:
        if place < h * w:
            break
        level, place = level + 1, place - h * w
    y, x = divmod(place, w)
    title = f'encoder layer {layer}, token {x}, {y} of level {level}'
    sampling = sampling or encoder_sampling(seen, layer)
    return _reads(seen, sampling, token, title)


def decoder_reads(seen, query, layer=-1, label=None, sampling=None):
    """Return what a query reads in a decoder layer, and the box it then predicts.

    Parameters
    ----------
    seen : Look
        What `look` returned, with either `keep`.
    query : int
        Of the decoder; `seen.best.queries` has those of the detections.
    layer : int
        From 0; negative ones count from the last.
    label : int, optional
        The class to be named; if not given, the layer's best.
    sampling : Sampling, optional
        The layer's, where it is known already.

    Returns
    -------
    Reads

    Raises
    ------
    InputError
        There is no such layer, query or class; says what there is.
    """
    layers, _, Nq, classes = seen.out.logits.shape
    layer = index_of(layer, layers, 'decoder layer')
    query = index_of(query, Nq, 'query')
    scores, _ = sigmoid(to_host(seen.out.logits[layer, 0, query]))
    if label is None:
        label = int(scores.argmax())
    label = index_of(label, classes, 'class')
    name = class_name(seen.model.config, label)
    if len(name) > NAME:
        name = name[: NAME - 1] + '…'
    reads = _reads(
        seen,
        sampling or decoder_sampling(seen, layer),
        query,
        f'decoder layer {layer}, query {query}',
    )
    H, W = seen.picture.shape[:2]
    box = cxcywh_to_xyxy(to_host(seen.out.boxes[layer, 0, query])) * [W, H, W, H]
    return reads._replace(box=box, label=f'{name} {scores[label]:.2f}')


def _reads(seen, sampling, q, title):
    H, W = seen.picture.shape[:2]
    p_hat = sampling.p_hat[q]
    return Reads(
        seen.picture,
        p_hat * np.tile([W, H], len(p_hat) // 2),
        sampling.loc[q] * [W, H],
        sampling.A[q],
        sampling.shapes,
        title,
    )


def all_layers(seen, part, q, label=None):
    """Return what a token or query reads in each layer, the first layer first.

    Parameters
    ----------
    seen : Look
        What `look` returned, with either `keep`.
    part : {'encoder', 'decoder'}
        Whose layers.
    q : int
        The token, or the query.
    label : int, optional
        In the decoder, the class to be named.

    Returns
    -------
    list of Reads
    """
    if part == 'encoder':
        n = len(seen.cache.encoder)
        return [encoder_reads(seen, q, layer) for layer in range(n)]
    n = len(seen.out.logits)
    return [decoder_reads(seen, q, layer, label) for layer in range(n)]
