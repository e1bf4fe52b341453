"""Progressive growing written a second time, as the official code has it, in float64 and without trainer/.

Here everything is of the full size: the generator mixes the images of all levels ("linear" structure), the discriminator
looks at all of them, a scalar `lod` (levels of detail left out) says which of them count, layers that do not act have a
gradient of 0, and the counter of images decides. Gradients are torch.autograd's of this functional form.

Shapes: B batch, C image channels, R the full resolution, L = log2 R.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Arrays = dict[str, Tensor]


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-8)


def up(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def down(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def conv(x: Tensor, a: Arrays, name: str, gain: float = math.sqrt(2)) -> Tensor:
    """As a sum over the taps."""
    w = a[f"{name}.weight"]
    k = w.shape[-1]
    he = gain / math.sqrt(w.shape[1] * k * k)
    padded = F.pad(x, [k // 2] * 4)
    height, width = x.shape[2:]
    y = sum(
        torch.einsum("bihw,oi->bohw", padded[:, :, u : u + height, v : v + width], w[:, :, u, v] * he)
        for u in range(k)
        for v in range(k)
    )
    return y + a[f"{name}.bias"][None, :, None, None]


def clip(x: Fraction) -> float:
    return float(min(max(x, Fraction(0)), Fraction(1)))


class OfficialForm:
    """Both networks, their losses, Adam, and the loop."""

    def __init__(self, generator: Arrays, discriminator: Arrays, resolution: int, *, unfused: bool, group: int) -> None:
        self.nets = {
            name: {k: v.detach().double().clone() for k, v in arrays.items() if not k.startswith("reached.")}
            for name, arrays in (("generator", generator), ("discriminator", discriminator))
        }
        self.average = {k: v.clone() for k, v in self.nets["generator"].items()}
        self.depth, self.unfused, self.group = int(math.log2(resolution)), unfused, group
        self.moments: dict[str, dict[str, list[Tensor]]] = {}
        self.counts = {"generator": 0, "discriminator": 0}
        self.images = 0
        self.before: tuple[int, int] | None = None

    # The networks

    def generate(self, a: Arrays, latents: Tensor, code: Tensor, lod: Fraction) -> Tensor:
        x = unit(torch.cat([latents, code], 1))
        w = a["dense.weight"]
        x = (x @ w.T) * (math.sqrt(2) / 4 / math.sqrt(w.shape[1]))
        x = x.reshape(len(x), -1, 4, 4) + a["dense_bias"][None, :, None, None]
        x = unit(lrelu(conv(unit(lrelu(x)), a, "first")))
        image = conv(x, a, "to_rgb.4", 1.0)
        for level in range(3, self.depth + 1):
            block = f"blocks.{2**level}"
            x = unit(lrelu(conv(up(x), a, f"{block}.conv1")))
            x = unit(lrelu(conv(x, a, f"{block}.conv2")))
            rgb = conv(x, a, f"to_rgb.{2**level}", 1.0)
            image = rgb + (up(image) - rgb) * clip(lod - (self.depth - level))
        return image

    def judge(self, a: Arrays, image: Tensor, lod: Fraction) -> tuple[Tensor, Tensor]:
        """Scores [B] and class logits [B, K]."""
        x = lrelu(conv(image, a, f"from_rgb.{2**self.depth}"))
        for level in range(self.depth, 2, -1):
            block = f"blocks.{2**level}"
            x = lrelu(conv(x, a, f"{block}.conv1"))
            x = conv(x, a, f"{block}.conv2")
            x = down(lrelu(x)) if self.unfused else lrelu(down(x))
            image = down(image)
            below = lrelu(conv(image, a, f"from_rgb.{2 ** (level - 1)}"))
            x = x + (below - x) * clip(lod - (self.depth - level))
        n = len(x)
        statistic = torch.zeros(n, dtype=x.dtype)
        count = n // min(self.group, n)
        for m in range(count):
            members = x[m::count]
            variance = ((members - members.mean(0)) ** 2).mean(0)
            statistic = (
                statistic
                + torch.sqrt(variance + 1e-8).mean() * F.one_hot(torch.arange(n) % count, count).double()[:, m]
            )
        x = torch.cat([x, statistic[:, None, None, None].expand(n, 1, *x.shape[2:])], 1)
        x = lrelu(conv(x, a, "last")).reshape(n, -1)
        x = lrelu(x @ a["hidden.weight"].T * math.sqrt(2 / x.shape[1]) + a["hidden.bias"])
        y = x @ a["output.weight"].T / math.sqrt(x.shape[1]) + a["output.bias"]
        return y[:, 0], y[:, 1:]

    # The data

    def process(self, pixels: np.ndarray, lod: Fraction) -> Tensor:
        """uint8 [B, C, R, R] -> what the networks get, of the full size."""
        level = math.floor(lod)
        stored = pixels.astype(np.float64)
        for _ in range(level):  # the tool's cascade; only what is stored is rounded
            stored = (
                stored[:, :, ::2, ::2] + stored[:, :, 1::2, ::2] + stored[:, :, ::2, 1::2] + stored[:, :, 1::2, 1::2]
            ) / 4
        x = torch.from_numpy(np.rint(stored)) * 2 / 255 - 1
        x = x + (up(down(x)) - x) * float(lod - level)
        for _ in range(level):
            x = up(x)
        return x

    # The loop

    def lod(self, stable: int, fade: int) -> Fraction:
        done, within = divmod(self.images, stable + fade)
        return max(Fraction(0), self.depth - 2 - done - Fraction(max(within - stable, 0), fade))

    def iterate(
        self,
        *,
        stable: int,
        fade: int,
        pixels: np.ndarray,
        labels: Tensor,
        latents: Sequence[Tensor],
        codes: Tensor,
        mix: Tensor,
        loss: str,
        target: float,
        rate: float,
        half_life: int,
    ) -> dict[str, float]:
        """One iteration of n images: the discriminator's step beside the average's, then the generator's."""
        lod = self.lod(stable, fade)
        now = (math.floor(lod), math.ceil(lod))
        if self.before is not None and now != self.before:
            self.moments, self.counts = {}, dict.fromkeys(self.counts, 0)
        self.before = now
        n, real = len(pixels), self.process(pixels, lod)
        beta = 0.5 ** (n / half_life)
        of_generator = self.nets["generator"]
        with torch.no_grad():
            fake = self.generate(of_generator, latents[0], codes[0], lod)

        def of_discriminator(a: Arrays) -> Tensor:
            scores, logits = self.judge(a, real, lod)
            fakes, fake_logits = self.judge(a, fake, lod)
            u = mix[:, None, None, None]
            between = (real + (fake - real) * u).detach().requires_grad_(True)
            (g,) = torch.autograd.grad(self.judge(a, between, lod)[0].sum(), between, create_graph=True)
            norms = torch.sqrt((g * g).sum((1, 2, 3)))
            if loss == "wasserstein":
                value = (fakes - scores).mean() + 10 * ((norms - target) ** 2).mean() / target**2
                value = value + 0.001 * (scores**2).mean()
            else:
                value = (scores**2).mean() + 0.1 * ((fakes - 1) ** 2).mean()
            if logits.shape[1]:
                picked = torch.log_softmax(logits, 1).gather(1, labels[0][:, None])
                picked_fake = torch.log_softmax(fake_logits, 1).gather(1, labels[0][:, None])
                value = value - picked.mean() - picked_fake.mean()
            return value

        found = {"discriminator": self._step("discriminator", of_discriminator, rate)}
        for k, v in of_generator.items():
            self.average[k] = v + (self.average[k] - v) * beta

        def of_the_generator(a: Arrays) -> Tensor:
            scores, logits = self.judge(self.nets["discriminator"], self.generate(a, latents[1], codes[1], lod), lod)
            value = -scores.mean() if loss == "wasserstein" else (scores**2).mean()
            if logits.shape[1]:
                value = value - torch.log_softmax(logits, 1).gather(1, labels[1][:, None]).mean()
            return value

        found["generator"] = self._step("generator", of_the_generator, rate)
        self.images += n
        return found

    def _step(self, name: str, loss_of: Callable[[Arrays], Tensor], rate: float) -> float:
        """Adam as TensorFlow has it, over all layers."""
        arrays = {k: v.clone().requires_grad_(True) for k, v in self.nets[name].items()}
        value = loss_of(arrays)
        gradients = torch.autograd.grad(value, list(arrays.values()), allow_unused=True)
        self.counts[name] += 1
        size = rate * math.sqrt(1 - 0.99 ** self.counts[name])
        moments = self.moments.setdefault(name, {})
        for (k, w), g in zip(arrays.items(), gradients, strict=True):
            gradient = torch.zeros_like(w) if g is None else g
            v = 0.99 * moments.get(k, [torch.zeros_like(w)])[0] + 0.01 * gradient * gradient
            moments[k] = [v]
            self.nets[name][k] = (w - size * gradient / (torch.sqrt(v) + 1e-8)).detach()
        return float(value.detach())
