"""The light watch inside a run: health scalars at every report, MS-SSIM of a few pairs at every evaluation.

In the main process alone, from separate keys: it draws nothing that training draws, and changes nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from data_pipeline.reading.stream import DataConfig
from trainer.methods.protocol import Conditions, Sampler
from trainer.methods.sampling import ClassConditions
from trainer.metrics.health import CollapseWatch, HealthWatch, Warned
from trainer.metrics.ms_ssim import pairs_of
from trainer.metrics.samples import Samples
from trainer.trained.real import images_of_class

CONDITIONS = 20
"""At most so many classes are watched."""


class InlineHealth:
    """Of one run."""

    def __init__(
        self, networks: Mapping[str, nn.Module], class_names: Sequence[str], data: DataConfig, *, seed: int, pairs: int
    ) -> None:
        """
        Args:
            networks: all trained networks by the name that curves and warnings give them.
            class_names: of the data.
            data: the real images; their MS-SSIM is what that of the samples is compared with.
            seed: of the latents.
            pairs: of images of each class.
        """
        self._class_names, self._data, self._seed, self._pairs = class_names, data, seed, pairs
        self._watch = HealthWatch(networks)
        self._collapse: CollapseWatch | None = None

    def at_log(self, values: Mapping[str, float]) -> tuple[dict[str, float], list[Warned]]:
        """Scalars and warnings; `values` are the means that are being reported."""
        found = self._watch.scalars(values.get("score/real"), values.get("score/fake"))
        return found, self._watch.warnings(found)

    def at_evaluation(self, sampler: Sampler) -> tuple[dict[str, float], list[Warned]]:
        """MS-SSIM within up to 20 classes, and the warning `collapse`; nothing for samples that are no images."""
        chosen = sampler.conditions.evenly(CONDITIONS)
        if sampler.output != "image" or not len(chosen):
            return {}, []
        samples = Samples(sampler, self._seed)
        values = [
            pairs_of(samples.first_of_condition(condition, 2 * self._pairs), self._pairs).mean() for condition in chosen
        ]
        if self._collapse is None:
            names = [self._name(sampler.conditions, condition) for condition in chosen]
            self._collapse = CollapseWatch(names, self._real(sampler.conditions, chosen))
        measured = torch.stack(values)
        warning = self._collapse.look(measured)
        scalars = {"health/ms_ssim/mean": float(measured.mean()), "health/ms_ssim/highest": float(measured.max())}
        return scalars | {"health/collapse": float(warning is not None)}, [warning] if warning else []

    def _name(self, conditions: Conditions, condition: Tensor) -> str:
        if isinstance(conditions, ClassConditions) and conditions.classes:
            return self._class_names[int(condition)]
        return conditions.caption(condition) or "the model"

    def _real(self, conditions: Conditions, chosen: Tensor) -> Tensor | None:
        if not isinstance(conditions, ClassConditions) or not conditions.classes:
            return None
        of_class = [images_of_class(self._data, int(label), 2 * self._pairs) for label in chosen]
        return torch.stack([pairs_of(images, self._pairs).nanmean() for images in of_class])
