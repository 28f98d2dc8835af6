"""The numbers of the explorer, small enough for one page."""

import base64
import io
import zlib

import numpy as np
from PIL import Image

from ...analysis.look import decoder_sampling, encoder_sampling
from ...backend import to_host
from ...errors import InputError
from ...evaluate.detection import class_name

COARSE = 700  # tokens of an encoder layer but the last
FINE = 24_000  # tokens of the last encoder layer: 9 MB at M = 8, L = K = 4
SIDE = 1333  # most pixels of the picture's long side in the page
SHOWN = 100  # detections


def pack(seen, threshold=0.3, norms=(), progress=None):
    """Return what the page needs, as JSON can hold it.

    Offsets are rounded to a 127th of their layer and level's longest (an eighth of a
    token or so), weights to a 255th of the layer's largest. The last encoder layer and
    the decoder are whole, the other encoder layers a coarser grid of tokens.

    Parameters
    ----------
    seen : Look
        Of one picture.
    threshold : float
        In [0, 1]: detections with a lower score are left out.
    norms : sequence of GradientNorms
        Maps of Figure 5 for some detections.
    progress : callable, optional
        Called with the number of layers done after each.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        No detection reaches the threshold.
    """
    model, cache = seen.model, seen.cache
    best = seen.best
    n = min(SHOWN, int((best.scores >= threshold).sum()))
    if not n:
        raise InputError(
            f'no detection scores {threshold:g} or more; the best has '
            f'{best.scores[0]:.3f}: lower --threshold'
        )
    H, W = seen.picture.shape[:2]
    layers = []
    E, D = len(cache.encoder), len(cache.decoder.layers)
    for i in range(E):
        sampling = encoder_sampling(seen, i)
        tokens = some_tokens(sampling.shapes, FINE if i == E - 1 else COARSE)
        layers.append({'tokens': encode(tokens.astype(np.int32))}
                      | _points(sampling, tokens, np.int8))
        if progress:
            progress(i + 1)
    decoder, boxes = [], to_host(seen.out.boxes)[:, 0].astype(np.float32)
    for d in range(D):
        sampling = decoder_sampling(seen, d)
        every = np.arange(len(sampling.A))
        decoder.append(
            {'p_hat': encode(sampling.p_hat.astype(np.float32)),
             'boxes': encode(boxes[d])}
            | _points(sampling, every, np.int16)
        )
        if progress:
            progress(E + d + 1)
    return {
        'picture': _picture(seen.picture),
        'size': [W, H],
        'shapes': [list(s) for s in cache.shapes],
        'M': model.config.M,
        'K': model.config.K,
        'encoder': layers,
        'decoder': decoder,
        'detections': [
            {
                'score': round(float(best.scores[i]), 4),
                'name': class_name(model.config, int(best.labels[i])),
                'query': int(best.queries[i]),
                'box': [round(float(v), 2) for v in best.boxes[i]],
            }
            for i in range(n)
        ],
        'maps': [_maps(norm) for norm in norms],
    }


def some_tokens(shapes, most):
    """Return indices of tokens on a grid of each level, `most` at about the most.

    Parameters
    ----------
    shapes : sequence of (H, W)
        Of the levels, in tokens.
    most : int
        A small level has one token at least, even beyond it.

    Returns
    -------
    tokens : (n,) int array
        Ascending.
    """
    step = 1
    while sum(-(-H // step) * -(-W // step) for H, W in shapes) > most:
        step += 1
    tokens, start = [], 0
    for H, W in shapes:
        grid = start + np.arange(H * W).reshape(H, W)
        tokens.append(grid[step // 2 :: step, step // 2 :: step].ravel())
        if not tokens[-1].size:  # a level smaller than the step
            tokens[-1] = grid[:1, :1].ravel()
        start += H * W
    return np.concatenate(tokens)


def _points(sampling, rows, dtype):
    """Offsets in tokens of their level, and weights, as small integers."""
    sizes = np.array([(W, H) for H, W in sampling.shapes], np.float64)
    centre = sampling.p_hat[rows, None, None, None, :2]
    offset = (sampling.loc[rows] - centre) * sizes[:, None]
    longest = np.abs(offset).max((0, 1, 3, 4))  # of each level
    most = np.iinfo(dtype).max
    step = np.maximum(longest, 1e-6) / most
    A = sampling.A[rows]
    largest = float(A.max())
    return {
        'step': step.tolist(),
        'offset': encode(np.rint(offset / step[:, None, None]).astype(dtype)),
        'largest': largest,
        'A': encode(np.rint(A / max(largest, 1e-12) * 255).astype(np.uint8)),
    }


def encode(array):
    """Return an array as JSON can hold it: deflated, in base 64.

    Parameters
    ----------
    array : (...) array
        Of numbers.

    Returns
    -------
    dict
        'type', the dtype's name, 'shape', and 'data', little-endian.
    """
    array = np.ascontiguousarray(array)
    raw = array.astype(array.dtype.newbyteorder('<')).tobytes()
    return {
        'type': array.dtype.name,
        'shape': list(array.shape),
        'data': base64.b64encode(zlib.compress(raw, 6)).decode(),
    }


def _picture(picture):
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    return _url(image, 'JPEG', quality=88)


def _maps(norm):
    """A detection's maps as grey pictures with their own transparency."""
    maps = {}
    for item, values in norm.maps.items():
        top = max(float(np.percentile(values, 99.5)), 1e-30)
        grey = np.rint((values / top).clip(0, 1) ** 0.5 * 255).astype(np.uint8)
        # bright where the gradient is large, the picture shining through elsewhere
        full = np.full_like(grey, 255)
        image = Image.fromarray(np.stack([full, 255 - grey // 2, grey * 0, grey], -1))
        image.thumbnail((640, 640))
        maps[item] = _url(image, 'PNG')
    return {'query': int(norm.query), 'maps': maps}


def _url(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return f'data:image/{kind.lower()};base64,{data}'
