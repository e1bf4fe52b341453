"""The adversarial objective: two sides of a loss, an optional penalty; and AC-GAN's, which adds the class terms.

Objectives see callables and tensors: no optimizer, device, process group or step counter.
"""

from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trainer.foundation.choices import Choice
from trainer.foundation.errors import SettingError
from trainer.methods.terms import penalties
from trainer.methods.terms.losses import LOSSES, LossName, classification
from trainer.models.conditioning import DiscriminatorOutput


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


PenaltyConfig = Annotated[NoPenaltyConfig | GradientPenaltyConfig | R1Config, Choice()]


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class _LossSettings:
    loss: LossName = "hinge"
    """The official ImageNet and CIFAR configurations use the hinge."""
    passes: Literal["separate", "joint"] = "separate"
    """Real and generated images go through the discriminator in two passes, real first, as in the official updater; or
    in one pass together, which is faster, moves spectral norm's u once instead of twice, and is not for a discriminator
    with batch norm."""
    penalty: PenaltyConfig = Field(default_factory=NoPenaltyConfig)
    """A penalty on the discriminator's gradient. The official code has none."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class AdversarialConfig(_LossSettings):
    """An adversarial loss; the defaults are the official code's."""

    name: Literal["adversarial"] = "adversarial"


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ACGANConfig(_LossSettings):
    """An adversarial loss and the auxiliary classifier's (Odena et al. 2017), for a discriminator with class logits."""

    name: Literal["acgan"] = "acgan"
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

    def __init__(self, config: AdversarialConfig | ACGANConfig) -> None:
        self.config = config
        self.sides = LOSSES[config.loss]

    def discriminator_loss(self, G: Generator, D: Discriminator, batch: RealAndLatents) -> dict[str, Tensor]:
        """The loss of D on real images and on images that G makes without a graph."""
        with torch.no_grad():
            fake_images = G(batch.latents, batch.labels)
        real_images = batch.real_images
        if isinstance(self.config.penalty, R1Config):
            real_images = real_images.detach().requires_grad_(True)
        real, fake = self._both(D, real_images, batch.real_labels, fake_images, batch.labels)
        loss = self.sides.discriminator(real.logits, fake.logits)
        logged = {"adversarial": loss, "real_score": real.logits.mean(), "fake_score": fake.logits.mean()}
        for terms in (
            self._penalty(D, real_images, batch.real_labels, fake_images, real),
            self._discriminator_class_terms(batch, real, fake),
        ):
            loss = loss + terms.loss
            logged |= terms.logged
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def generator_loss(self, G: Generator, D: Discriminator, batch: Latents) -> dict[str, Tensor]:
        """The loss of G. D's parameters should be frozen by the caller."""
        output = D(G(batch.latents, batch.labels), batch.labels)
        loss = self.sides.generator(output.logits)
        logged = {"adversarial": loss, "fake_score": output.logits.mean()}
        terms = self._generator_class_terms(batch, output)
        loss = loss + terms.loss
        logged |= terms.logged
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def _both(
        self, D: Discriminator, real_images: Tensor, real_labels: Tensor, fake_images: Tensor, fake_labels: Tensor
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
        """D of the real and of the generated images, in two passes or in one."""
        if self.config.passes == "separate":
            return D(real_images, real_labels), D(fake_images, fake_labels)
        n = len(real_images)
        logits, class_logits = D(torch.cat([real_images, fake_images]), torch.cat([real_labels, fake_labels]))
        if class_logits is None:
            return DiscriminatorOutput(logits[:n]), DiscriminatorOutput(logits[n:])
        return DiscriminatorOutput(logits[:n], class_logits[:n]), DiscriminatorOutput(logits[n:], class_logits[n:])

    def _penalty(
        self, D: Discriminator, real_images: Tensor, labels: Tensor, fake_images: Tensor, real: DiscriminatorOutput
    ) -> "_Terms":
        config = self.config.penalty
        if isinstance(config, R1Config):
            value = penalties.r1(real.logits, real_images)
            return _Terms(config.gamma * value, {"r1": value})
        if isinstance(config, GradientPenaltyConfig):
            n = min(len(real_images), len(fake_images))
            mix = torch.rand(n, dtype=real_images.dtype, device=real_images.device)
            value = penalties.gradient_penalty(
                lambda x: D(x, labels[:n]).logits, real_images[:n], fake_images[:n], mix, config.target
            )
            drift = penalties.drift(real.logits)
            loss = config.weight * value + config.drift * drift
            return _Terms(loss, {"gradient_penalty": value, "drift": drift})
        return _Terms(0.0, {})

    def _discriminator_class_terms(
        self, batch: RealAndLatents, real: DiscriminatorOutput, fake: DiscriminatorOutput
    ) -> "_Terms":
        return _Terms(0.0, {})

    def _generator_class_terms(self, batch: Latents, output: DiscriminatorOutput) -> "_Terms":
        return _Terms(0.0, {})


class ACGANObjective(AdversarialObjective):
    """L_S and L_C of Odena et al. 2017 (Eq. 2 and 3): D minimises -(L_S + L_C), G minimises L_S - L_C."""

    config: ACGANConfig

    def __init__(self, config: ACGANConfig) -> None:
        super().__init__(config)

    def _discriminator_class_terms(
        self, batch: RealAndLatents, real: DiscriminatorOutput, fake: DiscriminatorOutput
    ) -> "_Terms":
        real_logits = _class_logits(real)
        of_real = classification(real_logits, batch.real_labels)
        of_fake = classification(_class_logits(fake), batch.labels)
        total = of_real + of_fake if self.config.classify_generated else of_real
        accuracy = _accuracy(real_logits, batch.real_labels)
        return _Terms(
            self.config.discriminator_class_weight * total,
            {"class_real": of_real, "class_fake": of_fake, "class_accuracy_real": accuracy},
        )

    def _generator_class_terms(self, batch: Latents, output: DiscriminatorOutput) -> "_Terms":
        logits = _class_logits(output)
        value = classification(logits, batch.labels)
        accuracy = _accuracy(logits, batch.labels)
        return _Terms(
            self.config.generator_class_weight * value, {"class_fake": value, "class_accuracy_fake": accuracy}
        )


class _Terms(NamedTuple):
    """What is added to the loss, and what is logged."""

    loss: Tensor | float
    logged: dict[str, Tensor]


def _class_logits(output: DiscriminatorOutput) -> Tensor:
    if output.class_logits is None:
        raise SettingError(
            "objective.name: acgan needs a discriminator with class logits and this one has none; "
            "set discriminator.conditioning.name to acgan"
        )
    return output.class_logits


def _accuracy(class_logits: Tensor, labels: Tensor) -> Tensor:
    return (class_logits.argmax(1) == labels).to(class_logits.dtype).mean()
