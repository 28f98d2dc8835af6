"""One picture sent through a model, to be looked into: what A.5 and A.6 begin with."""

from typing import Any, NamedTuple

import numpy as np

from ..backend import get_xp, to_host
from ..data.pictures import read_picture
from ..data.prepare import normalise, pad_batch, resize
from ..errors import InputError
from ..evaluate.detection import detection_size
from ..evaluate.postprocess import postprocess
from ..module import recall
from ..nn.reference_points import encoder_reference_points


class Look(NamedTuple):
    """A picture and the pass it made.

    Parameters
    ----------
    model : DeformableDETR
    picture : (H, W, 3) uint8 array
        Upright, in its own size.
    images : (1, h, w, 3) array
        Resized and normalised: what the model saw.
    out : Output
    cache : Cache
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
    xp = get_xp(next(model.named_params())[1].data)
    images, mask = xp.asarray(images), xp.asarray(mask)
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


def encoder_sampling(seen, layer=-1):
    """Return where every token of every level reads in an encoder layer.

    Parameters
    ----------
    seen : Look
    layer : int
        From 0; negative ones count from the last.

    Raises
    ------
    InputError
        There is no such layer.
    """
    layers = seen.model.transformer.encoder.layers
    i = index_of(layer, len(layers), 'encoder layer')
    core = recall(layers[i], seen.cache.encoder[i]).self_attn.core
    p_hat = encoder_reference_points(seen.cache.shapes, seen.cache.ratios)[:, :, 0]
    return _sampling(p_hat, core, seen.cache.shapes)


def decoder_sampling(seen, layer=-1):
    """Return where every query reads in a decoder layer; as `encoder_sampling`."""
    layers = seen.model.transformer.decoder.layers
    i = index_of(layer, len(layers), 'decoder layer')
    core = recall(layers[i], seen.cache.decoder.layers[i]).cross_attn.core
    return _sampling(seen.cache.decoder.p_hats[i], core, seen.cache.shapes)


def _sampling(p_hat, core, shapes):
    # one picture has no padding: a fraction of its maps is one of the picture
    p_hat, loc, A = (to_host(a)[0] for a in (p_hat, core.loc, core.A))
    return Sampling(p_hat, loc, A, tuple(shapes))


def index_of(i, n, what):
    """Return i from 0 to n − 1; negative ones count from the end.

    Raises
    ------
    InputError
        There is no such thing; says what there is.
    """
    if not hasattr(i, '__index__') or not -n <= i < n:
        there = f'0 to {n - 1}' if n else 'none'
        raise InputError(f'there is no {what} {i}; this model has {there}')
    return int(i) % n
