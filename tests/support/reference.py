"""The official networks once more, in NumPy, from the papers' formulas; independent of trainer.models.

Arrays carry the official names ("block2/c1/W"). Everything works on float64 and on complex128: with a perturbation of
1e-30 in the imaginary part, the result's imaginary part is a directional derivative to machine precision. Branches
(ReLU) and the constants of spectral norm's backward pass (u, v) look at the real part alone.
"""

import numpy as np

EPS = 2e-5


def relu(x):
    return x * (x.real > 0)


def conv(x, weight, bias):
    size = weight.shape[-1]
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    y = np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3]))  # [n, h, w, o]
    return y.transpose(0, 3, 1, 2) + bias[None, :, None, None]


def double(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


def halve(x):
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def unit(vector):
    return vector / (np.sqrt((vector**2).sum()) + 1e-12)


def spectral(weight, u):
    """(weight / sigma, next u): one power iteration, sigma = u W v with the new u and v as constants."""
    matrix = weight.reshape(len(weight), -1)
    v = unit(matrix.real.T @ u.real)
    u = unit(matrix.real @ v)
    return weight / (u @ matrix @ v), u


def batch_norm(x, avg_mean, avg_var, train):
    """(normalised x, running mean, running variance) with Chainer's decay of 0.9 and unbiased running variance."""
    if not train:
        y = (x - avg_mean[None, :, None, None]) / np.sqrt(avg_var[None, :, None, None] + EPS)
        return y, avg_mean, avg_var
    mean = x.mean(axis=(0, 2, 3))
    centred = x - mean[None, :, None, None]
    var = (centred**2).mean(axis=(0, 2, 3))
    count = x.size // x.shape[1]
    y = centred / np.sqrt(var + EPS)[None, :, None, None]
    return y, 0.9 * avg_mean + 0.1 * mean, 0.9 * avg_var + 0.1 * var * count / (count - 1)


def _norm(arrays, name, x, y, train, moved):
    h, mean, var = batch_norm(x, arrays[f"{name}/avg_mean"], arrays[f"{name}/avg_var"], train)
    moved[f"{name}/avg_mean"], moved[f"{name}/avg_var"] = mean, var
    if f"{name}/gammas/W" not in arrays:
        return h * arrays[f"{name}/gamma"][None, :, None, None] + arrays[f"{name}/beta"][None, :, None, None]
    gammas, betas = arrays[f"{name}/gammas/W"], arrays[f"{name}/betas/W"]
    if y.ndim == 2:  # class weights
        gain, bias = y @ gammas, y @ betas
    else:
        gain, bias = gammas[y], betas[y]
    return h * gain[:, :, None, None] + bias[:, :, None, None]


def generator(arrays, z, y, train, blocks):
    """(images, arrays that the pass moved). `blocks`: number of residual blocks."""
    moved = {}
    h = (z @ arrays["l1/W"].T + arrays["l1/b"]).reshape(len(z), -1, 4, 4)
    for n in range(2, 2 + blocks):
        b = f"block{n}"
        r = double(relu(_norm(arrays, f"{b}/b1", h, y, train, moved)))
        r = conv(r, arrays[f"{b}/c1/W"], arrays[f"{b}/c1/b"])
        r = relu(_norm(arrays, f"{b}/b2", r, y, train, moved))
        r = conv(r, arrays[f"{b}/c2/W"], arrays[f"{b}/c2/b"])
        h = r + conv(double(h), arrays[f"{b}/c_sc/W"], arrays[f"{b}/c_sc/b"])
    last = 2 + blocks
    h = relu(_norm(arrays, f"b{last}", h, y, train, moved))
    tail = "c5" if f"c{last}/W" in arrays else f"l{last}"
    return np.tanh(conv(h, arrays[f"{tail}/W"], arrays[f"{tail}/b"])), moved


def discriminator(arrays, x, y, blocks, halvings):
    """(logits [B], the u that the pass moved) of the projection or the concat discriminator."""
    moved = {}

    def weight(name):
        w, moved[f"{name}/u"] = spectral(arrays[f"{name}/W"], arrays[f"{name}/u"].reshape(-1))
        return w

    def sn_conv(h, name):
        return conv(h, weight(name), arrays[f"{name}/b"])

    r = halve(sn_conv(relu(sn_conv(x, "block1/c1")), "block1/c2"))
    h = r + sn_conv(halve(x), "block1/c_sc")
    head = f"l{blocks + 1}"
    concat = arrays["l_y/W"].shape[1] != arrays[f"{head}/W"].shape[1] if "l_y/W" in arrays else False
    for n in range(2, blocks + 1):
        if concat and n == 4:
            e = weight("l_y")[y]
            h = np.concatenate([h, np.tile(e[:, :, None, None], (1, 1, *h.shape[2:]))], axis=1)
        b = f"block{n}"
        r = sn_conv(relu(sn_conv(relu(h), f"{b}/c1")), f"{b}/c2")
        s = sn_conv(h, f"{b}/c_sc") if f"{b}/c_sc/W" in arrays else h
        h = halve(r) + halve(s) if n <= halvings else r + s
    h = relu(h).sum(axis=(2, 3))
    logits = (h @ weight(head).T)[:, 0]
    if f"{head}/b" in arrays:
        logits = logits + arrays[f"{head}/b"]
    if "l_y/W" in arrays and not concat:
        logits = logits + (weight("l_y")[y] * h).sum(1)
    return logits, moved


def slope(function, arrays, direction):
    """d/dt function(arrays + t direction) at t = 0, by a complex step; `function` returns a scalar."""
    step = 1e-30
    moved = {k: a + 1j * step * direction[k] if k in direction else a for k, a in arrays.items()}
    return function(moved).imag / step
