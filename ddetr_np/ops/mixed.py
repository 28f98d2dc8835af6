"""Mixed precision: which operations have half-precision values, and which have not.

Half precision has 11 bits, and nothing above 65,504. It is enough for factors, whose
products are summed in single precision, and for what is kept between operations: maps,
tokens, queries, and their gradients. It is not enough for

- weights, their gradients' sums and the optimiser: a step may change a weight by less
  than its last bit (the `Param`s stay as they are; a product rounds a copy of them);
- the inside of norms and of the softmax, losses: sums over many values;
- places: of a map of 1,000 pixels half precision tells every second one. Reference
  points, sampling locations and boxes stay single, and so do the maps to less than
  `NARROW` channels that make them. Tensor cores would gain nothing there.

Gradients of half precision would vanish below 6e-8: the loss is scaled up first (see
`train.loss_scale`). Registered here, and used inside a `backend.mixed` block.
"""

import numpy as np

from ..backend import get_xp, in_mixed
from .activation import softmax, softmax_backward
from .attention import attention, attention_backward
from .conv import conv2d, conv2d_backward, conv_norm_relu, conv_norm_relu_backward
from .feed_forward import feed_forward, feed_forward_backward
from .linear import linear, linear_backward
from .losses import sigmoid_focal_loss, sigmoid_focal_loss_backward
from .ms_deform_attn import (
    ms_deform_attn,
    ms_deform_attn_backward,
    sampling_locations,
    sampling_locations_backward,
)
from .norm import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
)

HALF, SINGLE = np.dtype('float16'), np.dtype('float32')
NARROW = 8  # channels that fill the 16 bytes a tensor core reads at once


def _rounded(a, dtype):
    """An array of floats in another precision; anything else as it is."""
    if isinstance(a, (np.ndarray, get_xp(a).ndarray)) and a.dtype.kind == 'f':
        return a.astype(dtype, copy=False)
    return a


def _all(dtype, arrays):
    return [_rounded(a, dtype) for a in arrays]


@in_mixed(conv2d, conv_norm_relu, attention, feed_forward)
def _half(run, *args, **kwargs):
    kwargs = {name: _rounded(a, HALF) for name, a in kwargs.items()}
    return run(*_all(HALF, args), **kwargs)


@in_mixed(linear)
def _linear(run, x, W, b):
    return run(*_all(HALF if len(W) >= NARROW else SINGLE, (x, W, b)))


@in_mixed(ms_deform_attn)
def _core(run, value, shapes, loc, A):
    return run(_rounded(value, HALF), shapes, *_all(SINGLE, (loc, A)))


@in_mixed(
    conv2d_backward, conv_norm_relu_backward, attention_backward, feed_forward_backward,
    linear_backward, ms_deform_attn_backward,
)
def _like_forward(run, dy, cache, *args, **kwargs):
    return run(_rounded(dy, _first(cache).dtype), cache, *args, **kwargs)


def _first(cache):
    """The first array of a cache: what was multiplied."""
    return _first(cache[0]) if isinstance(cache, tuple) else cache


@in_mixed(
    softmax, softmax_backward, sampling_locations, sampling_locations_backward,
    sigmoid_focal_loss, sigmoid_focal_loss_backward,
)
def _single(run, *args, **kwargs):
    return run(*_all(SINGLE, args), **kwargs)


@in_mixed(
    layer_norm, layer_norm_backward, group_norm, group_norm_backward, batch_norm,
    batch_norm_backward,
)
def _norm(run, *args, **kwargs):
    y, *rest = run(*_all(SINGLE, args), **kwargs)
    return _rounded(y, HALF), *rest
