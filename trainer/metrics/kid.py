"""Kernel Inception Distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / F + 1)^3, by torch-fidelity.

Unbiased: round 0 (also below it) where both sets have one distribution, even for few samples, which FID is not.
"""

from typing import ClassVar, NamedTuple

from torch import Tensor

from trainer.metrics.kept import KEPT, KeptFeatures
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement

SUBSETS = 100
SUBSET_SIZE = 1000


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets, and how large these were."""

    mean: float
    deviation: float
    subset_size: int


def kernel_distance(generated: Tensor, real: Tensor, seed: int = 2020) -> KernelDistance:
    """Of features [n, F] and [m, F]: 100 pairs of random subsets of 1000 (of fewer, if there are fewer samples)."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(SUBSET_SIZE, len(generated), len(real))
    found = kid_features_to_metric(
        generated, real, kid_subsets=SUBSETS, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return KernelDistance(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD], size)


class Kernel(Measure):
    """KID with TF-Inception, of the first 10,000 samples and as many real images."""

    name, meaning = "kid", "kernel distance (KID)"
    needs = Needs(features=True, reference=True)
    titles: ClassVar[dict[str, str]] = {"kernel_distance": "kernel distance (KID)"}
    outcomes = frozenset({"deviation"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.network is not None
        self._kept = KeptFeatures(setting.plan.samples, setting.network.dimension)

    def add(self, seen: Seen) -> None:
        self._kept.add(seen)

    def result(self) -> list[Measurement]:
        setting, generated = self.setting, self._kept.tensor()
        assert setting.reference is not None
        real = setting.reference.subset(KEPT)
        found = kernel_distance(generated, real)
        more = {
            "samples": len(generated),
            "real_samples": len(real),
            "subsets": SUBSETS,
            "subset_size": found.subset_size,
            "deviation": found.deviation,
            **setting.of_network(),
            "reference": setting.reference.describe(),
        }
        return [Measurement("kernel_distance", found.mean, more, better="lower")]
