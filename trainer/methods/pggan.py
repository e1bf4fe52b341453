"""Progressive growing (Karras et al. 2018, arXiv 1710.10196): WGAN-GP or least squares, class-conditional with AC-GAN's loss.

An iteration is a turn of the discriminator, then one of the generator with fresh latents. Everything about the growth is
trainer/methods/growth.py's. The networks work on images of the stage's size; losses, penalties and their weights are those
of the official code, which feeds images of the full size (`penalty_at`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation import keys
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.growth import GrowthConfig
from trainer.methods.problem import Problem, check_images
from trainer.methods.protocol import NO_NAMES, ClassNames, Conditions, Networks, Sampler, Segment, Shards, Tensors, Turn
from trainer.methods.sampling import ClassConditions
from trainer.methods.terms.classes import ClassTerm
from trainer.methods.terms.losses import LOSSES, LossName
from trainer.methods.terms.penalty_terms import GradientPenaltyConfig, PenaltyConfig
from trainer.methods.terms.term import Seen, Term
from trainer.models import ModelConfig
from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.growing import Stage, real_level
from trainer.models.layers import at_least_float32
from trainer.models.pggan import PGGANDiscriminatorConfig, PGGANGeneratorConfig

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
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
        for section, settings in ((GENERATOR, problem.generator), (DISCRIMINATOR, problem.discriminator)):
            if settings is not None:
                raise ValueError(
                    f"{section}.name: is set, but the networks of objective.name {self.name} are in objective.{section}; "
                    f"leave the section {section} out"
                )
        if problem.batch.dequantize:
            raise ValueError(
                f"batch.dequantize: is true, but objective.name {self.name} rounds the means of real images to whole "
                "values, as its stored levels have them; set it to false"
            )
        table = self.growth.table(problem.model.resolution, problem.batch)
        table.check_groups(self.discriminator.group, "objective.discriminator.group")

    def build(self, problem: Problem) -> "PGGANMethod":
        """The game. Raises `SettingError` for terms from outside, which would see images of the stage's size."""
        if problem.terms:
            raise SettingError(
                f"classifier_loss: is set, but the images of objective.name {self.name} are small at first; leave it out"
            )
        return PGGANMethod(self, problem)


class PGGANMethod:
    """One generator, one discriminator, one update of each in an iteration."""

    players: Mapping[str, Sequence[str]] = {GENERATOR: (GENERATOR,), DISCRIMINATOR: (DISCRIMINATOR,)}
    shown = GENERATOR

    def __init__(self, config: PGGANConfig, problem: Problem) -> None:
        self.config, self.problem = config, problem
        self.table = config.growth.table(problem.model.resolution, problem.batch)
        self.changes: Sequence[int] = self.table.changes
        self.sides = LOSSES[config.loss]
        own: tuple[Term, ...] = config.penalty.build()
        if problem.model.classes:
            own = (*own, ClassTerm(config.class_weight, config.class_weight, classify_generated=True))
        self.terms = {term.name: term for term in own}
        self.draws = config.discriminator.noisy or any(getattr(term, "draws", True) for term in self.terms.values())

    def build(self, network: str) -> nn.Module:
        """The network of this name, with all its levels."""
        if network == GENERATOR:
            return self.config.generator.build(self.problem.model)
        return self.config.discriminator.build(self.problem.model)

    def check(self, sources: Mapping[str, Shards]) -> None:
        """Raise `SettingError` unless the networks are made for the images of the source `data`."""
        check_images(self.problem.model, sources["data"])

    def segments(self, iterations: int) -> list[Segment]:
        """For the dry run and the plan."""
        return self.table.describe(iterations)

    def turns(self, iteration: int) -> list[Turn]:
        """The discriminator's turn, number 0, then the generator's."""
        now = self.table.at(iteration)
        return [
            Turn(
                player,
                number,
                reads={"data": now.batch} if player == DISCRIMINATOR else {},
                made=now.batch,
                terms=self._weights(player, iteration),
                form=now.stage.form,
                forgets=now.forgets,
                rate=now.rate,
            )
            for number, player in enumerate((DISCRIMINATOR, GENERATOR))
        ]

    def _weights(self, player: str, iteration: int) -> dict[str, float]:
        weights = {name: term.weight(player, iteration, iteration) for name, term in self.terms.items()}
        return {name: weight for name, weight in weights.items() if weight is not None}

    def draw(self, turn: Turn, keys_of: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """`latents` [m, Z] and `labels` [m]; in the discriminator's turn the labels are those of `real_images`, which are of
        the stage's size. In the generator's turn labels are uniform over the classes."""
        model = self.problem.model
        latents = model.latents(keys_of.generator("latents"), turn.made)
        if turn.player == GENERATOR:
            labels = keys.draw_labels(keys_of.generator("labels"), turn.made, model.classes)
            return {"latents": latents, "labels": labels}
        fields = real["data"]
        images = real_level(fields["image"], Stage.of(turn.form))
        unlabelled = torch.zeros(len(images), dtype=torch.int64)  # for a model without classes
        return {"latents": latents, "labels": fields.get("class", unlabelled), "real_images": images}

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> dict[str, Tensor]:
        """The generated images of the discriminator's turn."""
        if turn.player == GENERATOR:
            return {}
        return {"fake_images": networks[GENERATOR](draw["latents"], draw["labels"], Stage.of(turn.form))}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The mover's side of the loss, and the terms that are on."""
        stage = Stage.of(turn.form)
        critic = _Critic(networks[DISCRIMINATOR], stage, self._unit(stage), _strength(memory))
        labels = draw["labels"]
        if turn.player == GENERATOR:
            images = networks[GENERATOR](draw["latents"], labels, stage) / critic.unit
            seen = Seen(critic, images, labels, critic(images, labels))
            return self._with_terms(turn, seen, self.sides.generator(seen.fake.logits)), memory
        real_images, fake_images = draw["real_images"] / critic.unit, draw["fake_images"] / critic.unit
        if any(self.terms[name].differentiates_images for name in turn.terms):
            real_images = real_images.detach().requires_grad_(True)
        real, fake = critic(real_images, labels), critic(fake_images, labels)
        seen = Seen(critic, fake_images, labels, fake, real_images, labels, real)
        losses = self._with_terms(turn, seen, self.sides.discriminator(real.logits, fake.logits))
        return losses, _remembered(memory, fake.logits)

    def _unit(self, stage: Stage) -> float:
        """What a stage's images are divided by for the terms: then their gradients are as long as those of full-size images,
        whose squares of f x f pixels are equal, f = R / r: f^2 entries of 1 / f^2."""
        return stage.resolution / self.problem.model.resolution if self.config.penalty_at == "full" else 1.0

    def _with_terms(self, turn: Turn, seen: Seen, adversarial: Tensor) -> dict[str, Tensor]:
        loss, logged = adversarial, {"adversarial": adversarial, "fake_score": seen.fake.logits.mean()}
        if seen.real is not None:
            logged["real_score"] = seen.real.logits.mean()
        for name, weight in turn.terms.items():
            value = self.terms[name].value(turn.player, seen, weight)
            loss = loss + value.loss
            logged |= value.logged
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def memory(self, replica: int) -> dict[str, Tensor]:
        """Where the discriminator is noisy: the running mean of its score of generated images."""
        return {"score": torch.zeros(())} if self.config.discriminator.noisy else {}

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
        """Images of the full size, by class, from latent vectors."""
        model = self.problem.model
        return GrowingSampler(networks, model, ClassConditions(model.classes, classes.names, classes.ids))


@plain_dataclass(frozen=True)
class _Critic:
    """The discriminator as terms call it: images [B, C, r, r] in units of `unit`, and labels [B]."""

    network: Callable[..., DiscriminatorOutput]
    stage: Stage
    unit: float
    noise: Tensor | None

    def __call__(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        return self.network(images * self.unit, labels, self.stage, self.noise)


def _strength(memory: Tensors) -> Tensor | None:
    if "score" not in memory:
        return None
    return NOISE_WEIGHT * (memory["score"] - NOISE_LIMIT).clamp(min=0).square()


def _remembered(memory: Tensors, fake_logits: Tensor) -> Tensors:
    """The running mean of the score of generated images, which is 1 where the discriminator is sure."""
    if "score" not in memory:
        return memory
    score = at_least_float32(fake_logits.detach()).mean().clamp(0, 1).to(memory["score"].dtype)
    return {"score": NOISE_DECAY * memory["score"] + (1 - NOISE_DECAY) * score}


@plain_dataclass
class GrowingSampler:
    """Samples of a network G(latents [n, Z], labels) that gives images of the full size at the level that it has reached.

    It has no truncation: the pixel norm of the input undoes a smaller latent.
    """

    networks: Mapping[str, nn.Module]
    """One network, called `generator`."""
    model: ModelConfig
    conditions: Conditions
    output: str = "image"

    @property
    def grown(self) -> dict[str, float]:
        """The stage of the network's last training."""
        stage: Stage = self.networks[GENERATOR].reached(None)  # type: ignore[operator]
        return stage.form

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Latents [count, Z] on the CPU. One at a time, the first n of more are the same."""
        return self.model.latents(source, count)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """G(latents, conditions), at least float32."""
        return at_least_float32(self.networks[GENERATOR](latents, conditions))
