"""Numbers that end a run: NaN and infinity are found before they are committed."""

from collections.abc import Mapping

import torch

from trainer.foundation.errors import NonFinite


def first_non_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor (alphabetically) with a NaN or an infinity, None if all numbers are finite."""
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.is_floating_point() and tensor.numel() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def check_finite(tensors: Mapping[str, torch.Tensor], iteration: int, last_good: int | None) -> None:
    """Raise NonFinite, naming the tensor, the iteration and the last good commit, unless every number is finite."""
    name = first_non_finite(tensors)
    if name is None:
        return
    bad = int((~torch.isfinite(tensors[name])).sum())
    back = (
        f"the last good checkpoint is of iteration {last_good}" if last_good is not None else "no checkpoint exists yet"
    )
    raise NonFinite(
        f"{name}: {bad} of {tensors[name].numel()} numbers are NaN or infinite at iteration {iteration}; {back}. "
        "Nothing of this state was saved: lower the learning rates or change what diverges (naming it in "
        "run.allow_changed), and the same command resumes from there."
    )
