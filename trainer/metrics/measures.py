"""Every measure by its name on the command line, and the evaluation of one generator by those that are asked for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data_pipeline.reading.stream import DataConfig
from trainer.foundation.errors import SettingError
from trainer.metrics.diversity import window_settings
from trainer.metrics.features import ClassifierFeatures, FeatureNetwork
from trainer.metrics.judge import Judge
from trainer.metrics.neighbours import NearCopies, near_copies, nearest_features, nearest_pixels
from trainer.metrics.over_classes import accuracy_against_ms_ssim, generated_ms_ssim, intra_frechet, real_ms_ssim
from trainer.metrics.overall import OF_FEATURES, OF_JUDGE, Overall, by_name
from trainer.metrics.pictures import ROWS, interpolation_strips, morph_strips, neighbour_rows
from trainer.metrics.real import manifest_of, real_chunks
from trainer.metrics.records import Measurement
from trainer.metrics.reference import Reference, open_reference
from trainer.metrics.samples import CHUNK, Sampler, chunks_of
from trainer.processes.launch import Launch

MEASURES = {
    "is": "Inception Score",
    "fid": "Fréchet distance (FID with TF-Inception)",
    "kid": "kernel distance (KID)",
    "precision_recall": "improved precision and recall",
    "accuracy": "class accuracy, and diversity of the classifier's features",
    "resolutions": "class accuracy at lower resolutions",
    "ms_ssim": "MS-SSIM of pairs within each class",
    "intra_fid": "Fréchet distance within each class, and its mean",
    "neighbours": "nearest training images, in pixels and in features",
    "strips": "pictures: latent interpolations and class morphs",
}
NEED_FEATURES = (*OF_FEATURES, "intra_fid", "neighbours")
NEED_REFERENCE = ("fid", "kid", "precision_recall", "intra_fid", "neighbours")
SHOWN_NEIGHBOURS = 4


@dataclass(frozen=True)
class Plan:
    """What is measured, and how."""

    measures: tuple[str, ...]
    samples: int = 10_000
    splits: int = 10
    seed: int = 0
    pairs: int = 100
    class_samples: int = 5_000
    queries: int = 200

    def __post_init__(self) -> None:
        unknown = [name for name in self.measures if name not in MEASURES]
        if unknown:
            raise SettingError(
                f"--measures: there is no measure {unknown[0]!r}; there are {', '.join(MEASURES)}, and all"
            )
        for name in ("samples", "splits", "pairs", "class_samples", "queries"):
            least = 1 if name == "splits" else 2
            if getattr(self, name) < least:
                raise SettingError(f"--{name.replace('_', '-')}: is {getattr(self, name)}; give at least {least}")
        if self.splits > self.samples:
            raise SettingError(f"--splits: is {self.splits}, more than the {self.samples} samples; give fewer")


@dataclass
class Outcome:
    """What the main process has in the end; the others have empty ones."""

    measurements: list[Measurement] = field(default_factory=list)
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    ms_ssim: torch.Tensor | None = None
    real_ms_ssim: torch.Tensor | None = None


@dataclass
class Evaluation:
    """Measures generators of one run. All processes call it alike; real images are looked at once."""

    plan: Plan
    launch: Launch
    data: DataConfig
    """The real images."""
    network: FeatureNetwork | None
    judge: Judge | None
    cache: Path
    with_real: bool = True
    """Whether the class accuracy's diversity is compared with the real images (it takes the judge's features of all)."""

    def __post_init__(self) -> None:
        asked = self.plan.measures
        if any(name in asked for name in NEED_FEATURES) and self.network is None:
            raise SettingError(
                "--features: is needed for the measures that are asked for; efficientnet_lite0 is installed"
            )
        lacking = [name for name in OF_JUDGE if name in asked]
        if lacking and self.judge is None:
            raise SettingError(
                f"--classifier: is needed for {', '.join(lacking)}; give the file that `python -m trainer.train_classifier` "
                "wrote, or efficientnet_lite0 for ImageNet's classes"
            )
        self._reference: Reference | None = None
        self._judged: Reference | None = None
        self._opened = False

    def run(self, sampler: Sampler) -> Outcome:
        """Measure one generator."""
        plan, out = self.plan, Outcome()
        with self._clock(out, "reference"):
            self._references()
        asked = plan.measures
        of_pass = [name for name in asked if name in OF_FEATURES + OF_JUDGE]
        overall = None
        if of_pass:
            needs_network = any(name in OF_FEATURES for name in asked)
            needs_judge = any(name in OF_JUDGE for name in asked)
            overall = Overall(
                tuple(of_pass),
                plan.samples,
                plan.splits,
                self.network if needs_network else None,
                self.judge if needs_judge else None,
            )
            with self._clock(out, "+".join(of_pass)):
                out.measurements += overall.run(self.launch, sampler, self._reference, self._judged, self.data)
        if "ms_ssim" in asked:
            with self._clock(out, "ms_ssim"):
                self._ms_ssim(sampler, out, overall)
        if "intra_fid" in asked:
            with self._clock(out, "intra_fid"):
                self._intra_fid(sampler, out)
        if self.launch.is_main and "neighbours" in asked:
            with self._clock(out, "neighbours"):
                self._neighbours(sampler, out)
        if self.launch.is_main and "strips" in asked:
            with self._clock(out, "strips"):
                out.pictures["interpolation"] = interpolation_strips(sampler.generator, plan.seed)
                morph = morph_strips(sampler.generator, plan.seed)
                if morph is not None:
                    out.pictures["morph"] = morph
        return out

    @contextmanager
    def _clock(self, out: Outcome, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        out.seconds[stage] = round(time.monotonic() - began, 3)

    def _references(self) -> None:
        """Real features, from the cache or computed by all processes; once for all generators."""
        if self._opened:
            return
        self._opened, asked = True, self.plan.measures
        shared = self.judge is not None and self.judge.network is self.network
        needed = any(name in asked for name in NEED_REFERENCE)
        if self.network and needed:
            self._reference = open_reference(self.launch, self.data, self.network, self.cache)
        if self.judge and "accuracy" in asked:
            if shared and needed:
                self._judged = self._reference
            elif self.with_real:
                self._judged = open_reference(self.launch, self.data, self.judge.network, self.cache)

    def _of_network(self) -> dict[str, Any]:
        assert self.network is not None
        return {"features": self.network.description, "features_digest": self.network.digest}

    def _ms_ssim(self, sampler: Sampler, out: Outcome, overall: Overall | None) -> None:
        pairs = self.plan.pairs
        generated = generated_ms_ssim(self.launch, sampler, pairs)
        real = real_ms_ssim(self.launch, self.data, self.cache, pairs)
        if generated is None or real is None:
            return
        out.ms_ssim, out.real_ms_ssim = generated, real
        names, threshold = manifest_of(self.data).class_names, float(real[real.isfinite()].max())
        more = {
            "pairs_per_class": pairs,
            **window_settings(sampler.generator.model.resolution),
            "per_class": by_name(names, generated),
            "real_images": float(real.nanmean()),
            "real_per_class": by_name(names, real),
            "threshold": threshold,
            "threshold_is": "the largest of a real class, as in the AC-GAN paper",
            "share_of_classes_below": float((generated < threshold).double().mean()),
            "reference": {"data_fingerprint": manifest_of(self.data).fingerprint},
        }
        out.measurements.append(Measurement("ms_ssim", float(generated.mean()), more, better="lower"))
        if overall is not None and overall.class_sums is not None and overall.judge is not None:
            relation = accuracy_against_ms_ssim(overall.class_sums.accuracy[:, -1], generated, threshold)
            more = {
                "classes": len(generated),
                "threshold": threshold,
                "classes_above_1%_accuracy_if_alike": relation.accurate_if_alike,
                "classes_above_1%_accuracy_if_varied": relation.accurate_if_varied,
                "classifier": overall.judge.network.description,
            }
            out.measurements.append(Measurement("accuracy_ms_ssim_correlation", relation.correlation, more))

    def _intra_fid(self, sampler: Sampler, out: Outcome) -> None:
        assert self.network is not None
        samples = self.plan.class_samples
        distances = intra_frechet(self.launch, sampler, self.network, self._reference, samples)
        if distances is None or self._reference is None:
            return
        manifest = self._reference.manifest
        more = {
            "samples_per_class": samples,
            **self._of_network(),
            "reference": self._reference.describe(),
            "real_images_per_class": [min(sizes := [c.samples for c in manifest.classes]), max(sizes)],
            "mean_over_classes": True,
            "per_class": by_name(manifest.class_names, distances),
        }
        value = float(distances.nanmean())
        out.measurements.append(Measurement("intra_frechet_distance", value, more, better="lower"))

    def _neighbours(self, sampler: Sampler, out: Outcome) -> None:
        """In the main process alone: one pass over all training images."""
        assert self.network is not None
        assert self._reference is not None
        count, device = self.plan.queries, str(sampler.generator.device)
        chunks = range(chunks_of(count))
        generated = torch.cat([sampler.images(chunk) for chunk in chunks])[:count]
        own = list(real_chunks(self.data, 0, chunks_of(min(count, len(self._reference.labels)))))
        real = torch.cat([chunk.images[: chunk.new] for chunk in own])[:count]
        ids = torch.cat([torch.full((count,), -1), torch.cat([chunk.ids[: chunk.new] for chunk in own])[:count]])
        queries = torch.split(torch.cat([generated, real]), CHUNK)
        features = torch.cat([self.network.both(part)[0].cpu() for part in queries])
        by_feature = nearest_features(features, ids, self._reference, SHOWN_NEIGHBOURS)
        shown = min(ROWS, count)
        search = nearest_pixels(
            torch.cat([generated, real]),
            ids,
            self.data,
            SHOWN_NEIGHBOURS,
            by_feature.ids[:shown].flatten().tolist(),
            device,
        )
        for kind, distances in (("pixels", search.nearest.distances), ("features", by_feature.distances)):
            copies = near_copies(distances[:count, 0], distances[count:, 0])
            out.measurements.append(self._copies(kind, copies, len(real)))
        sides = [
            [[search.pictures[i] for i in row] for row in ids[:shown].tolist()]
            for ids in (search.nearest.ids, by_feature.ids)
        ]
        labels = torch.cat([sampler.labels(chunk) for chunk in chunks])[:shown].tolist()
        names = [sampler.generator.name_of(label) for label in labels]
        out.pictures["neighbours"] = neighbour_rows(generated[:shown], sides, names)

    def _copies(self, kind: str, found: NearCopies, real: int) -> Measurement:
        assert self._reference is not None
        more = {
            "samples": self.plan.queries,
            "real_samples": real,
            "expected_without_copying": 0.01,
            "yardstick": found.yardstick,
            "median_distance_over_real": found.median_ratio,
            **(self._of_network() if kind == "features" else {"distance": "Euclidean, of pixels in [-1, 1]"}),
            "reference": self._reference.describe(),
        }
        return Measurement(f"near_copies_{kind}", found.share, more, "%")


def open_judge(network: FeatureNetwork, data: DataConfig) -> Judge:
    """Of a classifier; raises SettingError if it has other classes than the data (or none)."""
    if not isinstance(network, ClassifierFeatures):
        raise SettingError(
            "--classifier: TF-Inception's 1008 outputs are not ImageNet's classes; give efficientnet_lite0"
        )
    return Judge(network, manifest_of(data))
