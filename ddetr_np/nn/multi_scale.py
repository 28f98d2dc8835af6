"""Multi-scale feature maps (A.2): C3–C5 with C channels each, coarser ones from C5."""

from ..backend import get_xp
from ..module import Module
from .layers import Conv2d, GroupNorm


class MultiScale(Module):
    """1×1 convolutions of the last min(L, 3) stages, then 3×3 ones of stride 2.

    The first of the coarser maps is made of C5 itself, each further one of the map
    before it. A GroupNorm follows every convolution.

    Parameters
    ----------
    config : Config
        Gives L, C and the norms' groups.
    channels : list of int
        Of C2 … C5.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, channels, init):
        C = config.C
        self.projections = []
        self._stages = list(range(4))[-min(config.L, 3) :]
        for l in range(config.L):
            if l < len(self._stages):
                W, geometry = (1, 1, channels[self._stages[l]], C), (1, 0)
            else:
                I = channels[-1] if l == len(self._stages) else C
                W, geometry = (3, 3, I, C), (2, 1)
            conv = Conv2d(init.xavier(W), init.full(C, 0), *geometry)
            self.projections.append([conv, GroupNorm(C, config.groups, init)])

    def forward(self, features):
        """Make the L maps.

        Parameters
        ----------
        features : list of (N, H, W, channels) arrays
            C2 … C5, each with its own size and channels.

        Returns
        -------
        maps : list of (N, H_l, W_l, C) arrays
            One for each level, the finest first.
        caches : list of (conv, norm)
            Of each level's convolution and norm.
        """
        maps, caches = [], []
        for l, (conv, norm) in enumerate(self.projections):
            y, conv_cache = conv.forward(self._source(l, features, maps))
            y, norm_cache = norm.forward(y)
            maps.append(y)
            caches.append((conv_cache, norm_cache))
        return maps, caches

    def _source(self, l, features, maps):
        n = len(self._stages)
        if l < n:
            return features[self._stages[l]]
        return features[-1] if l == n else maps[-1]

    def backward(self, dmaps, caches, need_dx=True):
        """Add to the gradients.

        Parameters
        ----------
        dmaps : list of (N, H_l, W_l, C) arrays
            ∂loss/∂maps.
        caches : list
            Of `forward`.
        need_dx : bool
            False where the backbone does not learn.

        Returns
        -------
        dfeatures : list of array or None
            Of C2 … C5, like them; None where there is none.
        """
        n = len(self._stages)
        dmaps = list(dmaps)
        dfeatures = [None] * 4
        for l in range(len(dmaps))[::-1]:
            conv, norm = self.projections[l]
            conv_cache, norm_cache = caches[l]
            dy = norm.backward(dmaps[l], norm_cache)
            dx = conv.backward(dy, conv_cache, need_dx or l > n)
            if l > n:
                dmaps[l - 1] = dmaps[l - 1] + dx
            elif need_dx:
                stage = 3 if l == n else self._stages[l]
                d = dfeatures[stage]
                dfeatures[stage] = dx if d is None else d + dx
        return dfeatures


def level_masks(mask, shapes):
    """Return the picture's mask at each level: its nearest pixel, as published.

    Parameters
    ----------
    mask : (N, H, W) bool array
        True = padding.
    shapes : sequence of (H_l, W_l)
        Of the levels' maps.

    Returns
    -------
    list of (N, H_l, W_l) bool arrays
    """
    xp = get_xp(mask)

    def nearest(size, target):
        # single precision, as published: it decides where the quotient is whole
        step = xp.float32(size) / xp.float32(target)
        index = xp.floor(xp.arange(target, dtype='float32') * step).astype(xp.intp)
        return xp.minimum(index, size - 1)

    H, W = mask.shape[1:]
    return [mask[:, nearest(H, h)[:, None], nearest(W, w)] for h, w in shapes]
