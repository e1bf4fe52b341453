"""Sheets: arrangements of samples that show what a method can do."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from trainer.methods.protocol import Sampler


class Sheet(NamedTuple):
    """An arrangement of images that shows what a method can do."""

    rows: Sequence[str]
    """The rows' captions."""
    columns: Sequence[str]
    """What the columns are."""
    sampler: Sampler
    """Of the cells. It need not draw: its latents come with the sheet."""
    latents: Tensor
    """[rows * columns, ...]."""
    conditions: Tensor
    """[rows * columns, ...]."""


@runtime_checkable
class Sheets(Protocol):
    """A sampler with sheets."""

    sheets: Mapping[str, str]
    """Their names, and what each shows."""

    def sheet(self, name: str, latents: Tensor, conditions: Tensor, steps: int) -> Sheet:
        """The sheet of this name, of latents [k, count, ...] for k conditions [k, ...]; `steps` from one end to another.

        Raises `SettingError` for too few latents.
        """
        ...
