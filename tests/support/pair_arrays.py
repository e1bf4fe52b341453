"""The super-resolution networks of the official branch `sr` once more, in NumPy, from its facts; independent of trainer/.

Arrays carry our names ("blocks.0.conv1.weight"). As in tests/support/reference.py, a complex step of 1e-30 gives directional
derivatives to machine precision.
"""

import numpy as np

from tests.support.reference import batch_norm, conv, double, halve, relu, spectral

BLOCKS = [False, False, False, False, True, False, True, False]  # which blocks of the generator double the map
FIRST, LAST = [False, True, False], [True, True, True, False]  # which blocks of the discriminator halve it


def _norm(arrays, name, x, train, moved):
    mean, variance = arrays[f"{name}.running_mean"], arrays[f"{name}.running_var"]
    y, moved[f"{name}.running_mean"], moved[f"{name}.running_var"] = batch_norm(x, mean, variance, train)
    return y * arrays[f"{name}.weight"][:, None, None] + arrays[f"{name}.bias"][:, None, None]


def upscale(arrays, small, noise, train=True):
    """(images, the running statistics that the pass moved); `noise`: one array for each doubling block, or none."""
    moved, left = {}, list(noise)
    h = small
    for number, doubles in enumerate(BLOCKS):
        b = f"blocks.{number}"
        r = relu(_norm(arrays, f"{b}.norm1", h, train, moved))
        s = h
        if doubles:
            if left:
                r = np.concatenate([r, left.pop(0)], axis=1)
            r, s = double(r), double(h)
        r = conv(r, arrays[f"{b}.conv1.weight"], arrays[f"{b}.conv1.bias"])
        r = relu(_norm(arrays, f"{b}.norm2", r, train, moved))
        r = conv(r, arrays[f"{b}.conv2.weight"], arrays[f"{b}.conv2.bias"])
        if f"{b}.shortcut.weight" in arrays:
            s = conv(s, arrays[f"{b}.shortcut.weight"], arrays[f"{b}.shortcut.bias"])
        h = r + s
    h = relu(_norm(arrays, "norm", h, train, moved))
    return np.tanh(conv(h, arrays["conv.weight"], arrays["conv.bias"])), moved


def judge(arrays, images, small, scaled=True):
    """(logits [B], the u that the pass moved)."""
    moved = {}

    def weight(name):
        w, moved[f"{name}.u"] = spectral(arrays[f"{name}.weight"], arrays[f"{name}.u"])
        return w

    def sn(x, name):
        return conv(x, weight(name), arrays[f"{name}.bias"])

    h = halve(sn(relu(sn(images, "first.0.conv1")), "first.0.conv2")) + sn(halve(images), "first.0.shortcut")

    def block(h, b, halves):
        r = sn(relu(sn(relu(h), f"{b}.conv1")), f"{b}.conv2")
        s = sn(h, f"{b}.shortcut") if f"{b}.shortcut.weight" in arrays else h
        return halve(r) + halve(s) if halves else r + s

    for number, halves in enumerate(FIRST, start=1):
        h = block(h, f"first.{number}", halves)
    inner = 0.0
    if "projection.weight" in arrays:
        inner = (sn(h, "projection") * small).sum((1, 2, 3))
        if scaled:
            inner = inner / np.sqrt(small.shape[1] * small.shape[2] * small.shape[3])
    else:
        h = np.concatenate([h, small], axis=1)
    for number, halves in enumerate(LAST):
        h = block(h, f"last.{number}", halves)
    pooled = relu(h).sum((2, 3))
    if scaled:
        pooled = pooled / np.sqrt(h.shape[2] * h.shape[3])
    return (pooled @ weight("linear").T)[:, 0] + arrays["linear.bias"] + inner, moved
