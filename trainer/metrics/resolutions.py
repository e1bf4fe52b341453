"""The discriminability study of the AC-GAN paper (Odena et al. 2017, section 4.1): class accuracy at lower resolutions.

Images are shrunk to r x r and enlarged again, bilinearly (with antialiasing when shrinking), and classified. If a
generator's pictures say no more at 128 px than at 32 px, their resolution is not real.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from trainer.metrics.judge import ClassSums
from trainer.metrics.over_real import over_real_images
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement
from trainer.trained.sampling import chunks_of


def study_resolutions(resolution: int) -> list[int]:
    """Powers of two from 16 (from a quarter, for small images) up to the images' own resolution."""
    smallest = min(16, resolution // 4)
    return [r for r in (2**k for k in range(2, 13)) if smallest <= r < resolution] + [resolution]


class Discriminability(NamedTuple):
    """Accuracy at each resolution, and the share of classes that gain from the lowest to the highest."""

    resolutions: list[int]
    accuracy: list[float]
    better_at_full: float


def discriminability(per_class: Tensor, resolutions: list[int]) -> Discriminability:
    """From accuracies [classes, resolutions], ascending resolutions; the mean is over classes."""
    better = (per_class[:, -1] > per_class[:, 0]).double().mean()
    return Discriminability(resolutions, per_class.nanmean(0).tolist(), float(better))


class Resolutions(Measure):
    """Of all samples, and of as many real images."""

    name, meaning = "resolutions", "class accuracy at lower resolutions"
    needs = Needs(right=True, classes=True)
    titles: ClassVar[dict[str, str]] = {"accuracy_kept_at_lowest_resolution": "accuracy kept at the lowest resolution"}
    outcomes = frozenset({"accuracy", "better_at_full_resolution"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.judge is not None
        self._judge = setting.judge
        self._resolutions = study_resolutions(setting.manifest.resolution)
        columns = len(self._resolutions)
        self._generated, self._real = (ClassSums(len(self._judge.class_names), columns, 0) for _ in range(2))

    @property
    def columns(self) -> int:
        """The full resolution is in `Seen.right`."""
        return len(self._resolutions) - 1

    def compute(self, samples: Tensor, conditions: Tensor) -> Tensor:
        return self._judge.right(samples, conditions, self._resolutions[:-1])

    def add(self, seen: Seen) -> None:
        self._generated.add(seen.conditions, torch.cat([seen.own, seen.right.to(seen.own)], 1))

    def work(self) -> None:
        """The same of real images."""
        setting = self.setting
        rows = over_real_images(
            setting.launch,
            setting.data,
            chunks_of(min(setting.plan.samples, setting.manifest.samples)),
            len(self._resolutions),
            lambda chunk: self._judge.right(chunk.images, chunk.labels, self._resolutions),
        )
        for part in rows:
            self._real.add(part.labels, part.values)

    def result(self) -> list[Measurement]:
        ours = discriminability(self._generated.accuracy, self._resolutions)
        theirs = discriminability(self._real.accuracy, self._resolutions)
        more = {
            "samples": self.setting.plan.samples,
            **self._judge.describe(),
            "resize": "bilinear, antialiased when shrinking",
            "resolutions": self._resolutions,
            "accuracy": ours.accuracy,
            "real_accuracy": theirs.accuracy,
            "real_samples": int(self._real.count.sum()),
            "better_at_full_resolution": ours.better_at_full,
        }
        lost = ours.accuracy[0] / max(ours.accuracy[-1], 1e-12)
        return [Measurement("accuracy_kept_at_lowest_resolution", lost, more, "%")]

    @classmethod
    def note(cls, details: Mapping[str, Any]) -> str:
        if not details.get("resolutions"):
            return ""
        triples = zip(details["resolutions"], details["accuracy"], details["real_accuracy"], strict=True)
        return ", ".join(f"{r} px {ours:.1%} (real {real:.1%})" for r, ours, real in triples)
