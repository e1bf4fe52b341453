"""Random arrays under the names and with the shapes of the official code's snapshots."""

import itertools

import numpy as np

CLASSES, LATENT = 5, 6
# resolution: G's widths in units of ch, D's, D's halvings, whether D's head has a bias, name of G's last convolution
FORMS = {
    32: ((1, 1, 1, 1), (1, 1, 1, 1), 2, False, "c5"),
    64: ((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 5, True, "l6"),
    128: ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5, True, "l7"),
}


class Maker:
    """Names and shapes written down from the official files gen_models/resnet*.py and dis_models/snresnet*.py."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.arrays = {}

    def add(self, name, *shape, positive=False):
        values = self.rng.normal(size=shape) * 0.3
        self.arrays[name] = (np.abs(values) + 0.5 if positive else values).astype(np.float32)

    def affine(self, name, *shape):
        self.add(f"{name}/W", *shape)
        self.add(f"{name}/b", shape[0])

    def norm(self, name, channels, conditional):
        if conditional:
            self.add(f"{name}/gammas/W", CLASSES, channels)
            self.add(f"{name}/betas/W", CLASSES, channels)
        else:
            self.add(f"{name}/gamma", channels)
            self.add(f"{name}/beta", channels)
        self.add(f"{name}/avg_mean", channels)
        self.add(f"{name}/avg_var", channels, positive=True)
        self.arrays[f"{name}/N"] = np.array(0)

    def spectral(self, name, *shape, bias=True):
        self.add(f"{name}/W", *shape)
        self.add(f"{name}/u", 1, shape[0])
        if bias:
            self.add(f"{name}/b", shape[0])


def official_generator(resolution, ch=1, conditional=True):
    multipliers, *_, tail = FORMS[resolution]
    widths = [ch * m for m in multipliers]
    make = Maker()
    make.affine("l1", 16 * widths[0], LATENT)
    for n, (i, o) in enumerate(itertools.pairwise(widths), start=2):
        make.affine(f"block{n}/c1", o, i, 3, 3)
        make.affine(f"block{n}/c2", o, o, 3, 3)
        make.affine(f"block{n}/c_sc", o, i, 1, 1)
        make.norm(f"block{n}/b1", i, conditional)
        make.norm(f"block{n}/b2", o, conditional)
    make.norm(f"b{tail[1]}", widths[-1], conditional=False)
    make.affine(tail, 3, widths[-1], 3, 3)
    return make.arrays


def official_discriminator(resolution, ch=2, kind="projection"):
    _, multipliers, halvings, bias, _ = FORMS[resolution]
    widths = [ch * m for m in multipliers]
    make = Maker()
    make.spectral("block1/c1", widths[0], 3, 3, 3)
    make.spectral("block1/c2", widths[0], widths[0], 3, 3)
    make.spectral("block1/c_sc", widths[0], 3, 1, 1)
    for n, (i, o) in enumerate(itertools.pairwise(widths), start=2):
        i += 7 if kind == "concat" and n == 4 else 0
        make.spectral(f"block{n}/c1", i, i, 3, 3)
        make.spectral(f"block{n}/c2", o, i, 3, 3)
        if n <= halvings or i != o:
            make.spectral(f"block{n}/c_sc", o, i, 1, 1)
    make.spectral(f"l{len(widths) + 1}", 1, widths[-1], bias=bias)
    if kind != "none":
        make.spectral("l_y", CLASSES, 7 if kind == "concat" else widths[-1], bias=False)
    return make.arrays
