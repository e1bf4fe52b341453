"""Progressive growing (Karras et al. 2018, arXiv 1710.10196): WGAN-GP or least squares, class-conditional with AC-GAN's loss.

The game of networks that grow is trainer/methods/growing.py's; here are the settings and the discriminator's noise.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trainer.methods.growing import Critic, GrowingMethod, check_growing, refuse_terms
from trainer.methods.growth import GrowthConfig
from trainer.methods.problem import Problem
from trainer.methods.protocol import Networks, Tensors
from trainer.methods.terms.classes import ClassTerm
from trainer.methods.terms.losses import LossName
from trainer.methods.terms.penalty_terms import GradientPenaltyConfig, PenaltyConfig
from trainer.methods.terms.term import Term
from trainer.models.growing import Stage
from trainer.models.layers import at_least_float32
from trainer.models.pggan import PGGANDiscriminatorConfig, PGGANGeneratorConfig

NOISE_DECAY, NOISE_LIMIT, NOISE_WEIGHT = 0.9, 0.5, 0.2
"""Of the noise in the discriminator: strength 0.2 max(0, d - 0.5)^2, d the running mean of the score (appendix B)."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class PGGANConfig:
    """Progressive growing; the defaults are the official code's."""

    resets_optimizers: ClassVar[bool] = True

    name: Literal["pggan"] = "pggan"
    growth: GrowthConfig = GrowthConfig()
    """When the networks grow."""
    generator: PGGANGeneratorConfig = PGGANGeneratorConfig()
    """The generator."""
    discriminator: PGGANDiscriminatorConfig = PGGANDiscriminatorConfig()
    """The discriminator."""
    loss: LossName = "wasserstein"
    """The official code's is the Wasserstein loss; `inverted_least_squares` is that of appendix B."""
    penalty: PenaltyConfig = Field(default_factory=lambda: GradientPenaltyConfig(drift=0.001))
    """A penalty on the discriminator's gradient, by default that of WGAN-GP with the drift term."""
    penalty_at: Literal["full", "stage"] = "full"
    """Of which images the penalty's gradient is taken: of the full size, as in the official code, so that at s px it is
    s / `model.resolution` times as long; or of the stage's own size, as in many ports."""
    class_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of AC-GAN's class loss in both players' losses, where there are classes."""

    @property
    def second_derivatives(self) -> bool:
        return bool(self.penalty.build())

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the networks cannot grow as asked."""
        check_growing(self, problem)

    def build(self, problem: Problem) -> "PGGANMethod":
        """The game. Raises `SettingError` for terms from outside, which would see images of the stage's size."""
        refuse_terms(self, problem)
        return PGGANMethod(self, problem)


class PGGANMethod(GrowingMethod):
    """One generator, one discriminator, one update of each in an iteration."""

    def __init__(self, config: PGGANConfig, problem: Problem) -> None:
        own: tuple[Term, ...] = config.penalty.build()
        if problem.model.classes:
            own = (*own, ClassTerm(config.class_weight, config.class_weight, classify_generated=True))
        super().__init__(config, problem, own)
        self.noisy = config.discriminator.noisy
        self.draws = self.noisy or self.draws

    def critic(self, networks: Networks, stage: Stage, memory: Tensors) -> Critic:
        """With the noise that is remembered."""
        return replace(super().critic(networks, stage, memory), more=(_strength(memory),))

    def remembered(self, memory: Tensors, fake_logits: Tensor) -> Tensors:
        """The running mean of the score of generated images, which is 1 where the discriminator is sure."""
        if "score" not in memory:
            return memory
        score = at_least_float32(fake_logits.detach()).mean().clamp(0, 1).to(memory["score"].dtype)
        return {"score": NOISE_DECAY * memory["score"] + (1 - NOISE_DECAY) * score}

    def memory(self, replica: int) -> dict[str, Tensor]:
        """Where the discriminator is noisy: the running mean of its score of generated images."""
        return {"score": torch.zeros(())} if self.noisy else {}


def _strength(memory: Tensors) -> Tensor | None:
    if "score" not in memory:
        return None
    return NOISE_WEIGHT * (memory["score"] - NOISE_LIMIT).clamp(min=0).square()
