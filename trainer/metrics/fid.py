"""The Fréchet distance of all samples to all real images."""

from typing import ClassVar

from trainer.metrics.frechet import Moments, frechet_distance
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement


class Frechet(Measure):
    """FID with TF-Inception; with other features another number."""

    name, meaning = "fid", "Fréchet distance (FID with TF-Inception)"
    needs = Needs(features=True, reference=True)
    titles: ClassVar[dict[str, str]] = {"frechet_distance": "Fréchet distance (FID with TF-Inception)"}

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.network is not None
        self._moments = Moments(setting.network.dimension)

    def add(self, seen: Seen) -> None:
        self._moments.add(seen.features)

    def result(self) -> list[Measurement]:
        setting = self.setting
        assert setting.reference is not None
        distance = frechet_distance(self._moments.gaussian(), setting.reference.gaussian)
        reference = setting.reference.describe()
        more = {"samples": setting.plan.samples, **setting.of_network(), "reference": reference}
        return [Measurement("frechet_distance", distance, more, better="lower")]
