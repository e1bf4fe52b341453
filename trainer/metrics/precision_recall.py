"""Improved precision and recall (Kynkäänniemi et al. 2019), by torch-fidelity: 3 nearest neighbours.

Precision: the share of generated images inside the balls round real ones. Recall: the share of real images inside the balls
round generated ones, which falls where modes are missing. Both depend on the numbers of samples; use equal ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 3
_ROWS = 1000  # of the matrix of distances that are in memory at a time: 40 MB beside 10,000 samples


class PrecisionRecall(NamedTuple):
    """Shares, 0..1."""

    precision: float
    recall: float


def precision_recall(generated: Tensor, real: Tensor) -> PrecisionRecall:
    """Of features [n, F] and [m, F], float32; each needs more than 3 rows."""
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    with torch.no_grad():
        return PrecisionRecall(*calculate_precision_recall_part(generated, real, NEIGHBOURS, _ROWS))
