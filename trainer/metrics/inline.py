"""The light watch inside a run: health scalars at every report, MS-SSIM of a few pairs at every evaluation.

In the main process alone, from keys of its own: it draws nothing that training draws, and changes nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.metrics.health import CollapseWatch, HealthWatch, Warned
from trainer.metrics.over_classes import pairs_of
from trainer.metrics.real import images_of_class
from trainer.metrics.samples import Sampler, chunks_of
from trainer.trained.pretrained import Generator

CLASSES = 20


class InlineHealth:
    """Of one run."""

    def __init__(self, config: Config, class_names: Sequence[str], networks: Mapping[str, nn.Module]) -> None:
        self.config = config
        classes = config.model.classes
        self.labels = (
            [row * classes // CLASSES for row in range(CLASSES)] if classes > CLASSES else range(max(classes, 1))
        )
        self._names = [class_names[label] if classes else "the model" for label in self.labels]
        self._watch = HealthWatch(networks)
        self._collapse: CollapseWatch | None = None

    def at_log(self, values: Mapping[str, float]) -> tuple[dict[str, float], list[Warned]]:
        """Scalars and warnings; `values` are the means that are being reported."""
        found = self._watch.scalars(values.get("score/real"), values.get("score/fake"))
        return found, self._watch.warnings(found)

    def at_evaluation(self, module: nn.Module) -> tuple[dict[str, float], list[Warned]]:
        """MS-SSIM within up to 20 classes of images from `module`, and the warning `collapse`."""
        pairs, config = self.config.evaluation.ms_ssim_pairs, self.config
        sampler = Sampler(Generator(module, config.model, config.generator), config.run.seed)
        was_training = module.training
        module.eval()
        values = [self._of_class(sampler, label, pairs) for label in self.labels]
        module.train(was_training)
        if self._collapse is None:
            self._collapse = CollapseWatch(self._names, self._real(pairs))
        measured = torch.stack(values)
        warning = self._collapse.look(measured)
        scalars = {"health/ms_ssim/mean": float(measured.mean()), "health/ms_ssim/highest": float(measured.max())}
        return scalars | {"health/collapse": float(warning is not None)}, [warning] if warning else []

    def _of_class(self, sampler: Sampler, label: int, pairs: int) -> Tensor:
        images = torch.cat([sampler.of_class(label, chunk) for chunk in range(chunks_of(2 * pairs))])
        return pairs_of(images[: 2 * pairs], pairs).mean()

    def _real(self, pairs: int) -> Tensor | None:
        if not self.config.model.classes:
            return None
        data = self.config.data
        return torch.stack(
            [pairs_of(images_of_class(data, label, 2 * pairs), pairs).nanmean() for label in self.labels]
        )
