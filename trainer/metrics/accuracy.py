"""Class accuracy: the share of samples that a classifier of real images gives the class asked for, class by class.

Diversity: how much the classifier's features of one class vary, as a share of how much they vary among real images of the
class; 1 is as diverse as the data, 0 is one image per class.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from data_pipeline.manifest.format import ClassInfo
from trainer.classifiers.identity import as_classes, check_classes
from trainer.classifiers.training import load_classifier
from trainer.foundation.errors import TrainerError
from trainer.methods.protocol import Sampler
from trainer.metrics.judge import ClassSums
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement, by_name
from trainer.metrics.samples import generate
from trainer.models import ModelConfig

_MANY = 40


class Accuracy(Measure):
    """Of all samples, the classes in turn; the mean is over classes."""

    name, meaning = "accuracy", "class accuracy, and diversity of the classifier's features"
    needs = Needs(right=True, judged=True, judged_reference=True, classes=True)
    titles: ClassVar[dict[str, str]] = {"class_accuracy": "class accuracy"}
    outcomes = frozenset({"per_class", "diversity", "diversity_per_class"})
    column = "accuracy"
    usual_samples = 2_000

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.judge is not None
        self._judge = setting.judge
        self._sums = ClassSums(len(self._judge.class_names), 1, self._judge.network.dimension)
        self._found: list[Measurement] = []

    def add(self, seen: Seen) -> None:
        self._sums.add(seen.conditions, seen.right, seen.judged)

    def result(self) -> list[Measurement]:
        names, accuracy = self._judge.class_names, self._sums.accuracy[:, 0]
        more = {
            "samples": self.setting.plan.samples,
            **self._judge.describe(),
            "per_class": by_name(names, accuracy),
        }
        judged = self.setting.judged
        if judged is not None:
            real = self._judge.of_real(judged)
            diversity = self._sums.variance / real.variance
            more |= {
                "reference": judged.describe(),
                "real_images": float(real.accuracy.nanmean()),
                "diversity": float(diversity.nanmean()),
                "diversity_per_class": by_name(names, diversity),
            }
        self._found = [Measurement("class_accuracy", float(accuracy.nanmean()), more, "%", "higher")]
        return self._found

    def table(self, iteration: int) -> str:
        return class_table(self._found[0], iteration, self.setting.data.shards)


def class_table(accuracy: Measurement, iteration: int, shards: str) -> str:
    """Class accuracy, a line per class (for many classes: the lowest and the highest)."""
    details = accuracy.details
    per_class, diversity = details["per_class"], details.get("diversity_per_class") or {}
    lines = [f"{details['samples']:,} generated images at iteration {iteration:,}: class accuracy"]
    shown = list(per_class)
    if len(shown) > _MANY:
        ranked = sorted(per_class, key=lambda name: float(per_class[name]))
        shown = ranked[: _MANY // 2] + ranked[-_MANY // 2 :]
    for name in shown:
        varied = f"  diversity {diversity[name]:.2f}" if name in diversity else ""
        lines.append(f"  {name[:24]:16} {per_class[name]:7.1%}{varied}  {'#' * round(40 * per_class[name])}".rstrip())
    varied = f"  diversity {details['diversity']:.2f} (1: as diverse as {shards})" if diversity else ""
    lines.append(f"  {'mean':16} {accuracy.value:7.1%}{varied}")
    if "real_images" in details:
        lines.append(f"  the classifier itself, on {shards}: {details['real_images']:.1%}")
    return "\n".join(lines)


class GeneratedAccuracy:
    """The light form inside a run: one small classifier, no real images.

    Raises `TrainerError` if the classifier's classes or images are not the model's.
    """

    def __init__(
        self, path: str, model: ModelConfig, device: torch.device | str = "cpu", classes: Sequence[ClassInfo] = ()
    ) -> None:
        """`path`: what `python -m trainer.train_classifier` wrote; `classes`: the data's, in the order of the labels."""
        classifier, self.info = load_classifier(path)
        for what, theirs, ours in (
            ("classes", len(self.info.class_names), model.classes),
            ("resolution", self.info.resolution, model.resolution),
            ("image channels", self.info.image_channels, model.image_channels),
        ):
            if theirs != ours:
                raise TrainerError(
                    f"evaluation.classifier: {path} was trained for {theirs} {what}, the model has {ours}; "
                    "train one on this run's shards with `python -m trainer.train_classifier`"
                )
        known = as_classes(self.info.class_names, self.info.class_ids)
        cure = "train one on this run's shards with `python -m trainer.train_classifier`"
        places = check_classes(classes or known, known, "evaluation.classifier", path, cure)
        self.logit_of = torch.tensor(places)
        """Which logit is each class's, int64 [classes]."""
        self.device = torch.device(device)
        self.classifier = classifier.to(device)

    def measure(self, sampler: Sampler, seed: int, samples: int) -> float:
        """The mean over classes of the accuracy on `samples` samples, the classes in turn."""
        labels = sampler.conditions.in_turn(range(samples))
        return float(self.judge(generate(sampler, labels, seed), labels).accuracy.mean())

    @torch.no_grad()
    def judge(self, images: Tensor, labels: Tensor) -> ClassSums:
        """Accuracy and spread of the features of images [n, c, h, w] in [-1, 1] with `labels` [n], class by class."""
        features = torch.cat([self.classifier.features(part.to(self.device)) for part in torch.split(images, 500)])
        right = self.classifier.head(features).argmax(1).cpu() == self.logit_of[labels]
        sums = ClassSums(len(self.info.class_names), 1, features.shape[1])
        sums.add(labels, right[:, None], features.cpu())
        return sums
