"""MS-SSIM of random pairs within each class, of generated and of real images; and accuracy against it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.metrics.diversity import ms_ssim_diversity, window_settings
from trainer.metrics.health import CollapseWatch, Warned
from trainer.metrics.judge import ClassSums
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement, by_name
from trainer.metrics.reference import cached_values
from trainer.metrics.samples import as_signed, in_order
from trainer.trained.real import images_of_class, manifest_of


def pairs_of(images: Tensor, pairs: int) -> Tensor:
    """MS-SSIM of up to `pairs` disjoint pairs of uint8 images [n, c, h, w]: image i with image i + n // 2; NaN for the rest."""
    count = min(pairs, len(images) // 2)
    values = torch.full((pairs,), torch.nan)
    if count:
        signed = as_signed(images)
        values[:count] = ms_ssim_diversity(signed[:count], signed[count : 2 * count])
    return values


def real_ms_ssim(data: DataConfig, cache: Path, pairs: int) -> Tensor:
    """Of every class of the real images the mean over its pairs, float64 [classes]; kept in the cache.

    NaN for a class of a single image. In the main process alone.
    """
    manifest = manifest_of(data)

    def compute() -> dict[str, object]:
        classes = range(len(manifest.classes))
        values = [pairs_of(images_of_class(data, label, 2 * pairs), pairs).nanmean() for label in classes]
        return {"ms_ssim": [None if value.isnan() else float(value) for value in values]}

    found = cached_values(cache, f"ms-ssim/{manifest.fingerprint}/{pairs}", compute)["ms_ssim"]
    assert isinstance(found, list)
    return torch.tensor([float("nan") if value is None else value for value in found], dtype=torch.float64)


class Relation(NamedTuple):
    """Accuracy against MS-SSIM over classes, as the AC-GAN paper's figure 10 (Odena et al. 2017, section 4.3)."""

    correlation: float
    """Pearson's r; positive: the classes that are drawn right are the less varied ones."""
    accurate_if_alike: float
    """Of the classes at or above the threshold of MS-SSIM, the share with an accuracy above 1%; NaN if there are none."""
    accurate_if_varied: float
    """The same of the classes below it."""


def accuracy_against_ms_ssim(accuracy: Tensor, ms_ssim: Tensor, threshold: float) -> Relation:
    """Of per-class values [classes] each."""
    both = torch.stack([accuracy.double(), ms_ssim.double()])
    flat = bool((both.std(1) == 0).any()) or both.shape[1] < 2
    correlation = float("nan") if flat else float(torch.corrcoef(both)[0, 1])
    alike = ms_ssim >= threshold
    shares = [float((accuracy[rows] > 0.01).double().mean()) for rows in (alike, ~alike)]
    return Relation(correlation, *shares)


class MsSsim(Measure):
    """The mean over pairs of each class, and over classes. Pairs are (0, n), (1, n + 1) ... of the class's keyed samples.

    Where another measure has classes judged, the relation of accuracy and MS-SSIM is measured as well.
    """

    name, meaning = "ms_ssim", "MS-SSIM of pairs within each class"
    needs = Needs(classes=True)
    titles: ClassVar[dict[str, str]] = {
        "ms_ssim": "MS-SSIM within classes",
        "accuracy_ms_ssim_correlation": "correlation of accuracy and MS-SSIM over classes",
    }
    outcomes = frozenset(
        {
            "per_class",
            "share_of_classes_below",
            "classes_above_1%_accuracy_if_alike",
            "classes_above_1%_accuracy_if_varied",
        }
    )
    column = "MS-SSIM"
    alarm = "collapse"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._names = setting.manifest.class_names
        self._accuracy: ClassSums | None = None
        self._generated = self._real = torch.empty(0)
        self._side = 0

    def add(self, seen: Seen) -> None:
        """The accuracy of classes, where they are judged anyway."""
        if seen.right.shape[1]:
            self._accuracy = self._accuracy or ClassSums(len(self._names), 1, 0)
            self._accuracy.add(seen.conditions, seen.right)

    def work(self) -> None:
        """The classes are dealt to the processes."""
        setting, pairs = self.setting, self.setting.plan.pairs

        def of_class(label: int) -> Tensor:
            images = setting.samples.first_of_condition(torch.tensor(label), 2 * pairs)
            self._side = images.shape[-1]
            return pairs_of(images, pairs)

        found = list(in_order(setting.launch, len(self._names), (pairs,), of_class))
        if setting.launch.is_main:
            self._generated = torch.stack(found).nanmean(1)
            self._real = real_ms_ssim(setting.data, setting.cache, pairs)

    def result(self) -> list[Measurement]:
        names, generated, real = self._names, self._generated, self._real
        threshold = float(real[real.isfinite()].max())
        more = {
            "pairs_per_class": self.setting.plan.pairs,
            **window_settings(self._side),
            "per_class": by_name(names, generated),
            "real_images": float(real.nanmean()),
            "real_per_class": by_name(names, real),
            "threshold": threshold,
            "threshold_is": "the largest of a real class, as in the AC-GAN paper",
            "share_of_classes_below": float((generated < threshold).double().mean()),
            "reference": {"data_fingerprint": self.setting.manifest.fingerprint},
        }
        found = [Measurement("ms_ssim", float(generated.mean()), more, better="lower")]
        judge = self.setting.judge
        if self._accuracy is not None and judge is not None:
            relation = accuracy_against_ms_ssim(self._accuracy.accuracy[:, 0], generated, threshold)
            of_both = {
                "classes": len(generated),
                "threshold": threshold,
                "classes_above_1%_accuracy_if_alike": relation.accurate_if_alike,
                "classes_above_1%_accuracy_if_varied": relation.accurate_if_varied,
                "classifier": judge.network.description,
            }
            found.append(Measurement("accuracy_ms_ssim_correlation", relation.correlation, of_both))
        return found

    def warning(self, iteration: int, earlier: Sequence[Mapping[str, Any]]) -> Warned | None:
        """`collapse`, in the light of the earlier measurements with as many pairs."""
        watch = CollapseWatch(self._names, self._real)
        past: dict[int, Tensor] = {}
        for record in earlier:
            values = record.get("per_class") or {}
            fits = record.get("measure") == "ms_ssim" and record.get("pairs_per_class") == self.setting.plan.pairs
            if fits and len(values) == len(self._generated) and record.get("iteration", iteration) < iteration:
                numbers = [float("nan") if value is None else float(value) for value in values.values()]
                past[record["iteration"]] = torch.tensor(numbers, dtype=torch.float64)
        for number in sorted(past):
            watch.look(past[number])
        return watch.look(self._generated)
