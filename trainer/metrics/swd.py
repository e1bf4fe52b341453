"""Sliced Wasserstein distance of patches of Laplacian pyramids (Karras et al. 2018, section 5; Rabin et al. 2011).

The protocol is the official code's: 16,384 images of each kind, on every level of the pyramid down to 16 px 128 random
patches of 7 x 7 pixels an image, each colour channel of a level normalised over all patches, 4 x 128 random directions.
Level r px compares details of the size of r px. The published values are times 1,000, and so are these.

It keeps 128 x 147 float32 values of each image and level: 1.2 GB a level for 16,384 images, of both kinds.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.foundation import keys
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement
from trainer.trained.real import real_chunks
from trainer.trained.sampling import CHUNK, chunks_of

IMAGES = 16_384
PATCHES, SIDE, SMALLEST = 128, 7, 16
REPEATS, DIRECTIONS = 4, 128


def levels_of(resolution: int) -> list[int]:
    """`resolution`, its half, ..., the last one of at least 16 px."""
    sides = [resolution]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= SMALLEST:
        sides.append(sides[-1] // 2)
    return sides


def _blurred(x: Tensor, weight: float) -> Tensor:
    """x [B, C, H, W] times `weight`, blurred with [1 4 6 4 1]^2 / 256, mirrored at the border without its edge."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype) / 16
    kernel = (weight * torch.outer(taps, taps)).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def halved(x: Tensor) -> Tensor:
    """Blurred, then every second pixel: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return _blurred(x, 1.0)[:, :, ::2, ::2]


def doubled(x: Tensor) -> Tensor:
    """With zeros in between, then blurred with four times the kernel: [B, C, H, W] -> [B, C, 2H, 2W]."""
    large = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    large[:, :, ::2, ::2] = x
    return _blurred(large, 4.0)


def pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """The Laplacian pyramid of float images [B, C, H, W]: what each level adds to the next one, doubled; last the rest."""
    found = [images]
    for _ in range(levels - 1):
        found.append(halved(found[-1]))
        found[-2] = found[-2] - doubled(found[-1])
    return found


def patches(level: Tensor, source: torch.Generator) -> Tensor:
    """128 random patches of each image of a level [B, 3, H, W]: [128 B, 3, 7, 7]."""
    n, _, height, width = level.shape
    rows = torch.randint(height - SIDE + 1, (n, PATCHES, 1, 1), generator=source) + torch.arange(SIDE)[:, None]
    columns = torch.randint(width - SIDE + 1, (n, PATCHES, 1, 1), generator=source) + torch.arange(SIDE)
    image = torch.arange(n)[:, None, None, None]
    return level.permute(0, 2, 3, 1)[image, rows, columns].flatten(0, 1).permute(0, 3, 1, 2)


def distance(first: Tensor, second: Tensor, source: torch.Generator) -> float:
    """Sliced Wasserstein distance of two sets of patches [n, 3, 7, 7], each normalised by its own statistics."""
    normalised = []
    for part in (first, second):
        mean, deviation = part.mean((0, 2, 3), keepdim=True), part.std((0, 2, 3), unbiased=False, keepdim=True)
        normalised.append(((part - mean) / deviation.clamp(min=1e-12)).flatten(1))
    found = []
    for _ in range(REPEATS):
        directions = torch.randn(normalised[0].shape[1], DIRECTIONS, generator=source)
        directions = directions / directions.square().sum(0, keepdim=True).sqrt()
        ours, theirs = ((part @ directions).sort(0).values for part in normalised)
        found.append((ours - theirs).abs().double().mean())
    return float(torch.stack(found).mean())


class PatchDistance(Measure):
    """Of the samples and as many real images; grey ones are taken as three equal channels."""

    name, meaning = "swd", "sliced Wasserstein distance of Laplacian pyramids"
    needs = Needs(samples=True)
    titles: ClassVar[dict[str, str]] = {"sliced_wasserstein_distance": "sliced Wasserstein distance x 1000"}
    outcomes = frozenset({"per_level"})
    in_all = False
    usual_samples = IMAGES

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._sides = levels_of(setting.manifest.resolution)
        self._count = min(setting.plan.samples, setting.manifest.samples)
        self._generated: list[list[Tensor]] = [[] for _ in self._sides]
        self._real: list[list[Tensor]] = [[] for _ in self._sides]

    def add(self, seen: Seen) -> None:
        self._take(self._generated, seen.samples, seen.numbers.start // CHUNK, self._count - seen.numbers.start, "")

    def work(self) -> None:
        """The same of real images, mirrored where the training mirrors them. In the main process."""
        if not self.setting.launch.is_main:
            return
        data, seed = self.setting.data, self.setting.plan.seed
        for number, chunk in enumerate(real_chunks(data, 0, chunks_of(self._count))):
            images = chunk.images
            if data.horizontal_flip:
                coins = torch.rand(len(images), generator=keys.generator(seed, "swd mirror", number)) < 0.5
                images = torch.where(coins[:, None, None, None], images.flip(3), images)
            self._take(self._real, images, number, self._count - number * CHUNK, " of real images")

    def _take(self, kept: list[list[Tensor]], images: Tensor, chunk: int, wanted: int, kind: str) -> None:
        if wanted <= 0:
            return
        colour = images[:wanted].float()
        colour = colour.expand(-1, 3, -1, -1) if colour.shape[1] == 1 else colour
        for level, (found, detail) in enumerate(zip(kept, pyramid(colour, len(self._sides)), strict=True)):
            source = keys.generator(self.setting.plan.seed, f"swd patches{kind}", chunk, level)
            found.append(patches(detail, source))

    def result(self) -> list[Measurement]:
        per_level = {}
        for level, side in enumerate(self._sides):
            source = keys.generator(self.setting.plan.seed, "swd directions", level)
            ours, theirs = torch.cat(self._generated[level]), torch.cat(self._real[level])
            per_level[f"{side} px"] = 1000.0 * distance(ours, theirs, source)
            self._generated[level], self._real[level] = [], []
        more = {
            "samples": self._count,
            "real_samples": self._count,
            "reference": {"data_fingerprint": self.setting.manifest.fingerprint},
            "mirrored": self.setting.data.horizontal_flip,
            "protocol": f"{PATCHES} patches of {SIDE} px an image, {REPEATS} x {DIRECTIONS} directions, x 1000",
            "per_level": per_level,
        }
        mean = sum(per_level.values()) / len(per_level)
        return [Measurement("sliced_wasserstein_distance", mean, more, better="lower")]
