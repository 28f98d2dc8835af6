"""The backbone: a ResNet, channels last, with torchvision's names.

Convolution, norm, residual and ReLU are one operation where the batch norms are frozen
(published), or outside training where nothing is kept; else they are four.
"""

from typing import Any, NamedTuple

from .. import ops
from ..backend import replaceable
from ..config import BACKBONES, BOTTLENECK
from ..module import EVAL, Module, forward_keeping, recall
from .layers import BatchNorm, Conv2d


def _conv_norm(x, conv, bn, run, relu=True, residual=None, kept=True):
    """ReLU(bn(conv(x)) + residual), and a cache if it is to be kept."""
    if _constant(bn, run, kept):
        return ops.conv.conv_norm_relu(
            x, conv.weight.data, *bn.affine(), residual, relu, *conv.geometry
        )
    y, conv_cache = conv.forward(x)
    y, bn_cache = bn.forward(y, run)
    if residual is not None:
        y = ops.add.add(y, residual)
    active = None
    if relu:
        y, active = ops.activation.relu(y)
    return y, (conv_cache, bn_cache, active)


def _constant(bn, run, kept):
    """Whether the norm is one; outside training one that learns has constants, too."""
    return bn.frozen or not (run.train or kept)


def _conv_norm_backward(dy, cache, conv, bn, need_dx=True):
    """Add to the gradients; return dx and dresidual."""
    if bn.frozen:
        learns = conv.weight.learns
        dx, dW, dresidual = ops.conv.conv_norm_relu_backward(
            dy, cache, need_dx, learns
        )
        if learns:
            conv.weight.grad += dW
        return dx, dresidual
    conv_cache, bn_cache, active = cache
    if active is not None:
        dy = ops.activation.relu_backward(dy, active)
    return conv.backward(bn.backward(dy, bn_cache), conv_cache, need_dx), dy


class Stem(Module):
    """7 × 7 convolution, norm, ReLU, max pooling: a quarter of the picture's size.

    Parameters
    ----------
    conv1 : Conv2d
        Of stride 2, from 3 channels to width.
    bn1 : BatchNorm
        Of its output.
    """

    def __init__(self, conv1, bn1):
        self.conv1, self.bn1 = conv1, bn1

    def forward(self, x, run=EVAL):
        """Halve the size twice.

        Parameters
        ----------
        x : (N, H, W, 3) array
            Normalised pictures.
        run : Run
            What a norm that learns goes by.

        Returns
        -------
        y : (N, H/4, W/4, width) array
            Each half is rounded up.
        cache : (conv, pool)
        """
        y, conv = _conv_norm(x, self.conv1, self.bn1, run)
        y, pool = ops.pool.max_pool(y)
        return y, (conv, pool)

    @replaceable
    def infer(self, x, run=EVAL):
        """Return the pooled maps alone.

        Parameters
        ----------
        x, run
            As in `forward`.

        Returns
        -------
        y : (N, H/4, W/4, width) array
        """
        y, _ = _conv_norm(x, self.conv1, self.bn1, run, kept=False)
        return ops.pool.max_pool(y)[0]

    def backward(self, dy, cache, need_dx=True):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : (conv, pool)
            From the forward.
        need_dx : bool
            False where the pictures' gradient is not asked for: dx is None then.

        Returns
        -------
        dx : like x, or None
        """
        conv, pool = cache
        dy = ops.pool.max_pool_backward(dy, pool)
        return _conv_norm_backward(dy, conv, self.conv1, self.bn1, need_dx)[0]


class Block(Module):
    """A residual block: convolutions whose last one adds the shortcut before its ReLU.

    Parameters
    ----------
    I, planes, expansion : int
        Channels in; inside; and how many times more come out.
    stride, dilation : int
        Of its first 3×3 convolution; the shortcut takes the stride too. Basic blocks
        are not dilated.
    init : Init
        Draws the initial weights.
    frozen, frozen_norm : bool
        Whether the convolutions, and whether the norms, are constants.
    """

    def __init__(
        self, I, planes, expansion, stride, dilation, init, frozen, frozen_norm
    ):
        O = planes * expansion

        def conv(i, o, kernel, stride=1, dilation=1):
            W = init.kaiming((kernel, kernel, i, o))
            return Conv2d(W, None, stride, kernel // 2 * dilation, dilation, not frozen)

        def norm(channels):
            return BatchNorm(channels, init, frozen_norm)

        if expansion == 1:  # basic: 3×3, 3×3
            self.conv1, self.bn1 = conv(I, planes, 3, stride), norm(planes)
            self.conv2, self.bn2 = conv(planes, O, 3), norm(O)
            self._chain = [(self.conv1, self.bn1), (self.conv2, self.bn2)]
        else:  # bottleneck: 1×1, 3×3, 1×1
            self.conv1, self.bn1 = conv(I, planes, 1), norm(planes)
            self.conv2 = conv(planes, planes, 3, stride, dilation)
            self.bn2 = norm(planes)
            self.conv3, self.bn3 = conv(planes, O, 1), norm(O)
            self._chain = [
                (self.conv1, self.bn1),
                (self.conv2, self.bn2),
                (self.conv3, self.bn3),
            ]
        self.downsample = []
        if stride != 1 or I != O:
            self.downsample = [conv(I, O, 1, stride), norm(O)]

    def forward(self, x, run=EVAL):
        """Apply the convolutions, and add the shortcut.

        Parameters
        ----------
        x : (N, H, W, I) array
            The maps of the part before.
        run : Run
            What a norm that learns goes by.

        Returns
        -------
        y : (N, H/stride, W/stride, O) array
            O = planes · expansion; sizes are rounded up.
        cache : (down, caches)
            Of the shortcut's convolution, None where there is none, and of the others.
        """
        return self._apply(x, run, True)

    def infer(self, x, run=EVAL):
        """Return the block's maps alone.

        Parameters
        ----------
        x, run
            As in `forward`.

        Returns
        -------
        y : (N, H/stride, W/stride, O) array
        """
        norms = [self._chain[-1][1], *self.downsample[1:]]
        if (
            len(norms) == 1  # the shortcut is no convolution
            or len(self._chain) < 3
            or not all(_constant(bn, run, False) for bn in norms)
        ):
            return self._apply(x, run, False)[0]
        y = x
        for conv, bn in self._chain[:-1]:
            y, _ = _conv_norm(y, conv, bn, run, kept=False)
        (conv, bn), (other, other_bn) = self._chain[-1], self.downsample
        shortcut = x, other.weight.data, *other_bn.affine(), other.geometry[0]
        return ops.conv.joined_conv_norm_relu(
            y, conv.weight.data, *bn.affine(), shortcut
        )

    def _apply(self, x, run, kept):
        shortcut, down = x, None
        if self.downsample:
            shortcut, down = _conv_norm(x, *self.downsample, run, False, None, kept)
        caches = []
        y = x
        for conv, bn in self._chain:
            last = shortcut if conv is self._chain[-1][0] else None
            y, cache = _conv_norm(y, conv, bn, run, True, last, kept)
            caches.append(cache)
        return y, (down, caches)

    def backward(self, dy, cache, need_dx=True):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : (down, caches)
            From the forward.
        need_dx : bool
            False where x is no function of what learns: dx is None then.

        Returns
        -------
        dx : like x, or None
        """
        down, caches = cache
        dshortcut = None
        for i in range(len(caches))[::-1]:
            conv, bn = self._chain[i]
            dy, dresidual = _conv_norm_backward(
                dy, caches[i], conv, bn, need_dx or i > 0
            )
            if dshortcut is None:  # the last convolution comes first
                dshortcut = dresidual
        if self.downsample:
            dshortcut, _ = _conv_norm_backward(
                dshortcut, down, *self.downsample, need_dx
            )
        return ops.add.add(dy, dshortcut) if need_dx else None


class ResNetCache(NamedTuple):
    images: Any  # input of the frozen parts, which keep nothing else
    parts: list  # of the stem and each block


class ResNet(Module):
    """Stem and four stages; gives C2 … C5.

    What is frozen at the front keeps only the pictures: its backward pass is asked for
    only when the pictures' gradient is, and recomputes it then.

    Parameters
    ----------
    config : Config
        Gives backbone, width, dilation, freeze_at and frozen_norm.
    init : Init
        Draws the initial weights.
    """

    def __init__(self, config, init):
        blocks = BACKBONES[config.backbone]
        expansion = 4 if config.backbone in BOTTLENECK else 1
        frozen = config.freeze_at >= 1
        W = init.kaiming((7, 7, 3, config.width))
        self.conv1 = Conv2d(W, None, 2, 3, learns=not frozen)
        self.bn1 = BatchNorm(config.width, init, config.frozen_norm or frozen)
        self._parts = [Stem(self.conv1, self.bn1)]
        self._ends = []  # index of each stage's last part
        channels = config.width
        for stage, n in enumerate(blocks):
            planes = config.width * 2**stage
            frozen = config.freeze_at >= stage + 2
            stride = 1 if stage == 0 else 2
            dilation = 1
            layer = []
            for i in range(n):
                if config.dilation and stage == 3:
                    # the stage keeps its resolution; its first block is not dilated
                    stride, dilation = 1, 1 if i == 0 else 2
                layer.append(
                    Block(
                        channels,
                        planes,
                        expansion,
                        stride if i == 0 else 1,
                        dilation,
                        init,
                        frozen,
                        config.frozen_norm or frozen,
                    )
                )
                channels = planes * expansion
            setattr(self, f'layer{stage + 1}', layer)
            self._parts += layer
            self._ends.append(len(self._parts) - 1)
        frozen_stages = config.freeze_at - 1
        self._frozen = 0  # how many parts at the front do not learn
        if frozen_stages >= 0:
            self._frozen = 1 + sum(blocks[:frozen_stages])
        self.learns = self._frozen < len(self._parts)
        self.channels = [config.width * 2**s * expansion for s in range(4)]

    @property
    def stem(self):
        """The first part, which has no name of its own in checkpoints."""
        return self._parts[0]

    def forward(self, images, keep='all', run=EVAL):
        """Return the maps C2 … C5 of the pictures.

        Parameters
        ----------
        images : (N, H, W, 3) array
            Normalised pictures.
        keep : {'all', 'inputs', 'none'}
            What to keep of each part that learns, as in `forward_keeping`.
        run : Run
            What norms that learn go by.

        Returns
        -------
        features : list of (N, H_l, W_l, channels) arrays
        cache : ResNetCache
        """
        x = images
        features, caches = [], []
        for i, part in enumerate(self._parts):
            kept = 'none' if i < self._frozen else keep
            x, cache = forward_keeping(part, kept, x, run=run)
            caches.append(cache)
            if i in self._ends:
                features.append(x)
        return features, ResNetCache(None if keep == 'none' else images, caches)

    def backward(self, dfeatures, cache, images=False):
        """Add to the gradients.

        Parameters
        ----------
        dfeatures : list of array or None
            Of C2 … C5; None where nothing comes back.
        cache : ResNetCache
            From the forward.
        images : bool
            Go on through the frozen parts to the pictures.

        Returns
        -------
        dimages : (N, H, W, 3) array or None
        """
        caches = list(cache.parts)
        frozen = self._frozen
        if images and frozen:
            x = cache.images
            for i, part in enumerate(self._parts[:frozen]):
                x, caches[i] = forward_keeping(part, 'inputs', x)
        first = 0 if images else frozen
        dx = None
        for i in range(first, len(self._parts))[::-1]:
            if i in self._ends:
                d = dfeatures[self._ends.index(i)]
                if d is not None:
                    dx = d if dx is None else ops.add.add(dx, d)
            part = self._parts[i]
            if dx is not None:
                dx = part.backward(dx, recall(part, caches[i]), images or i > first)
            caches[i] = None
        return dx if images else None
