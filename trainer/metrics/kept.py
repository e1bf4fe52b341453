"""Features that are kept one by one, for measures that compare samples with each other."""

import numpy as np
import torch
from torch import Tensor

from trainer.metrics.protocol import Seen

KEPT = 10_000
"""Samples whose features are kept: 82 MB of 2048 features."""


class KeptFeatures:
    """The features of the first samples, up to 10,000."""

    def __init__(self, samples: int, features: int) -> None:
        self._rows = np.empty((min(samples, KEPT), features), dtype=np.float32)

    def add(self, seen: Seen) -> None:
        """The next samples."""
        first, last = seen.numbers.start, min(seen.numbers.stop, len(self._rows))
        if first < last:
            self._rows[first:last] = seen.features[: last - first].numpy()

    def tensor(self) -> Tensor:
        """float32 [n, F]."""
        return torch.from_numpy(self._rows)
