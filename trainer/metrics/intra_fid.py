"""Intra-FID (Miyato & Koyama 2018): the Fréchet distance of each class's samples to its real images, and the mean."""

from typing import ClassVar

import torch
from torch import Tensor

from trainer.metrics.frechet import Moments, class_distance
from trainer.metrics.protocol import Measure, Needs, Setting
from trainer.metrics.records import Measurement, by_name
from trainer.metrics.samples import in_order
from trainer.trained.sampling import CHUNK, chunks_of


class IntraFrechet(Measure):
    """Of --class-samples samples of each class and all its real images.

    Chunks are dealt to the processes; the main one holds the moments of one class (24 F^2 bytes at the end of a class) and
    the real features of one class at a time.
    """

    name, meaning = "intra_fid", "Fréchet distance within each class, and its mean"
    needs = Needs(network=True, reference=True, classes=True)
    titles: ClassVar[dict[str, str]] = {
        "intra_frechet_distance": "Fréchet distance within classes, mean (intra-FID with TF-Inception)"
    }
    outcomes = frozenset({"per_class"})
    column = "Fréchet"
    in_all = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._distances: list[float] = []

    def work(self) -> None:
        setting, samples = self.setting, self.setting.plan.class_samples
        network, reference = setting.network, setting.reference
        assert network is not None
        chunks, classes = chunks_of(samples), len(setting.manifest.classes)

        def features_of(number: int) -> Tensor:
            return network.both(setting.samples.of_condition(torch.tensor(number // chunks), number % chunks))[0]

        moments = Moments(network.dimension)
        for number, features in enumerate(
            in_order(setting.launch, classes * chunks, (CHUNK, network.dimension), features_of)
        ):
            label, chunk = divmod(number, chunks)
            moments.add(features[: samples - chunk * CHUNK])
            if chunk == chunks - 1:
                assert reference is not None
                self._distances.append(class_distance(moments.gaussian(), reference.of_class(label)))
                moments = Moments(network.dimension)

    def result(self) -> list[Measurement]:
        setting, distances = self.setting, torch.tensor(self._distances, dtype=torch.float64)
        assert setting.reference is not None
        manifest = setting.reference.manifest
        more = {
            "samples_per_class": setting.plan.class_samples,
            **setting.of_network(),
            "reference": setting.reference.describe(),
            "real_images_per_class": [min(sizes := [c.samples for c in manifest.classes]), max(sizes)],
            "mean_over_classes": True,
            "per_class": by_name(manifest.class_names, distances),
        }
        value = float(distances.nanmean())
        return [Measurement("intra_frechet_distance", value, more, better="lower")]
