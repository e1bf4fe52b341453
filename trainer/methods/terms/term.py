"""A loss is a sum of terms. A term says in whose turns it is on, with what weight, and what it adds.

To add one: a file with its class here, and whoever builds the method names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from trainer.models.conditioning import DiscriminatorOutput


@dataclass(frozen=True)
class Seen:
    """What one turn of an adversarial game has computed for one replica. Shapes: n real, m generated images."""

    discriminator: Callable[[Tensor, Tensor], DiscriminatorOutput]
    """For terms that look at other images."""
    fake_images: Tensor
    """[m, C, H, W], in the generator's turn with a graph."""
    fake_labels: Tensor
    """[m], int64."""
    fake: DiscriminatorOutput
    real_images: Tensor | None = None
    """[n, C, H, W]; None in the generator's turn. They require a gradient where a term of the turn asks for it."""
    real_labels: Tensor | None = None
    """[n], int64."""
    real: DiscriminatorOutput | None = None


class Value(NamedTuple):
    """What a term adds to the loss, and what it logs."""

    loss: Tensor
    logged: dict[str, Tensor]


class Term:
    """The base of all terms: off, and nothing to add."""

    name = "term"
    """In `Turn.terms`."""
    means_over_samples = False
    """Whether the value is a mean over the replica's samples of what each has alone; so it can be cut into parts."""
    differentiates_images = False
    """Whether the term needs the gradient of the discriminator's logits with respect to the real images."""

    def weight(self, player: str, iteration: int, update: int) -> float | None:
        """The weight in a turn of `player`; None: the term is off.

        `update`: the number of the player's updates before this one, in the whole run.
        """
        return None

    def value(self, player: str, seen: Seen, weight: float) -> Value:
        """The weighted value in a turn of `player` in which the term is on."""
        raise NotImplementedError
