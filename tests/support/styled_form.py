"""StyleGAN written a second time, as the official code has it, in float64 and without trainer/: see grown_form.py.

Here, too, everything is of the full size and a scalar `lod` says which levels count.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.grown_form import Arrays, OfficialForm, clip, down, lrelu, unit, up


def taps(x: Tensor, w: Tensor, gain: float) -> Tensor:
    """A convolution as a sum over the taps, w [O, I, k, k] without its constant."""
    k = w.shape[-1]
    he = gain / math.sqrt(w.shape[1] * k * k)
    height, width = x.shape[2:]
    padded = F.pad(x, [k // 2] * 4)
    parts = [
        torch.einsum("bihw,oi->bohw", padded[:, :, u : u + height, v : v + width], w[:, :, u, v] * he)
        for u in range(k)
        for v in range(k)
    ]
    return torch.stack(parts).sum(0)


def smooth(x: Tensor) -> Tensor:
    """[1, 2, 1] x [1, 2, 1] / 16 by shifts, zeros around."""
    p = F.pad(x, [1, 1, 0, 0])
    x = (p[..., :-2] + 2 * p[..., 1:-1] + p[..., 2:]) / 4
    p = F.pad(x, [0, 0, 1, 1])
    return (p[..., :-2, :] + 2 * p[..., 1:-1, :] + p[..., 2:, :]) / 4


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-x.abs())) + torch.clamp(x, min=0)


class StyledForm(OfficialForm):
    """Both networks, their losses, Adam, and the loop. `options` are the rows of Table 1."""

    def __init__(
        self, generator: Arrays, discriminator: Arrays, resolution: int, *, group: int, first: int, **options: bool
    ) -> None:
        super().__init__(generator, discriminator, resolution, unfused=False, group=group)
        self.first, self.options = int(math.log2(first)), options
        own = self.nets["generator"]
        self.stored = {k: own.pop(k) for k in list(own) if k.endswith(".stored")}
        self.w_average = own.pop("w_average.value")
        self.average = {k: v.clone() for k, v in own.items()}

    def map(self, a: Arrays, latents: Tensor, labels: Tensor) -> Tensor:
        x = latents
        if "mapping.embedding" in a:
            x = torch.cat([latents, a["mapping.embedding"][labels]], 1)
        x, layer = unit(x), 0
        while f"mapping.layers.{layer}.weight" in a:
            w = a[f"mapping.layers.{layer}.weight"]
            x = lrelu(x @ (w * (math.sqrt(2 / w.shape[1]) * 0.01)).T + a[f"mapping.layers.{layer}.bias"] * 0.01)
            layer += 1
        return x

    def ending(self, a: Arrays, name: str, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        if self.options["noise"]:
            x = x + noise * a[f"{name}.noise"].reshape(1, -1, 1, 1)
        x = lrelu(x + a[f"{name}.bias"].reshape(1, -1, 1, 1))
        if self.options["pixel_norm"]:
            x = unit(x)
        if self.options["instance_norm"]:
            x = x - x.mean((2, 3), keepdim=True)
            x = x / torch.sqrt((x * x).mean((2, 3), keepdim=True) + 1e-8)
        if self.options["styles"]:
            weight = a[f"{name}.style.weight"]
            y = w @ weight.T / math.sqrt(weight.shape[1]) + a[f"{name}.style.bias"]
            c = x.shape[1]
            x = x * (y[:, :c, None, None] + 1) + y[:, c:, None, None]
        return x

    def styled(self, a: Arrays, w: Sequence[Tensor], lod: Fraction, noise: Sequence[Tensor]) -> Tensor:
        """Images for the w [B, W] of each layer and the noise of each layer."""
        n = len(w[0])
        if self.options["constant_input"]:
            x = a["constant"].repeat(n, 1, 1, 1)
        else:
            weight = a["dense.weight"]
            x = (w[0] @ weight.T * (math.sqrt(2) / 4 / math.sqrt(weight.shape[1]))).reshape(n, -1, 4, 4)
        x = self.ending(a, "first", x, w[0], noise[0])
        x = self.ending(a, "second", taps(x, a["conv.weight"], math.sqrt(2)), w[1], noise[1])
        image = taps(x, a["to_rgb.4.weight"], 1.0) + a["to_rgb.4.bias"][None, :, None, None]
        for level in range(3, self.depth + 1):
            block, layer = f"blocks.{2**level}", 2 * level - 4
            x = taps(up(x), a[f"{block}.conv1.weight"], math.sqrt(2))
            x = self.ending(a, f"{block}.ending1", smooth(x) if self.options["blur"] else x, w[layer], noise[layer])
            x = taps(x, a[f"{block}.conv2.weight"], math.sqrt(2))
            x = self.ending(a, f"{block}.ending2", x, w[layer + 1], noise[layer + 1])
            rgb = taps(x, a[f"to_rgb.{2**level}.weight"], 1.0) + a[f"to_rgb.{2**level}.bias"][None, :, None, None]
            image = rgb + (up(image) - rgb) * clip(lod - (self.depth - level))
        return image

    def make(
        self,
        a: Arrays,
        latents: Sequence[Tensor],
        labels: Tensor,
        cutoff: int,
        lod: Fraction,
        noise: Sequence[Tensor],
    ) -> Tensor:
        """A training pass: the mean of w, then mixing; latents are the first and the second ones."""
        one = self.map(a, latents[0], labels)
        self.w_average = one.detach().mean(0) + 0.995 * (self.w_average - one.detach().mean(0))
        other = self.map(a, latents[1], labels) if cutoff < 2 * self.depth - 2 else one
        return self.styled(a, [one if k < cutoff else other for k in range(2 * self.depth - 2)], lod, noise)

    def look(self, a: Arrays, image: Tensor, labels: Tensor, lod: Fraction) -> Tensor:
        """Scores [B]."""

        def rgb(picture: Tensor, level: int) -> Tensor:
            name = f"from_rgb.{2**level}"
            return lrelu(taps(picture, a[f"{name}.weight"], math.sqrt(2)) + a[f"{name}.bias"][None, :, None, None])

        def conv(x: Tensor, name: str) -> Tensor:
            return taps(x, a[f"{name}.weight"], math.sqrt(2))

        def bias(x: Tensor, name: str) -> Tensor:
            return x + a[f"{name}.bias"][None, :, None, None]

        x = rgb(image, self.depth)
        for level in range(self.depth, 2, -1):
            block = f"blocks.{2**level}"
            x = lrelu(bias(conv(x, f"{block}.conv1"), f"{block}.conv1"))
            x = conv(smooth(x) if self.options["blur"] else x, f"{block}.conv2")
            x = lrelu(bias(down(x), f"{block}.conv2"))
            image = down(image)
            x = x + (rgb(image, level - 1) - x) * clip(lod - (self.depth - level))
        n = len(x)
        groups = x.reshape(min(self.group, n), -1, *x.shape[1:])
        deviation = torch.sqrt(((groups - groups.mean(0)) ** 2).mean(0) + 1e-8).mean((1, 2, 3))
        tiled = deviation.repeat(len(groups)).reshape(n, 1, 1, 1).expand(n, 1, 4, 4)
        x = lrelu(bias(conv(torch.cat([x, tiled], 1), "last"), "last")).reshape(n, -1)
        x = lrelu(x @ a["hidden.weight"].T * math.sqrt(2 / x.shape[1]) + a["hidden.bias"])
        y = x @ a["output.weight"].T / math.sqrt(x.shape[1]) + a["output.bias"]
        if y.shape[1] == 1:
            return y[:, 0]
        return (y * F.one_hot(labels, y.shape[1])).sum(1)

    def lod_now(self, stable: int, fade: int) -> Fraction:
        done, within = divmod(self.images, stable + fade)
        return max(Fraction(0), self.depth - self.first - done - Fraction(max(within - stable, 0), fade))

    def styled_iteration(
        self,
        *,
        stable: int,
        fade: int,
        pixels: np.ndarray,
        labels: Sequence[Tensor],
        latents: Sequence[Sequence[Tensor]],
        cutoffs: Sequence[int],
        noise: Sequence[Sequence[Tensor]],
        mix: Tensor | None,
        gamma: float,
        rate: float,
        half_life: int,
    ) -> dict[str, float]:
        """One iteration: WGAN-GP with drift where there is a `mix`, else the logistic loss with R1."""
        lod = self.lod_now(stable, fade)
        now = (math.floor(lod), math.ceil(lod))
        if self.before is not None and now != self.before:
            self.moments, self.counts = {}, dict.fromkeys(self.counts, 0)
        self.before = now
        n, real, of_generator = len(pixels), self.process(pixels, lod), self.nets["generator"]
        with torch.no_grad():
            fake = self.make(of_generator, latents[0], labels[0], cutoffs[0], lod, noise[0])

        def of_discriminator(a: Arrays) -> Tensor:
            images = real.clone().requires_grad_(True)
            scores, fakes = self.look(a, images, labels[0], lod), self.look(a, fake, labels[0], lod)
            if mix is None:
                (g,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
                penalty = (g * g).sum((1, 2, 3)).mean()
                return softplus(fakes).mean() + softplus(-scores).mean() + gamma / 2 * penalty
            between = (real + (fake - real) * mix[:, None, None, None]).requires_grad_(True)
            (g,) = torch.autograd.grad(self.look(a, between, labels[0], lod).sum(), between, create_graph=True)
            norms = torch.sqrt((g * g).sum((1, 2, 3)))
            return (fakes - scores).mean() + 10 * ((norms - 1) ** 2).mean() + 0.001 * (scores**2).mean()

        found = {"discriminator": self._step("discriminator", of_discriminator, rate)}
        beta = 0.5 ** (n / half_life)
        for k, v in of_generator.items():
            self.average[k] = v + (self.average[k] - v) * beta

        def of_the_generator(a: Arrays) -> Tensor:
            images = self.make(a, latents[1], labels[1], cutoffs[1], lod, noise[1])
            scores = self.look(self.nets["discriminator"], images, labels[1], lod)
            return softplus(-scores).mean() if mix is None else -scores.mean()

        found["generator"] = self._step("generator", of_the_generator, rate)
        self.images += n
        return found
