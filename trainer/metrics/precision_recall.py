"""Improved precision and recall (Kynkäänniemi et al. 2019), by torch-fidelity: 3 nearest neighbours.

Precision: the share of generated images inside the balls round real ones. Recall: the share of real images inside the balls
round generated ones, which falls where modes are missing. Both depend on the numbers of samples; use equal ones.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from trainer.foundation.errors import SettingError
from trainer.metrics.kept import KEPT, KeptFeatures
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement

NEIGHBOURS = 3
_ROWS = 1000  # of the matrix of distances in memory at a time: 40 MB for 10,000 samples


class PrecisionRecall(NamedTuple):
    """Shares, 0..1."""

    precision: float
    recall: float


def precision_recall(generated: Tensor, real: Tensor) -> PrecisionRecall:
    """Of features [n, F] and [m, F], float32; each needs more than 3 rows."""
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    with torch.no_grad():
        return PrecisionRecall(*calculate_precision_recall_part(generated, real, NEIGHBOURS, _ROWS))


class PrecisionAndRecall(Measure):
    """Of the first 10,000 samples and as many real images."""

    name, meaning = "precision_recall", "improved precision and recall"
    needs = Needs(features=True, reference=True)
    titles: ClassVar[dict[str, str]] = {"precision": "precision", "recall": "recall"}

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.network is not None
        for option, count in (("--samples", setting.plan.samples), ("--real", setting.manifest.samples)):
            if count <= NEIGHBOURS:
                raise SettingError(
                    f"{option}: {count} images are too few for precision_recall, which looks at {NEIGHBOURS} neighbours; "
                    f"give at least {NEIGHBOURS + 1}, or leave the measure out"
                )
        self._kept = KeptFeatures(setting.plan.samples, setting.network.dimension)

    def add(self, seen: Seen) -> None:
        self._kept.add(seen)

    def result(self) -> list[Measurement]:
        setting, generated = self.setting, self._kept.tensor()
        assert setting.reference is not None
        real = setting.reference.subset(KEPT)
        pair = precision_recall(generated, real)
        more = {
            "samples": len(generated),
            "real_samples": len(real),
            "neighbours": NEIGHBOURS,
            **setting.of_network(),
            "reference": setting.reference.describe(),
        }
        return [
            Measurement("precision", pair.precision, more, "%", "higher"),
            Measurement("recall", pair.recall, more, "%", "higher"),
        ]
