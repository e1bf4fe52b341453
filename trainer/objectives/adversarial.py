"""The adversarial objective: two sides of a loss, an optional penalty; and AC-GAN's, which adds the class terms.

Objectives see callables and tensors: no optimizer, device, process group or step counter.
"""

from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trainer.models.conditioning import DiscriminatorOutput
from trainer.objectives import penalties
from trainer.objectives.losses import LOSSES, classification


class RealAndLatents(NamedTuple):
    """One replica's draws for one discriminator step."""

    real_images: Tensor
    """[n, C, H, W] in [-1, 1], float32."""
    real_labels: Tensor
    """[n], int64."""
    latents: Tensor
    """[m, Z], float32."""
    labels: Tensor
    """[m], int64: the classes to generate."""


class Latents(NamedTuple):
    """One replica's draws for one generator step."""

    latents: Tensor
    """[m, Z], float32."""
    labels: Tensor
    """[m], int64."""


class Generator(Protocol):
    def __call__(self, latents: Tensor, labels: Tensor, /) -> Tensor: ...


class Discriminator(Protocol):
    def __call__(self, images: Tensor, labels: Tensor, /) -> DiscriminatorOutput: ...


_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class NoPenaltyConfig:
    name: Literal["none"] = "none"


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


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class R1Config:
    """Gradient penalty on real images alone."""

    name: Literal["r1"] = "r1"
    gamma: Annotated[float, Field(gt=0)] = 10.0
    """The penalty is gamma / 2 times the mean squared length."""


PenaltyConfig = Annotated[NoPenaltyConfig | GradientPenaltyConfig | R1Config, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class AdversarialConfig:
    """An adversarial loss; the defaults are the official code's."""

    name: Literal["adversarial"] = "adversarial"
    loss: Literal["hinge", "non_saturating", "minimax", "least_squares", "wasserstein"] = "hinge"
    """The official ImageNet and CIFAR configurations use the hinge."""
    passes: Literal["separate", "joint"] = "separate"
    """Real and generated images go through the discriminator in two passes, real first, as in the official updater; or
    in one pass together, which is faster, moves spectral norm's u once instead of twice, and is not for a discriminator
    with batch norm."""
    penalty: PenaltyConfig = Field(default_factory=NoPenaltyConfig)
    """A penalty on the discriminator's gradient. The official code has none."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ACGANConfig(AdversarialConfig):
    """An adversarial loss and the auxiliary classifier's (Odena et al. 2017); needs a discriminator with class logits."""

    name: Literal["acgan"] = "acgan"  # type: ignore[assignment]
    discriminator_class_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of L_C in the discriminator's loss. The projection paper does not give its AC-GAN's weight."""
    generator_class_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of L_C in the generator's loss."""
    classify_generated: bool = True
    """Whether the discriminator's L_C has the term of generated images, as the paper has it. Later work (StudioGAN's
    ACGAN-Mod, keras pull request 8452) trains better without."""


class AdversarialObjective:
    """The discriminator's and the generator's loss of one replica.

    Both methods return "loss", which is to be minimised, and detached scalars to log.
    """

    def __init__(self, config: AdversarialConfig) -> None:
        self.config = config
        self.loss = LOSSES[config.loss]

    def discriminator_loss(self, G: Generator, D: Discriminator, batch: RealAndLatents) -> dict[str, Tensor]:
        """The loss of D on real images and on images that G makes without a graph."""
        with torch.no_grad():
            fake_images = G(batch.latents, batch.labels)
        images = batch.real_images.to(fake_images.dtype)
        if self.config.penalty.name == "r1":
            images = images.detach().requires_grad_(True)
        real, fake = self._passes(D, images, batch.real_labels, fake_images, batch.labels)
        loss = self.loss.discriminator(real.logits, fake.logits)
        logged = {
            "adversarial": loss,
            "real_score": real.logits.mean(),
            "fake_score": fake.logits.mean(),
        }
        for name, (term, shown) in self._further_discriminator_terms(D, batch, images, fake_images, real, fake).items():
            loss = loss + term
            logged[name] = shown
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def generator_loss(self, G: Generator, D: Discriminator, batch: Latents) -> dict[str, Tensor]:
        """The loss of G. D's parameters should be frozen by the caller."""
        output = D(G(batch.latents, batch.labels), batch.labels)
        loss = self.loss.generator(output.logits)
        logged = {"adversarial": loss, "fake_score": output.logits.mean()}
        for name, (term, shown) in self._further_generator_terms(batch, output).items():
            loss = loss + term
            logged[name] = shown
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def _passes(
        self, D: Discriminator, real_images: Tensor, real_labels: Tensor, fake_images: Tensor, fake_labels: Tensor
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
        if self.config.passes == "separate":
            return D(real_images, real_labels), D(fake_images, fake_labels)
        both = D(torch.cat([real_images, fake_images]), torch.cat([real_labels, fake_labels]))
        n = len(real_images)
        if both.class_logits is None:
            return DiscriminatorOutput(both.logits[:n]), DiscriminatorOutput(both.logits[n:])
        return (
            DiscriminatorOutput(both.logits[:n], both.class_logits[:n]),
            DiscriminatorOutput(both.logits[n:], both.class_logits[n:]),
        )

    def _further_discriminator_terms(
        self,
        D: Discriminator,
        batch: RealAndLatents,
        real_images: Tensor,
        fake_images: Tensor,
        real: DiscriminatorOutput,
        fake: DiscriminatorOutput,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (weighted term of the loss, what to log)."""
        penalty = self.config.penalty
        if isinstance(penalty, R1Config):
            value = penalties.r1(real.logits, real_images)
            return {"r1": (penalty.gamma * value, value)}
        if isinstance(penalty, GradientPenaltyConfig):
            n = min(len(real_images), len(fake_images))
            labels = batch.real_labels[:n]
            mix = torch.rand(n, dtype=real_images.dtype, device=real_images.device)
            value = penalties.gradient_penalty(
                lambda x: D(x, labels).logits, real_images[:n], fake_images[:n], mix, penalty.target
            )
            terms = {"gradient_penalty": (penalty.weight * value, value)}
            if penalty.drift:
                value = penalties.drift(real.logits)
                terms["drift"] = (penalty.drift * value, value)
            return terms
        return {}

    def _further_generator_terms(self, batch: Latents, output: DiscriminatorOutput) -> dict[str, tuple[Tensor, Tensor]]:
        return {}


class ACGANObjective(AdversarialObjective):
    """L_S and L_C of Odena et al. 2017: D minimises -(L_S + L_C), G minimises L_S - L_C."""

    config: ACGANConfig

    def __init__(self, config: ACGANConfig) -> None:
        super().__init__(config)

    def _further_discriminator_terms(
        self,
        D: Discriminator,
        batch: RealAndLatents,
        real_images: Tensor,
        fake_images: Tensor,
        real: DiscriminatorOutput,
        fake: DiscriminatorOutput,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        terms = super()._further_discriminator_terms(D, batch, real_images, fake_images, real, fake)
        weight = self.config.discriminator_class_weight
        logits = _class_logits(real)
        value = classification(logits, batch.real_labels)
        terms["class_real"] = (weight * value, value)
        # Logged, and no part of the loss.
        terms["class_accuracy_real"] = (torch.zeros_like(value), _accuracy(logits, batch.real_labels))
        logits = _class_logits(fake)
        value = classification(logits, batch.labels)
        share = weight if self.config.classify_generated else 0.0
        terms["class_fake"] = (share * value if share else torch.zeros_like(value), value)
        return terms

    def _further_generator_terms(self, batch: Latents, output: DiscriminatorOutput) -> dict[str, tuple[Tensor, Tensor]]:
        logits = _class_logits(output)
        value = classification(logits, batch.labels)
        accuracy = _accuracy(logits, batch.labels)
        return {
            "class_fake": (self.config.generator_class_weight * value, value),
            "class_accuracy_fake": (torch.zeros_like(value), accuracy),
        }


def _class_logits(output: DiscriminatorOutput) -> Tensor:
    if output.class_logits is None:
        raise ValueError(
            "objective.name: acgan needs a discriminator with class logits; set discriminator.conditioning.name to acgan"
        )
    return output.class_logits


def _accuracy(class_logits: Tensor, labels: Tensor) -> Tensor:
    return (class_logits.argmax(1) == labels).to(class_logits.dtype).mean()
