"""Modules of one operation each: Params, and the calls that use them."""

from .. import ops
from ..module import EVAL, Module, Param


class Linear(Module):
    """y = x Wᵀ + b.

    Parameters
    ----------
    weight, bias : (O, I) and (O,) arrays
        W and b to start with.
    """

    def __init__(self, weight, bias):
        self.weight, self.bias = Param(weight), Param(bias)

    def forward(self, x):
        """Apply the map.

        Parameters
        ----------
        x : (..., I) array
            Channels last.

        Returns
        -------
        y : (..., O) array
        cache
        """
        return ops.linear.linear(x, self.weight.data, self.bias.data)

    def backward(self, dy, cache, need_dx=True):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache
            From the forward.
        need_dx : bool
            False where x is no function of what learns: dx is None then.

        Returns
        -------
        dx : like x, or None
        """
        dx, dW, db = ops.linear.linear_backward(dy, cache, need_dx)
        self.weight.grad += dW
        self.bias.grad += db
        return dx


class MLP(Module):
    """Linear maps with a ReLU between each two.

    Parameters
    ----------
    layers : list of Linear
        In the order of computation.
    """

    def __init__(self, layers):
        self.layers = layers

    def forward(self, x):
        """Apply the maps.

        Parameters
        ----------
        x : (..., I) array
            With the channels of the first map's input.

        Returns
        -------
        y : (..., O) array
        caches : list of (cache, active)
            Of each map and the ReLU after it; no ReLU follows the last.
        """
        caches = []
        for i, layer in enumerate(self.layers):
            x, cache = layer.forward(x)
            active = None
            if i + 1 < len(self.layers):
                x, active = ops.activation.relu(x)
            caches.append((cache, active))
        return x, caches

    def backward(self, dy, caches):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        caches : list
            From the forward.

        Returns
        -------
        dx : like x
        """
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
        The kernel to start with.
    bias : (O,) array or None
        None for no bias.
    stride, padding, dilation : int
        In pixels, the same on both axes; padding is with zeros, on all four sides.
    learns : bool
        False for a frozen convolution.
    """

    def __init__(
        self, weight, bias=None, stride=1, padding=0, dilation=1, learns=True
    ):
        self.weight = Param(weight, learns, conv=True)
        self.bias = None if bias is None else Param(bias, learns)
        self.geometry = (stride, padding, dilation)

    def forward(self, x):
        """Convolve.

        Parameters
        ----------
        x : (N, H, W, I) array
            Maps, not yet padded.

        Returns
        -------
        y : (N, Ho, Wo, O) array
            Ho and Wo by `ops.conv.conv_size`.
        cache : ops.conv.ConvCache
        """
        bias = None if self.bias is None else self.bias.data
        return ops.conv.conv2d(x, self.weight.data, bias, *self.geometry)

    def backward(self, dy, cache, need_dx=True):
        """Add to the gradients, if it learns.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : ops.conv.ConvCache
            From the forward.
        need_dx : bool
            False where x is no function of what learns: dx is None then.

        Returns
        -------
        dx : like x, or None
        """
        learns = self.weight.learns
        need_db = learns and self.bias is not None
        dx, dW, db = ops.conv.conv2d_backward(dy, cache, need_dx, learns, need_db)
        if learns:
            self.weight.grad += dW
        if need_db:
            self.bias.grad += db
        return dx


class LayerNorm(Module):
    """Layer normalisation over C channels, initially the identity's scale and shift.

    Parameters
    ----------
    C : int
        Channels.
    init : Init
        Gives the dtype.
    """

    def __init__(self, C, init):
        self.weight, self.bias = Param(init.full(C, 1)), Param(init.full(C, 0))

    def forward(self, x):
        """Normalise over the last axis.

        Parameters
        ----------
        x : (..., C) array
            Each place has a mean and variance of its own.

        Returns
        -------
        y : (..., C) array
        cache : ops.norm.NormCache
        """
        return ops.norm.layer_norm(x, self.weight.data, self.bias.data)

    def backward(self, dy, cache):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : ops.norm.NormCache
            From the forward.

        Returns
        -------
        dx : like x
        """
        dx, dweight, dbias = ops.norm.layer_norm_backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx


class GroupNorm(Module):
    """Group normalisation over the pixels of a picture and C / groups channels.

    Parameters
    ----------
    C : int
        Channels.
    groups : int
        A divisor of C.
    init : Init
        Gives the dtype.
    """

    def __init__(self, C, groups, init):
        self.weight, self.bias = Param(init.full(C, 1)), Param(init.full(C, 0))
        self.groups = groups

    def forward(self, x):
        """Normalise each picture's groups of channels.

        Parameters
        ----------
        x : (N, H, W, C) array
            Its padded pixels are part of the statistics, as published.

        Returns
        -------
        y : (N, H, W, C) array
        cache : ops.norm.NormCache
        """
        return ops.norm.group_norm(x, self.weight.data, self.bias.data, self.groups)

    def backward(self, dy, cache):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : ops.norm.NormCache
            From the forward.

        Returns
        -------
        dx : like x
        """
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
        Channels.
    init : Init
        Gives the dtype.
    frozen : bool
        False where weight and bias learn and the statistics move in training.
    """

    def __init__(self, C, init, frozen=True):
        self.weight = Param(init.full(C, 1), buffer=frozen)
        self.bias = Param(init.full(C, 0), buffer=frozen)
        self.running_mean = Param(init.full(C, 0), buffer=True)
        self.running_var = Param(init.full(C, 1), buffer=True)
        self.frozen = frozen

    def affine(self):
        """Return the norm by its running statistics, an affine map of each channel.

        Returns
        -------
        scale, shift : (C,) arrays
            y = scale ⊙ x + shift.
        """
        return ops.norm.frozen_batch_norm(
            self.weight.data,
            self.bias.data,
            self.running_mean.data,
            self.running_var.data,
        )

    def forward(self, x, run=EVAL):
        """Normalise each channel, by the batch's statistics in training.

        Parameters
        ----------
        x : (N, H, W, C) array
            In training the running statistics move towards its own.
        run : Run
            Whether it is training; a recomputation leaves the running statistics alone.

        Returns
        -------
        y : (N, H, W, C) array
        cache : (ops.norm.NormCache, bool)
            With whether the statistics were the batch's.
        """
        weight, bias = self.weight.data, self.bias.data
        mean, var = self.running_mean.data, self.running_var.data
        if not run.train:
            y, cache = ops.norm.running_batch_norm(x, weight, bias, mean, var)
            return y, (cache, False)
        y, cache, batch_mean, batch_var = ops.norm.batch_norm(x, weight, bias)
        if not run.again:
            n = x.size // x.shape[-1]
            unbiased = batch_var * (n / max(1, n - 1))
            self.move(MOMENTUM * batch_mean, MOMENTUM * unbiased)
        return y, (cache, True)

    def move(self, mean, var):
        """Move the running statistics: r ← (1 − momentum) r + momentum · batch's.

        Parameters
        ----------
        mean, var : (C,) arrays
            The batch's, times the momentum. From zeros they are what is left, so that
            a pass in another process can be counted here.
        """
        for param, part in ((self.running_mean, mean), (self.running_var, var)):
            param.data *= 1 - MOMENTUM
            param.data += part

    def backward(self, dy, cache):
        """Add to the gradients.

        Parameters
        ----------
        dy : like y
            ∂loss/∂y.
        cache : (ops.norm.NormCache, bool)
            From the forward.

        Returns
        -------
        dx : like x
        """
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
    """How a composite drops values; the model gives each one its own random numbers.

    Parameters
    ----------
    p : float
        Probability of dropping a value, in [0, 1).
    """

    def __init__(self, p):
        self.p = p
        self.stream = 0

    def key(self, run):
        """Return the key of the mask in this run, or None when nothing is dropped.

        Parameters
        ----------
        run : Run
            Gives seed and step.

        Returns
        -------
        (int, int, int) or None
            Seed, step and this dropout's stream.
        """
        return (run.seed, run.step, self.stream) if run.train and self.p else None
