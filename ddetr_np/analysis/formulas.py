"""What attention costs on paper: A.1 term by term, Eq. 1 beside it, and whole models.

Every figure is a number of multiply-accumulates for one picture, exact where the
paper's O(·) leaves out factors of 2. A.1 is written for one level; with L of them HW is
S = Σ H_l W_l, and each head samples LK keys. `complexity` counts what a pass really
makes: the two agree to the unit.
"""

import math
from typing import NamedTuple

from ..config import BACKBONES, BOTTLENECK, VARIANTS
from ..ops.conv import conv_size

# A.1, for the deformable attention of Eqs. 2 and 3


def offsets_and_weights(Nq, C, M, K, L=1):
    """3 N_q C M L K: the linear map of z to 2MLK offsets and MLK weights.

    Parameters
    ----------
    Nq : int
        Queries.
    C, M, K, L : int
        Channels, heads, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return 3 * Nq * C * M * L * K


def output_product(Nq, C):
    """N_q C²: the W_m, once for each query.

    Parameters
    ----------
    Nq, C : int
        Queries, channels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return Nq * C**2


def value_before(S, C):
    """HW C²: the W'_m on every token, before anything is sampled.

    Parameters
    ----------
    S, C : int
        Tokens of all levels, channels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return S * C**2


def value_after(Nq, C, K, L=1):
    """N_q L K C²: the W'_m on every sampled key instead.

    Parameters
    ----------
    Nq : int
        Queries.
    C, K, L : int
        Channels, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return Nq * L * K * C**2


def interpolation(Nq, C, K, L=1):
    """4 N_q L K C: four corners of each sample.

    It is all the sampling that this package does: A_mlqk is multiplied into the corner
    weights, which all C_v channels share.

    Parameters
    ----------
    Nq : int
        Queries.
    C, K, L : int
        Channels, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return 4 * Nq * L * K * C


def weighted_sum(Nq, C, K, L=1):
    """N_q L K C: what makes the four corners A.1's five, Σ_k A_mlqk by itself.

    Parameters
    ----------
    Nq : int
        Queries.
    C, K, L : int
        Channels, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return Nq * L * K * C


def sampling(Nq, C, K, L=1):
    """5 N_q L K C of A.1: bilinear interpolation and the weighted sum.

    Parameters
    ----------
    Nq : int
        Queries.
    C, K, L : int
        Channels, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return interpolation(Nq, C, K, L) + weighted_sum(Nq, C, K, L)


def deform_attn(Nq, S, C, M, K, L=1):
    """N_q C² + min(HW C², N_q L K C²) + 5 N_q L K C + 3 N_q C M L K: all of A.1.

    Parameters
    ----------
    Nq : int
        Queries: all S tokens in the encoder.
    S : int
        Tokens to sample from, Σ HW.
    C, M, K, L : int
        Channels, heads, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return (
        output_product(Nq, C)
        + min(value_before(S, C), value_after(Nq, C, K, L))
        + sampling(Nq, C, K, L)
        + offsets_and_weights(Nq, C, M, K, L)
    )


def deform_attn_as_run(Nq, S, C, M, K, L=1):
    """A.1 as the released code and this package compute it: W'_m always goes first.

    Parameters
    ----------
    Nq : int
        Queries: all S tokens in the encoder.
    S : int
        Tokens to sample from, Σ HW.
    C, M, K, L : int
        Channels, heads, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return (
        output_product(Nq, C)
        + value_before(S, C)
        + interpolation(Nq, C, K, L)
        + offsets_and_weights(Nq, C, M, K, L)
    )


def simplifies(C, M, K, L=1):
    """Whether 5LK + 3MLK < C, so that A.1 is of O(2 N_q C² + min(HW C², N_q L K C²)).

    It holds for one level (116 < 256) and not for four (464 > 256): there the offsets,
    the weights and the sampling cost more than W_m does.

    Parameters
    ----------
    C, M, K, L : int
        Channels, heads, keys of a level and head, levels.

    Returns
    -------
    bool
        True if W_m costs more than these three.
    """
    return (5 + 3 * M) * L * K < C


def crossing(Nq, K, L=1):
    """N_q L K: with fewer tokens than this, W'_m is cheaper before sampling.

    In the encoder N_q = S: before, always. In the decoder a head's 300 queries read
    4,800 keys of four levels: beyond S = 4,800, a picture of some 480 × 480 pixels, A.1
    would have them sampled first. The released code never does, and neither does this
    package: a pass goes one way, and its result is the same.

    Parameters
    ----------
    Nq : int
        Queries.
    K, L : int
        Keys of a level and head, levels.

    Returns
    -------
    int
        Tokens S.
    """
    return Nq * L * K


def value_last(Nq, C, M, K, L=1):
    """N_q C² + 4 (M − 1) N_q L K C: what W'_m costs after sampling and summing.

    Not in the paper: a head's W'_m is the same for all keys and leaves the sum over
    them, Σ A W'_m x = W'_m Σ A x, so that one product a query is left. Each head then
    interpolates all C channels instead of its own C_v: the second term, which A.1
    leaves out of sampling first. Published decoders would gain from 825 tokens on.

    Parameters
    ----------
    Nq : int
        Queries.
    C, M, K, L : int
        Channels, heads, keys of a level and head, levels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return Nq * C**2 + (M - 1) * interpolation(Nq, C, K, L)


# Eq. 1, and its three uses in DETR


def attention(Nq, Nk, C):
    """2 N_q C² + 2 N_k C² + 2 N_q N_k C, of O(N_q C² + N_k C² + N_q N_k C).

    U and W on the queries, V and W' on the keys, the scores, and the weighted sum.

    Parameters
    ----------
    Nq, Nk, C : int
        Queries, keys, channels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return 2 * Nq * C**2 + 2 * Nk * C**2 + 2 * Nq * Nk * C


def detr_encoder(HW, C):
    """4 HW C² + 2 H²W² C, of O(H²W² C): every pixel asks every other.

    Parameters
    ----------
    HW, C : int
        Pixels of the one map, channels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return attention(HW, HW, C)


def detr_cross_attention(N, HW, C):
    """2 N C² + 2 HW C² + 2 N HW C, of O(HW C² + N HW C).

    Parameters
    ----------
    N : int
        Object queries, not pictures.
    HW, C : int
        Pixels of the one map, channels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return attention(N, HW, C)


def self_attention(N, C):
    """4 N C² + 2 N² C, of O(2 N C² + N² C); Deformable DETR's decoder keeps it.

    Parameters
    ----------
    N : int
        Object queries, not pictures.
    C : int
        Channels.

    Returns
    -------
    int
        Multiply-accumulates.
    """
    return attention(N, N, C)


# Whole models


class Work(NamedTuple):
    """Multiply-accumulates of a part of the model.

    Parameters
    ----------
    products : int
        Of its convolutions and matrix products.
    sampled : int
        Of bilinear interpolation, A_mlqk included: 4 N_q L K C an attention.
    """

    products: int
    sampled: int = 0

    @property
    def total(self):
        """As this package computes it."""
        return self.products + self.sampled

    @property
    def by_paper(self):
        """With A.1's five for the four of interpolation."""
        return self.products + self.sampled // 4 * 5


def feature_shapes(config, H, W):
    """Return [(H_l, W_l)] of the backbone's C2 … C5 for a picture of (H, W) pixels.

    Parameters
    ----------
    config : Config
        Its dilation keeps C5 at C4's size.
    H, W : int
        Pixels, padding included.

    Returns
    -------
    list of (int, int)
        Four sizes, the finest first.
    """
    # the stem's two maps with stride 2: kernels of 7 and 3
    H, W = (conv_size(conv_size(n, 7, 2, 3, 1), 3, 2, 1, 1) for n in (H, W))
    shapes = [(H, W)]
    for stage in (1, 2, 3):
        if stage < 3 or not config.dilation:
            H, W = _half(H), _half(W)
        shapes.append((H, W))
    return shapes


def level_shapes(config, H, W):
    """Return [(H_l, W_l)] of the L levels (A.2) for a picture of (H, W) pixels.

    Parameters
    ----------
    config : Config
        Its L and dilation count.
    H, W : int
        Pixels, padding included.

    Returns
    -------
    list of (int, int)
        L sizes, the finest first.
    """
    shapes = feature_shapes(config, H, W)[-min(config.L, 3) :]
    while len(shapes) < config.L:
        shapes.append(tuple(_half(n) for n in shapes[-1]))
    return shapes


def _half(n):
    return conv_size(n, 3, 2, 1, 1)


def model_work(config, H, W):
    """Return what a picture of (H, W) pixels costs, by part of the model.

    Counted are convolutions, matrix products and sampling. Left out is what is done
    number by number: norms, ReLU, softmax, sums, positions, and the corners' weights.

    Parameters
    ----------
    config : Config
        Of any model, published or not.
    H, W : int
        Pixels, padding included.

    Returns
    -------
    dict of str to Work
        'backbone', 'projections' (A.2), 'encoder', 'first stage', 'queries' (where the
        decoder starts from), 'decoder' and 'heads'.
    """
    C, D = config.C, config.decoder_layers
    shapes = level_shapes(config, H, W)
    S = sum(h * w for h, w in shapes)
    Nq = min(config.Nq, S) if config.two_stage else config.Nq
    box = 2 * C**2 + 4 * C  # of a box head; the class head is one map
    heads = Nq * (C * config.num_classes + box)
    if config.two_stage:
        first = S * (C**2 + C * config.num_classes + box)
        queries = Nq * (2 * C) ** 2
    else:
        first, queries = 0, Nq * 2 * C
    return {
        'backbone': Work(_backbone(config, H, W)),
        'projections': Work(_projections(config, shapes, feature_shapes(config, H, W))),
        'encoder': _layers(config, config.encoder_layers, S, S, 0),
        'first stage': Work(first),
        'queries': Work(queries),
        'decoder': _layers(config, D, Nq, S, self_attention(Nq, C)),
        'heads': Work(D * heads),
    }


def _layers(config, n, Nq, S, others):
    """Layers of deformable attention, a feed-forward network, and other products."""
    C, M, L, K = config.C, config.M, config.L, config.K
    sampled = interpolation(Nq, C, K, L)
    products = deform_attn_as_run(Nq, S, C, M, K, L) - sampled
    products += 2 * Nq * C * config.ffn + others
    return Work(n * products, n * sampled)


def _backbone(config, H, W):
    width = config.width
    bottleneck = config.backbone in BOTTLENECK
    pixels = [h * w for h, w in feature_shapes(config, H, W)]
    total = math.prod(conv_size(n, 7, 2, 3, 1) for n in (H, W)) * 49 * 3 * width
    I, before = width, pixels[0]
    for stage, blocks in enumerate(BACKBONES[config.backbone]):
        p, after = width * 2**stage, pixels[stage]
        O = 4 * p if bottleneck else p
        for i in range(blocks):
            if bottleneck:  # its first convolution comes before the stride
                total += before * I * p + after * (9 * p * p + p * O)
            else:
                total += after * 9 * (I * p + p * O)
            if i == 0 and (stage or I != O):
                total += after * I * O  # the shortcut
            I, before = O, after
    return total


def _projections(config, shapes, features):
    n = min(config.L, 3)
    expansion = 4 if config.backbone in BOTTLENECK else 1
    channels = [config.width * 2**s * expansion for s in range(4)]
    total, I = 0, channels[-1]
    for h, w in shapes[n:]:
        total += h * w * 9 * I * config.C
        I = config.C
    for (h, w), I in zip(features[-n:], channels[-n:]):
        total += h * w * I * config.C
    return total


# What was published


class Published(NamedTuple):
    """Of a variant, from the paper's tables and the released code.

    Parameters
    ----------
    giga : int
        10⁹ multiply-accumulates ("GFLOPs"), a mean over pictures of COCO.
    params : int
        What learns, with 91 classes.
    """

    giga: int
    params: int


PUBLISHED = {
    'single_scale': Published(78, 33_844_193),
    'single_scale_dc5': Published(128, 33_844_193),
    'multi_scale': Published(173, 39_847_265),
    'refine': Published(173, 40_627_260),
    'two_stage': Published(173, 40_959_129),
}
FROZEN = 222_400  # weights of the stem's and the first stage's convolutions
# Beside the published 800, the round width nearest to all five at once: between what
# pictures of 4 : 3 (1066) and of 3 : 2 (1200) are resized to.
SIZE = 800, 1100


class Difference(NamedTuple):
    """A variant's cost at one size, against the published one.

    Parameters
    ----------
    giga : float
        10⁹ multiply-accumulates, sampling counted as in A.1.
    published : int
        The same from the paper's tables.
    relative : float
        giga / published − 1.
    """

    giga: float
    published: int
    relative: float


def differences(H, W):
    """Return {variant: Difference} for a picture of (H, W) pixels.

    The authors point to A.1 for what sampling costs, so its five are counted here.

    Parameters
    ----------
    H, W : int
        Pixels.

    Returns
    -------
    dict of str → Difference
        By the names of `PUBLISHED`.
    """
    found = {}
    for name, published in PUBLISHED.items():
        work = model_work(VARIANTS[name], H, W)
        giga = sum(w.by_paper for w in work.values()) / 1e9
        found[name] = Difference(giga, published.giga, giga / published.giga - 1)
    return found
