"""StyleGAN (Karras et al. 2019, arXiv 1812.04948): styles, noise and mixing in a game of networks that grow.

The game is trainer/methods/growing.py's; here are the settings and style mixing. Every row of the paper's Table 1 is a
combination of settings (docs/stylegan.md). Configuration A is progressive growing itself.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.keys import Keys
from trainer.methods.growing import GENERATOR, GrowingMethod, GrowingSampler, check_growing, refuse_terms
from trainer.methods.growth import GrowthConfig
from trainer.methods.problem import Problem
from trainer.methods.protocol import NO_NAMES, ClassNames, Networks, Sampler, Tensors, Turn
from trainer.methods.sampling import ClassConditions
from trainer.methods.styles import StyleSampler
from trainer.methods.terms.losses import LossName
from trainer.methods.terms.penalty_terms import PenaltyConfig, R1Config
from trainer.models.growing import Stage
from trainer.models.stylegan import StyleGANGeneratorConfig, layers_at
from trainer.models.stylegan_discriminator import StyleGANDiscriminatorConfig


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class StyleGANConfig:
    """The style-based generator; the defaults are the official code's for FFHQ, configuration F."""

    resets_optimizers: ClassVar[bool] = True

    name: Literal["stylegan"] = "stylegan"
    growth: GrowthConfig = GrowthConfig(first_resolution=8)
    """When the networks grow."""
    generator: StyleGANGeneratorConfig = StyleGANGeneratorConfig()
    """The generator."""
    discriminator: StyleGANDiscriminatorConfig = StyleGANDiscriminatorConfig()
    """The discriminator."""
    loss: LossName = "non_saturating"
    """The logistic loss (FFHQ, configurations B to F); `wasserstein` for CelebA-HQ and for configuration A."""
    penalty: PenaltyConfig = Field(default_factory=R1Config)
    """A penalty on the discriminator's gradient: R1 in every update, as in the official code."""
    penalty_at: Literal["full", "stage"] = "full"
    """Of which images the penalty's gradient is taken: of the full size, as in the official code, so that its square at
    s px is (s / `model.resolution`)^2 times as large; or of the stage's own size, as in many ports."""
    mixing: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Probability of style mixing (configuration F; else 0)."""
    mixing_of: Literal["batch", "sample"] = "batch"
    """What has one coin and one cutoff: the batch of a replica, as in the official code, or a sample, as in the paper."""

    @property
    def second_derivatives(self) -> bool:
        return bool(self.penalty.build())

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the networks cannot grow as asked."""
        check_growing(self, problem)
        if self.mixing and not self.generator.styles:
            raise ValueError(
                f"objective.mixing: is {self.mixing:g}, but objective.generator.styles is false, so there are no styles to "
                "mix; set objective.mixing to 0"
            )

    def build(self, problem: Problem) -> "StyleGANMethod":
        """The game. Raises `SettingError` for terms from outside, which would see images of the stage's size."""
        refuse_terms(self, problem)
        return StyleGANMethod(self, problem)


class StyleGANMethod(GrowingMethod):
    """A game whose generator is given two latents for each sample, and the layer from which the second one rules."""

    def __init__(self, config: StyleGANConfig, problem: Problem) -> None:
        super().__init__(config, problem, config.penalty.build())
        self.mixing, self.of_sample = config.mixing, config.mixing_of == "sample"
        self.styles, self.truncation_layers = config.generator.styles, config.generator.truncation_layers

    def draw(self, turn: Turn, keys_of: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """With mixing also `mixed`, the second latents [m, Z], and `cutoff`, int64 [m].

        With the probability `mixing` a cutoff is uniform in 1, ..., n - 1, else it is n, the number of layers at the stage.
        """
        found = super().draw(turn, keys_of, real)
        if not self.mixing:
            return found
        source, count = keys_of.generator("mixing"), turn.made if self.of_sample else 1
        layers = layers_at(Stage.of(turn.form).resolution)
        mixes = torch.rand(count, generator=source) < self.mixing
        cutoff = torch.where(mixes, torch.randint(1, layers, (count,), generator=source), layers)
        found["mixed"] = self.problem.model.latents(keys_of.generator("mixed latents"), turn.made)
        found["cutoff"] = cutoff.expand(turn.made).contiguous()
        return found

    def generated(self, networks: Networks, draw: Tensors, stage: Stage) -> Tensor:
        """With mixed styles where the draw says so."""
        images: Tensor = networks[GENERATOR](
            draw["latents"], draw["labels"], stage, draw.get("mixed"), draw.get("cutoff")
        )
        return images

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
        """Images of the full size, by class; without styles there is neither truncation nor a sheet."""
        model = self.problem.model
        conditions = ClassConditions(model.classes, classes.names, classes.ids)
        if not self.styles:
            return GrowingSampler(networks, model, conditions)
        return StyleSampler(networks, model, conditions, self.truncation_layers)
