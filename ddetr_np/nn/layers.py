"""Modules of one operation each: Params, and the calls that use them."""

from .. import ops
from ..module import EVAL, Module, Param


class Linear(Module):
    """y = x Wᵀ + b.

    Parameters
    ----------
    weight : (O, I) array
    bias : (O,) array
    """

    def __init__(self, weight, bias):
        self.weight, self.bias = Param(weight), Param(bias)

    def forward(self, x):
        """Map (..., I) to (..., O)."""
        return ops.linear.linear(x, self.weight.data, self.bias.data)

    def backward(self, dy, cache, need_dx=True):
        """Add to the gradients; return dx (..., I), or None if it is not needed."""
        dx, dW, db = ops.linear.linear_backward(dy, cache, need_dx)
        self.weight.grad += dW
        self.bias.grad += db
        return dx


class MLP(Module):
    """Linear maps with a ReLU between each two.

    Parameters
    ----------
    layers : list of Linear
    """

    def __init__(self, layers):
        self.layers = layers

    def forward(self, x):
        """Map (..., I) to (..., O)."""
        caches = []
        for i, layer in enumerate(self.layers):
            x, cache = layer.forward(x)
            active = None
            if i + 1 < len(self.layers):
                x, active = ops.activation.relu(x)
            caches.append((cache, active))
        return x, caches

    def backward(self, dy, caches):
        """Add to the gradients; return dx (..., I)."""
        for layer, (cache, active) in zip(self.layers[::-1], caches[::-1], strict=True):
            if active is not None:
                dy = ops.activation.relu_backward(dy, active)
            dy = layer.backward(dy, cache)
        return dy


class Conv2d(Module):
    """A convolution, channels last.

    Parameters
    ----------
    weight : (kh, kw, I, O) array
    bias : (O,) array or None
    stride, padding, dilation : int
    learns : bool
    """

    def __init__(
        self, weight, bias=None, stride=1, padding=0, dilation=1, learns=True
    ):
        self.weight = Param(weight, learns, conv=True)
        self.bias = None if bias is None else Param(bias, learns)
        self.geometry = (stride, padding, dilation)

    def forward(self, x):
        """Map (N, H, W, I) to (N, Ho, Wo, O)."""
        bias = None if self.bias is None else self.bias.data
        return ops.conv.conv2d(x, self.weight.data, bias, *self.geometry)

    def backward(self, dy, cache, need_dx=True):
        """Add to the gradients; return dx (N, H, W, I), or None if it is not needed."""
        learns = self.weight.learns
        need_db = learns and self.bias is not None
        dx, dW, db = ops.conv.conv2d_backward(dy, cache, need_dx, learns, need_db)
        if learns:
            self.weight.grad += dW
        if need_db:
            self.bias.grad += db
        return dx


class LayerNorm(Module):
    """Layer normalisation over C channels, initially the identity's scale and shift."""

    def __init__(self, C, init):
        self.weight, self.bias = Param(init.full(C, 1)), Param(init.full(C, 0))

    def forward(self, x):
        """Map (..., C) to (..., C)."""
        return ops.norm.layer_norm(x, self.weight.data, self.bias.data)

    def backward(self, dy, cache):
        """Add to the gradients; return dx (..., C)."""
        dx, dweight, dbias = ops.norm.layer_norm_backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx


class GroupNorm(Module):
    """Group normalisation over the pixels of a picture and C / groups channels."""

    def __init__(self, C, groups, init):
        self.weight, self.bias = Param(init.full(C, 1)), Param(init.full(C, 0))
        self.groups = groups

    def forward(self, x):
        """Map (N, H, W, C) to (N, H, W, C)."""
        return ops.norm.group_norm(x, self.weight.data, self.bias.data, self.groups)

    def backward(self, dy, cache):
        """Add to the gradients; return dx (N, H, W, C)."""
        dx, dweight, dbias = ops.norm.group_norm_backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx


MOMENTUM = 0.1  # of a batch norm's running statistics


class BatchNorm(Module):
    """Batch normalisation: frozen (all four arrays are constants), or learning.

    Parameters
    ----------
    C : int
    init : Init
    frozen : bool
    """

    def __init__(self, C, init, frozen=True):
        self.weight = Param(init.full(C, 1), buffer=frozen)
        self.bias = Param(init.full(C, 0), buffer=frozen)
        self.running_mean = Param(init.full(C, 0), buffer=True)
        self.running_var = Param(init.full(C, 1), buffer=True)
        self.frozen = frozen

    def affine(self):
        """Return (scale, shift), each (C,), of the frozen norm."""
        return ops.norm.frozen_batch_norm(
            self.weight.data,
            self.bias.data,
            self.running_mean.data,
            self.running_var.data,
        )

    def forward(self, x, run=EVAL):
        """Map (N, H, W, C) to (N, H, W, C), by the batch's statistics in training."""
        weight, bias = self.weight.data, self.bias.data
        mean, var = self.running_mean.data, self.running_var.data
        if not run.train:
            y, cache = ops.norm.running_batch_norm(x, weight, bias, mean, var)
            return y, (cache, False)
        y, cache, batch_mean, batch_var = ops.norm.batch_norm(x, weight, bias)
        if not run.again:
            n = x.size // x.shape[-1]
            unbiased = batch_var * (n / max(1, n - 1))
            for running, batch in ((mean, batch_mean), (var, unbiased)):
                running *= 1 - MOMENTUM
                running += MOMENTUM * batch
        return y, (cache, True)

    def backward(self, dy, cache):
        """Add to the gradients; return dx (N, H, W, C)."""
        cache, by_batch = cache
        backward = (
            ops.norm.batch_norm_backward
            if by_batch
            else ops.norm.running_batch_norm_backward
        )
        dx, dweight, dbias = backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx


class Dropout(Module):
    """Dropout; the model gives each one its own stream of random numbers."""

    def __init__(self, p):
        self.p = p
        self.stream = 0

    def key(self, run):
        """Return the key of the mask in this run, or None when nothing is dropped."""
        return (run.seed, run.step, self.stream) if run.train and self.p else None

    def forward(self, x, run=EVAL):
        """Drop values of x in training."""
        return ops.dropout.dropout(x, self.p, self.key(run))

    def backward(self, dy, cache):
        """Return dx."""
        return ops.dropout.dropout_backward(dy, cache)
