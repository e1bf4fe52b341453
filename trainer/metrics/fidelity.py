"""How near samples come to true partners: of images made of images, where the data has the image that should come out.

Every number stands next to those of images that were made without learning, on the same pairs: what the sampler offers (for
super-resolution bilinear and bicubic enlargement, for translation the image as it is), and two controls from the real images,
where samples and conditions have one size: their mean, and the one that is nearest to the condition in pixels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.foundation.errors import SettingError
from trainer.foundation.pixels import to_uint8
from trainer.methods.sampling import Paired
from trainer.metrics.diversity import ms_ssim_diversity
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement
from trainer.metrics.samples import as_signed
from trainer.trained.real import real_chunks

MADE, MEAN, NEAREST = "made", "mean real image", "nearest real image"
MS_SSIM_SIDE = 256
"""Both images are resized to it, bilinearly, so that five scales have a window of 11 (official evaluations_sr/)."""
MOST_DECIBELS = 100.0


def pair_values(made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Of each pair of uint8 images [n, c, h, w]: L1 in 0..1, PSNR in dB (at most 100), SSIM and MS-SSIM, [n] each.

    SSIM: Wang et al. 2004, window 11, sigma 1.5, without padding. MS-SSIM: five scales at 256 px, each channel alone, then
    the mean over channels.
    """
    a, b = made.double() / 255, wanted.double() / 255
    squared = (a - b).square().flatten(1).mean(1)
    one, other = (as_signed(images).flatten(0, 1)[:, None] for images in (made, wanted))
    size = (MS_SSIM_SIDE, MS_SSIM_SIDE)
    large_one, large_other = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (one, other))
    return {
        "l1": (a - b).abs().flatten(1).mean(1),
        "psnr": (-10 * squared.clamp_min(10 ** (-MOST_DECIBELS / 10)).log10()),
        "ssim": ms_ssim_diversity(one, other, (1.0,)).view(len(made), -1).mean(1).double(),
        "ms_ssim": ms_ssim_diversity(large_one, large_other).view(len(made), -1).mean(1).double(),
    }


def paired(setting: Setting, name: str) -> Paired:
    """The sampler. Raises `SettingError` unless its samples have partners."""
    sampler = setting.samples.sampler
    if not isinstance(sampler, Paired):
        raise SettingError(
            f"--measures: {name} compares samples with their true partners, which this generator has not; leave it out"
        )
    return sampler


class Fidelity(Measure):
    """Means over the samples of the pass. In the main process alone."""

    name, meaning = "fidelity", "L1, PSNR, SSIM and MS-SSIM against true partners, beside images made without learning"
    needs = Needs(samples=True)
    titles: ClassVar[dict[str, str]] = {
        "pair_l1": "L1 to the true partner",
        "pair_psnr": "PSNR to the true partner",
        "pair_ssim": "SSIM to the true partner",
        "pair_ms_ssim": "MS-SSIM to the true partner",
    }
    outcomes = frozenset({"rows"})
    in_all = False
    usual_samples = 1_000

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._sampler = paired(setting, self.name)
        self._sums: dict[str, dict[str, float]] = {}
        self._count = 0
        self._controls: _Controls | None = None

    def add(self, seen: Seen) -> None:
        """Partners and baselines of these numbers."""
        wanted = to_uint8(self._sampler.partners(seen.numbers))
        made = self._sampler.baselines(seen.conditions)
        rows = {MADE: seen.samples} | {name: to_uint8(images) for name, images in made.items()}
        if seen.conditions.shape == wanted.shape:
            self._controls = self._controls or _Controls(self.setting)
            rows |= self._controls.rows(to_uint8(seen.conditions))
        for row, images in rows.items():
            sums = self._sums.setdefault(row, {})
            for name, values in pair_values(images, wanted).items():
                sums[name] = sums.get(name, 0.0) + float(values.sum())
        self._count += len(wanted)

    def result(self) -> list[Measurement]:
        means = {row: {name: total / self._count for name, total in sums.items()} for row, sums in self._sums.items()}
        return [
            Measurement(
                f"pair_{name}",
                means[MADE][name],
                {"samples": self._count, "rows": {row: values[name] for row, values in means.items()}},
                better="lower" if name == "l1" else "higher",
            )
            for name in means[MADE]
        ]

    def table(self, iteration: int) -> str:
        means = {row: {name: total / self._count for name, total in sums.items()} for row, sums in self._sums.items()}
        names = list(means[MADE])
        lines = [f"{self._count:,} pairs at iteration {iteration:,}", f"  {'':20}" + "".join(f"{n:>10}" for n in names)]
        lines += [f"  {row:20}" + "".join(f"{values[name]:10.4f}" for name in names) for row, values in means.items()]
        return "\n".join(lines)


class PairAccuracy(Measure):
    """How often a classifier gives an image its partner's class. Enlarged images go to its size in one step.

    The classes are those of the source `data`.
    """

    name, meaning = "pair_accuracy", "class accuracy of images made of images, beside images made without learning"
    needs = Needs(samples=True, judge=True)
    titles: ClassVar[dict[str, str]] = {"pair_accuracy": "accuracy of the true partner's class"}
    outcomes = frozenset({"rows"})
    in_all = False
    usual_samples = 1_000

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._sampler = paired(setting, self.name)
        assert setting.judge is not None
        self._judge = setting.judge
        self._right: dict[str, float] = {}
        self._count = 0

    def add(self, seen: Seen) -> None:
        side = self._judge.network.classifier.input_size
        wanted, labels = self._sampler.partners(seen.numbers), self._sampler.labels(seen.numbers)
        baselines = self._sampler.baselines(seen.conditions, side)
        rows = {MADE: seen.samples, "true partner": to_uint8(wanted)}
        rows |= {name: to_uint8(images) for name, images in baselines.items()}
        for row, images in rows.items():
            right = self._judge.right(images, labels, [images.shape[-1]])
            self._right[row] = self._right.get(row, 0.0) + float(right.sum())
        self._count += len(labels)

    def result(self) -> list[Measurement]:
        rows = {row: right / self._count for row, right in self._right.items()}
        details: dict[str, Any] = {"samples": self._count, "rows": rows, **self._judge.describe()}
        return [Measurement("pair_accuracy", rows[MADE], details, "%", "higher")]

    def table(self, iteration: int) -> str:
        lines = [f"{self._count:,} pairs at iteration {iteration:,}: accuracy of the true partner's class"]
        return "\n".join([*lines, *(f"  {row:20}{right / self._count:10.1%}" for row, right in self._right.items())])


class _Controls:
    """What needs no generator: of all real images the mean, and the nearest to a condition in mean squared pixels."""

    def __init__(self, setting: Setting) -> None:
        chunks = [chunk.images[: chunk.new] for chunk in real_chunks(setting.data)]
        self._images = torch.cat(chunks)
        self._mean = self._images.double().mean(0, keepdim=True).round().to(torch.uint8)

    def rows(self, conditions: Tensor) -> Mapping[str, Tensor]:
        """uint8 images [n, c, h, w] for uint8 conditions of that shape; none where the real images have another."""
        if conditions.shape[1:] != self._images.shape[1:]:
            return {}
        flat = self._images.flatten(1).float()
        distances = torch.cdist(conditions.flatten(1).float(), flat)
        return {MEAN: self._mean.expand(len(conditions), -1, -1, -1), NEAREST: self._images[distances.argmin(1)]}
