"""The penalties on the discriminator's gradient as settings and terms (the equations: penalties.py)."""

from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.foundation.choices import Choice
from trainer.foundation.transfer import to_device
from trainer.methods.terms import penalties
from trainer.methods.terms.term import Seen, Term, Value

_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class NoPenaltyConfig:
    name: Literal["none"] = "none"

    def build(self) -> tuple[Term, ...]:
        return ()


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class GradientPenaltyConfig:
    """WGAN-GP's penalty between real and generated images."""

    name: Literal["gradient"] = "gradient"
    weight: Annotated[float, Field(gt=0)] = 10.0
    """lambda."""
    target: Annotated[float, Field(gt=0)] = 1.0
    """The length that gradients are drawn to."""
    drift: Annotated[float, Field(ge=0)] = 0.0
    """Weight of E D(x)^2 (PGGAN: 0.001)."""
    every: Annotated[int, Field(ge=1)] = 1
    """The penalty is on in every so many updates of the discriminator, with so many times the weight (lazy
    regularisation, Karras et al. 2020, appendix B)."""

    def build(self) -> tuple[Term, ...]:
        return (GradientPenalty(self),)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class R1Config:
    """Gradient penalty on real images alone."""

    name: Literal["r1"] = "r1"
    gamma: Annotated[float, Field(gt=0)] = 10.0
    """The penalty is gamma / 2 times the mean squared length."""
    every: Annotated[int, Field(ge=1)] = 1
    """As of the gradient penalty. StyleGAN2 has 16."""

    def build(self) -> tuple[Term, ...]:
        return (R1(self),)


PenaltyConfig = Annotated[NoPenaltyConfig | GradientPenaltyConfig | R1Config, Choice()]


def _lazy(player: str, update: int, every: int) -> float | None:
    return float(every) if player == "discriminator" and update % every == 0 else None


class GradientPenalty(Term):
    """weight x E ((|grad D(x)| - t) / t)^2 between real and generated images + drift x E D(x)^2."""

    means_over_samples = True
    name = "penalty"

    def __init__(self, config: GradientPenaltyConfig) -> None:
        self.config = config

    def weight(self, player: str, iteration: int, update: int) -> float | None:
        return _lazy(player, update, self.config.every)

    def value(self, player: str, seen: Seen, weight: float) -> Value:
        assert seen.real is not None and seen.real_images is not None and seen.real_labels is not None  # noqa: PT018
        n = min(len(seen.real_images), len(seen.fake_images))
        labels = seen.real_labels[:n]
        mix = to_device(
            torch.rand(n, dtype=seen.real_images.dtype), seen.real_images.device
        )  # the same on every device
        value = penalties.gradient_penalty(
            lambda x: seen.discriminator(x, labels).logits,
            seen.real_images[:n],
            seen.fake_images[:n],
            mix,
            self.config.target,
        )
        drift = penalties.drift(seen.real.logits)
        loss = self.config.weight * value + self.config.drift * drift
        return Value(weight * loss, {"gradient_penalty": value, "drift": drift})


class R1(Term):
    """gamma / 2 x E |grad D(x)|^2 at real x."""

    name = "penalty"
    draws = False
    means_over_samples = True
    differentiates_images = True

    def __init__(self, config: R1Config) -> None:
        self.config = config

    def weight(self, player: str, iteration: int, update: int) -> float | None:
        return _lazy(player, update, self.config.every)

    def value(self, player: str, seen: Seen, weight: float) -> Value:
        assert seen.real is not None and seen.real_images is not None  # noqa: PT018
        value = penalties.r1(seen.real.logits, seen.real_images)
        return Value(weight * (self.config.gamma * value), {"r1": value})
