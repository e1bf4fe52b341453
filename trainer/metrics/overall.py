"""Measures over all samples at once: one pass through generator and networks, from which each takes what it needs."""

import collections
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.metrics.features import FeatureNetwork
from trainer.metrics.frechet import Moments, frechet_distance
from trainer.metrics.inception_score import InceptionScore
from trainer.metrics.judge import ClassSums, Judge, discriminability, study_resolutions
from trainer.metrics.kid import SUBSETS, kernel_distance
from trainer.metrics.precision_recall import NEIGHBOURS, precision_recall
from trainer.metrics.real import manifest_of, over_real_images
from trainer.metrics.records import Measurement
from trainer.metrics.reference import Reference
from trainer.metrics.samples import CHUNK, Sampler, chunks_of, in_order
from trainer.processes.launch import Launch

KEPT = 10_000
"""Samples whose features are kept for KID, precision and recall: 82 MB of 2048 features."""
OF_FEATURES = ("is", "fid", "kid", "precision_recall")
OF_JUDGE = ("accuracy", "resolutions")


@dataclass
class Overall:
    """What one pass over `samples` images gathers, in the main process."""

    measures: tuple[str, ...]
    samples: int
    splits: int
    network: FeatureNetwork | None
    judge: Judge | None
    resolutions: list[int] = field(default_factory=list)
    class_sums: ClassSums | None = None

    def run(
        self, launch: Launch, sampler: Sampler, reference: Reference | None, judged: Reference | None, data: DataConfig
    ) -> list[Measurement]:
        """All of `measures` that are of this kind; an empty list in the processes that are not the main one.

        `reference`: real features by `network`; `judged`: real features by the judge, if there are.
        """
        network, judge = self.network, self.judge
        if judge is not None and "resolutions" in self.measures:
            self.resolutions = study_resolutions(sampler.generator.model.resolution)
        elif judge is not None:
            self.resolutions = [sampler.generator.model.resolution]
        shared = judge is not None and judge.network is network
        widths = [
            network.dimension if network else 0,
            network.outputs if network and "is" in self.measures else 0,
            len(self.resolutions) if judge else 0,
            judge.network.dimension if judge and not shared else 0,
        ]

        def work(chunk: int) -> Tensor:
            images, labels, parts = sampler.images(chunk), sampler.labels(chunk), []
            if network:
                features, logits = network.both(images)
                parts += [features, logits] if widths[1] else [features]
            if judge:
                parts.append(judge.right(images, labels, self.resolutions))
            if judge and not shared:
                parts.append(judge.network.both(images)[0])
            return torch.cat([part.cpu() for part in parts], 1)

        found: list[Measurement] = []
        chunks = in_order(launch, chunks_of(self.samples), (CHUNK, sum(widths)), work)
        if launch.is_main:
            found = self._gather(chunks, widths, sampler, reference, judged)
        else:
            collections.deque(chunks, maxlen=0)
        if "resolutions" in self.measures:
            found += self._resolutions(launch, data)
        return found

    def _gather(
        self,
        chunks: Iterator[Tensor],
        widths: list[int],
        sampler: Sampler,
        reference: Reference | None,
        judged: Reference | None,
    ) -> list[Measurement]:
        moments = Moments(widths[0]) if "fid" in self.measures else None
        score = InceptionScore(self.samples, widths[1], self.splits) if widths[1] else None
        kept = np.empty((min(self.samples, KEPT) if self._keeps else 0, widths[0]), dtype=np.float32)
        sums = ClassSums(sampler.classes, widths[2], widths[3] or widths[0]) if self.judge else None
        for number, whole in enumerate(chunks):
            first = number * CHUNK
            rows = whole[: self.samples - first]
            features, logits, right, judge_features = torch.split(rows, widths, 1)
            if moments:
                moments.add(features.float())
            if score:
                score.add(logits.float())
            if first < len(kept):
                kept[first : first + CHUNK] = features[: len(kept) - first].float().numpy()
            if sums:
                sums.add(sampler.labels(number)[: len(rows)], right, judge_features if widths[3] else features)
        self.class_sums = sums
        found = self._of_features(moments, score, torch.from_numpy(kept), reference)
        if sums and "accuracy" in self.measures:
            found.append(self._accuracy(sums, judged))
        return found

    @property
    def _keeps(self) -> bool:
        return "kid" in self.measures or "precision_recall" in self.measures

    def _of_features(
        self, moments: Moments | None, score: InceptionScore | None, kept: Tensor, reference: Reference | None
    ) -> list[Measurement]:
        found: list[Measurement] = []
        if self.network is None:
            return found
        features = {"features": self.network.description, "features_digest": self.network.digest}
        if score:
            mean, deviation = score.score()
            more = {"samples": self.samples, "splits": self.splits, "deviation": deviation, **features}
            found.append(Measurement("inception_score", mean, more, better="higher"))
        if reference is None:
            return found
        against = features | {"reference": reference.describe()}
        if moments:
            distance = frechet_distance(moments.gaussian(), reference.gaussian)
            more = {"samples": self.samples, **against}
            found.append(Measurement("frechet_distance", distance, more, better="lower"))
        real = reference.subset(KEPT) if self._keeps else kept
        counts = {"samples": len(kept), "real_samples": len(real)}
        if "kid" in self.measures:
            kernel = kernel_distance(kept, real)
            more = counts | {"subsets": SUBSETS, "subset_size": kernel.subset_size, "deviation": kernel.deviation}
            found.append(Measurement("kernel_distance", kernel.mean, more | against, better="lower"))
        if "precision_recall" in self.measures:
            pair = precision_recall(kept, real)
            more = counts | {"neighbours": NEIGHBOURS, **against}
            found.append(Measurement("precision", pair.precision, more, "%", "higher"))
            found.append(Measurement("recall", pair.recall, more, "%", "higher"))
        return found

    def _accuracy(self, sums: ClassSums, judged: Reference | None) -> Measurement:
        assert self.judge is not None
        names = self.judge.class_names
        accuracy = sums.accuracy[:, -1]
        more = {"samples": self.samples, **self._judge_digest(), "per_class": by_name(names, accuracy)}
        if judged is not None:
            real = real_sums(judged, self.judge)
            diversity = sums.variance / real.variance
            more |= {
                "reference": judged.describe(),
                "real_images": float(real.accuracy.nanmean()),
                "diversity": float(diversity.nanmean()),
                "diversity_per_class": by_name(names, diversity),
            }
        return Measurement("class_accuracy", float(accuracy.nanmean()), more, "%", "higher")

    def _resolutions(self, launch: Launch, data: DataConfig) -> list[Measurement]:
        """The AC-GAN study; the same of as many real images beside it."""
        judge, columns = self.judge, len(self.resolutions)
        assert judge is not None
        samples = manifest_of(data).samples
        count = min(self.samples, samples)
        real = ClassSums(len(judge.class_names), columns, 0)
        rows = over_real_images(
            launch,
            data,
            chunks_of(count),
            columns,
            lambda chunk: judge.right(chunk.images, chunk.labels, self.resolutions),
        )
        for part in rows:
            real.add(part.labels, part.values, torch.zeros(len(part.labels), 0))
        if self.class_sums is None:  # not the main process
            return []
        ours = discriminability(self.class_sums.accuracy, self.resolutions)
        theirs = discriminability(real.accuracy, self.resolutions)
        more = {
            "samples": self.samples,
            **self._judge_digest(),
            "resize": "bilinear, antialiased when shrinking",
            "resolutions": self.resolutions,
            "accuracy": ours.accuracy,
            "real_accuracy": theirs.accuracy,
            "real_samples": int(real.count.sum()),
            "better_at_full_resolution": ours.better_at_full,
        }
        lost = ours.accuracy[0] / max(ours.accuracy[-1], 1e-12)
        return [Measurement("accuracy_kept_at_lowest_resolution", lost, more, "%")]

    def _judge_digest(self) -> dict[str, str]:
        assert self.judge is not None
        return {"classifier": self.judge.network.description, "classifier_digest": self.judge.network.digest}


def real_sums(judged: Reference, judge: Judge) -> ClassSums:
    """Accuracy and variance of the real images' features, class by class."""
    sums = ClassSums(len(judge.class_names), 1, judged.features.shape[1])
    for label in range(len(judge.class_names)):
        rows = np.flatnonzero(judged.labels == label)
        right = torch.from_numpy(judged.predictions[rows]) == judge.logit_of[label]
        sums.add(torch.full((len(rows),), label), right[:, None], torch.from_numpy(judged.features[rows]))
    return sums


def by_name(names: tuple[str, ...], values: Tensor) -> dict[str, float]:
    """Values per class by name; classes of one name are told apart by their number."""
    unique = len(set(names)) == len(names)
    return {
        name if unique else f"{number} {name}": float(v)
        for number, (name, v) in enumerate(zip(names, values, strict=True))
    }
