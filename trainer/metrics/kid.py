"""Kernel Inception Distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / F + 1)^3, by torch-fidelity.

Unbiased: round 0 (also below it) where both sets have one distribution, even for few samples, which FID is not.
"""

from typing import NamedTuple

from torch import Tensor

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
