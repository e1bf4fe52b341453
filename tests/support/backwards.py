"""Layers in NumPy, float64, with their derivatives written out by hand; independent of torch and of trainer.models.

Each function returns (y, back): `back(dy)` adds the parameters' gradients to `grads` by name and returns the gradient with
respect to x. `grads` None: the parameters are constants.
"""

import numpy as np


def chain(x, *layers):
    """The layers one after another: (y, back)."""
    backs = []
    for layer in layers:
        x, back = layer(x)
        backs.append(back)

    def backward(dy):
        for back in reversed(backs):
            dy = back(dy)
        return dy

    return x, backward


def reflect(size):
    def layer(x):
        n, c, h, w = x.shape

        def source(length):  # ..., 2, 1, 0, 1, 2, ..., length - 1, length - 2, ...
            places = np.abs(np.arange(-size, length + size))
            return np.where(places >= length, 2 * (length - 1) - places, places)

        rows, columns = source(h), source(w)

        def back(dy):
            dx = np.zeros((n, c, h, w))
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    dx[:, :, row, column] += dy[:, :, i, j]
            return dx

        return x[:, :, rows][:, :, :, columns], back

    return layer


def convolution(params, grads, name, stride=1, padding=0):
    """Cross-correlation; weight [O, I, k, k], bias [O] where there is one."""
    weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    k = weight.shape[-1]

    def layer(x):
        padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        h, w = ((side - k) // stride + 1 for side in padded.shape[2:])

        def seen(array, i, j):  # what tap (i, j) of the kernel sees
            return array[:, :, i : i + stride * h : stride, j : j + stride * w : stride]

        y = np.zeros((len(x), len(weight), h, w))
        for i in range(k):
            for j in range(k):
                y += np.einsum("nihw,oi->nohw", seen(padded, i, j), weight[:, :, i, j])
        if bias is not None:
            y += bias[:, None, None]

        def back(dy):
            dx, dw = np.zeros_like(padded), np.zeros_like(weight)
            for i in range(k):
                for j in range(k):
                    dw[:, :, i, j] = np.einsum("nohw,nihw->oi", dy, seen(padded, i, j))
                    seen(dx, i, j)[...] += np.einsum("nohw,oi->nihw", dy, weight[:, :, i, j])
            _add(grads, f"{name}.weight", dw)
            if bias is not None:
                _add(grads, f"{name}.bias", dy.sum((0, 2, 3)))
            return dx[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]]

        return y, back

    return layer


def transposed(params, grads, name):
    """3x3, stride 2, padding 1, output padding 1: a pixel spreads its kernel over a map twice as large; weight [I, O, 3, 3]."""
    weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")

    def layer(x):
        n, _, h, w = x.shape

        def spread(array, i, j):  # where tap (i, j) puts each pixel: row 2r + i, column 2c + j
            return array[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2]

        whole = np.zeros((n, weight.shape[1], 2 * h + 2, 2 * w + 2))
        for i in range(3):
            for j in range(3):
                spread(whole, i, j)[...] += np.einsum("nihw,io->nohw", x, weight[:, :, i, j])
        y = whole[:, :, 1 : 2 * h + 1, 1 : 2 * w + 1].copy()
        if bias is not None:
            y += bias[:, None, None]

        def back(dy):
            dwhole = np.zeros_like(whole)
            dwhole[:, :, 1 : 2 * h + 1, 1 : 2 * w + 1] = dy
            dx, dw = np.zeros_like(x), np.zeros_like(weight)
            for i in range(3):
                for j in range(3):
                    dx += np.einsum("nohw,io->nihw", spread(dwhole, i, j), weight[:, :, i, j])
                    dw[:, :, i, j] = np.einsum("nihw,nohw->io", x, spread(dwhole, i, j))
            _add(grads, f"{name}.weight", dw)
            if bias is not None:
                _add(grads, f"{name}.bias", dy.sum((0, 2, 3)))
            return dx

        return y, back

    return layer


def instance_norm(params, grads, name):
    """Each sample's channel to mean 0 and variance 1 (biased, eps 1e-5), with gain and bias where there are some."""
    gain, shift = params.get(f"{name}.weight"), params.get(f"{name}.bias")

    def layer(x):
        centred = x - x.mean((2, 3), keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean((2, 3), keepdims=True) + 1e-5)
        unit = centred * scale
        y = unit if gain is None else unit * gain[:, None, None] + shift[:, None, None]

        def back(dy):
            if gain is not None:
                _add(grads, f"{name}.weight", (dy * unit).sum((0, 2, 3)))
                _add(grads, f"{name}.bias", dy.sum((0, 2, 3)))
                dy = dy * gain[:, None, None]
            mean, along = dy.mean((2, 3), keepdims=True), (dy * unit).mean((2, 3), keepdims=True)
            return scale * (dy - mean - unit * along)

        return y, back

    return layer


def leaky(slope):
    """x above 0, slope x below."""

    def layer(x):
        factor = np.where(x > 0, 1.0, slope)
        return x * factor, lambda dy: dy * factor

    return layer


def tanh(x):
    y = np.tanh(x)
    return y, lambda dy: dy * (1 - y**2)


def residual(*layers):
    def layer(x):
        y, back = chain(x, *layers)
        return x + y, lambda dy: dy + back(dy)

    return layer


def mean_absolute(x, y):
    """(mean |x - y|, its gradient with respect to x)."""
    return np.abs(x - y).mean(), np.sign(x - y) / x.size


def mean_square(x, wanted):
    """(mean (x - wanted)^2, its gradient)."""
    return ((x - wanted) ** 2).mean(), 2 * (x - wanted) / x.size


class Adam:
    """Kingma & Ba, algorithm 1: epsilon is added to the corrected root."""

    def __init__(self, rate, beta1, beta2, epsilon=1e-8):
        self.rate, self.beta1, self.beta2, self.epsilon = rate, beta1, beta2, epsilon
        self.t, self.m, self.v = {}, {}, {}

    def step(self, params, grads, factor=1.0):
        for name, g in grads.items():
            t = self.t[name] = self.t.get(name, 0) + 1
            m = self.m[name] = self.beta1 * self.m.get(name, 0.0) + (1 - self.beta1) * g
            v = self.v[name] = self.beta2 * self.v.get(name, 0.0) + (1 - self.beta2) * g**2
            root = np.sqrt(v / (1 - self.beta2**t)) + self.epsilon
            params[name] = params[name] - self.rate * factor * m / (1 - self.beta1**t) / root


def _add(grads, name, value):
    if grads is not None:
        grads[name] = grads.get(name, 0.0) + value
