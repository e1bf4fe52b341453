"""The error of the run's own classifier on real images, such as that in a semi-supervised discriminator."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.foundation.errors import SettingError
from trainer.methods.sampling import Classifying
from trainer.metrics.over_real import over_real_images
from trainer.metrics.protocol import Measure, Needs, Setting
from trainer.metrics.records import Measurement, by_name
from trainer.trained.real import RealChunk
from trainer.trained.sampling import chunks_of, device_of, evaluating


class Classification(Measure):
    """Of all real images (--real), whose classes must be those of the training; the most probable class counts."""

    name, meaning = "classification", "error of the run's own classifier on the real images"
    needs = Needs(labels=True)
    titles: ClassVar[dict[str, str]] = {"classification_error": "error of the run's own classifier"}
    outcomes = frozenset({"per_class", "wrong"})
    column = "accuracy"
    in_all = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        sampler = setting.samples.sampler
        if not isinstance(sampler, Classifying):
            raise SettingError(
                "--measures: classification is the error of a run's own classifier, and this run has none; leave it out, or "
                "judge its samples with accuracy"
            )
        self._sampler = sampler
        self._right = torch.zeros(len(setting.manifest.classes), dtype=torch.float64)
        self._seen = torch.zeros_like(self._right)

    def work(self) -> None:
        """All real images once, dealt to the processes."""
        setting, sampler = self.setting, self.setting.samples.sampler
        network: Any = self._sampler.classifier
        device = device_of(sampler)

        def right(chunk: RealChunk) -> Tensor:
            images = (chunk.images.float() / 127.5 - 1.0).to(device)
            found: Tensor = network.head(network.features(images)).argmax(1).cpu()
            return torch.eq(found, chunk.labels).double()[:, None]

        with evaluating(sampler), torch.no_grad():
            chunks = chunks_of(setting.manifest.samples)
            for rows in over_real_images(setting.launch, setting.data, chunks, 1, right):
                self._right.index_add_(0, rows.labels, rows.values[:, 0])
                self._seen.index_add_(0, rows.labels, torch.ones(len(rows.labels), dtype=torch.float64))

    def result(self) -> list[Measurement]:
        right, seen = float(self._right.sum()), float(self._seen.sum())
        more = {
            "real_samples": int(seen),
            "wrong": int(seen - right),
            "per_class": by_name(self.setting.manifest.class_names, self._right / self._seen),
            "reference": {"data_fingerprint": self.setting.manifest.fingerprint},
        }
        return [Measurement("classification_error", 1 - right / seen, more, "%", "lower")]
