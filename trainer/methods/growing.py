"""The game of a generator and a discriminator that grow together: what progressive growing's methods share.

Karras et al. 2018 (arXiv 1710.10196) and 2019 (arXiv 1812.04948). An iteration is a turn of the discriminator, then one of
the generator with fresh latents. Everything about the growth is trainer/methods/growth.py's. The networks work on images
of the stage's size; losses, penalties and their weights are those of the official code, which feeds images of the full
size (`penalty_at`).

Shapes: m samples of one replica, Z latent dimension, r the stage's resolution.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainer.foundation import keys
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.growth import GrowthConfig
from trainer.methods.problem import Problem, check_images
from trainer.methods.protocol import NO_NAMES, ClassNames, Conditions, Networks, Sampler, Segment, Shards, Tensors, Turn
from trainer.methods.sampling import ClassConditions
from trainer.methods.terms.losses import LOSSES, LossName
from trainer.methods.terms.term import Seen, Term
from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.config import ModelConfig, NetworkConfig
from trainer.models.growing import Stage, real_level
from trainer.models.layers import at_least_float32

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class DiscriminatorSettings(NetworkConfig, Protocol):
    """Settings of a discriminator with a minibatch deviation."""

    @property
    def group(self) -> int | None: ...


class GrowingSettings(Protocol):
    """The settings of a method whose networks grow."""

    @property
    def name(self) -> str: ...
    @property
    def growth(self) -> GrowthConfig: ...
    @property
    def generator(self) -> NetworkConfig: ...
    @property
    def discriminator(self) -> DiscriminatorSettings: ...
    @property
    def loss(self) -> LossName: ...
    @property
    def penalty_at(self) -> Literal["full", "stage"]: ...


def check_growing(config: GrowingSettings, problem: Problem) -> None:
    """Raise ValueError, beginning with the setting, where the networks cannot grow as asked."""
    for section, settings in ((GENERATOR, problem.generator), (DISCRIMINATOR, problem.discriminator)):
        if settings is not None:
            raise ValueError(
                f"{section}.name: is set, but the networks of objective.name {config.name} are in objective.{section}; "
                f"leave the section {section} out"
            )
    if problem.batch.synchronised_norm:
        raise ValueError(
            f"batch.synchronised_norm: is true, but the networks of objective.name {config.name} have no batch norm, and "
            "their minibatch deviation is each replica's; set it to false"
        )
    if problem.batch.dequantize:
        raise ValueError(
            f"batch.dequantize: is true, but objective.name {config.name} rounds the means of real images to whole "
            "values, as its stored levels have them; set it to false"
        )
    table = config.growth.table(problem.model.resolution, problem.batch)
    table.check_groups(config.discriminator.group, "objective.discriminator.group")


def refuse_terms(config: GrowingSettings, problem: Problem) -> None:
    """Raise `SettingError` for terms from outside, which would see images of the stage's size."""
    if problem.terms:
        raise SettingError(
            f"classifier_loss: is set, but the images of objective.name {config.name} are small at first; leave it out"
        )


class GrowingMethod:
    """One generator, one discriminator, one update of each in an iteration."""

    players: Mapping[str, Sequence[str]] = {GENERATOR: (GENERATOR,), DISCRIMINATOR: (DISCRIMINATOR,)}
    shown = GENERATOR

    def __init__(self, config: GrowingSettings, problem: Problem, terms: Sequence[Term]) -> None:
        """`terms`: in the order in which they are added."""
        self.config, self.problem = config, problem
        self.table = config.growth.table(problem.model.resolution, problem.batch)
        self.changes: Sequence[int] = self.table.changes
        self.sides = LOSSES[config.loss]
        self.terms = {term.name: term for term in terms}
        self.draws = any(getattr(term, "draws", True) for term in terms)

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
        return {"fake_images": self.generated(networks, draw, Stage.of(turn.form))}

    def generated(self, networks: Networks, draw: Tensors, stage: Stage) -> Tensor:
        """The images [m, C, r, r] of a draw."""
        images: Tensor = networks[GENERATOR](draw["latents"], draw["labels"], stage)
        return images

    def critic(self, networks: Networks, stage: Stage, memory: Tensors) -> "Critic":
        """The discriminator as the turn's loss calls it."""
        return Critic(networks[DISCRIMINATOR], stage, self._unit(stage))

    def remembered(self, memory: Tensors, fake_logits: Tensor) -> Tensors:
        """What the replica remembers after a turn of the discriminator, whose logits of generated images are [m]."""
        return memory

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The mover's side of the loss, and the terms that are on."""
        stage = Stage.of(turn.form)
        critic = self.critic(networks, stage, memory)
        labels = draw["labels"]
        if turn.player == GENERATOR:
            images = self.generated(networks, draw, stage) / critic.unit
            seen = Seen(critic, images, labels, critic(images, labels))
            return self._with_terms(turn, seen, self.sides.generator(seen.fake.logits)), memory
        real_images, fake_images = draw["real_images"] / critic.unit, draw["fake_images"] / critic.unit
        if any(self.terms[name].differentiates_images for name in turn.terms):
            real_images = real_images.detach().requires_grad_(True)
        real, fake = critic(real_images, labels), critic(fake_images, labels)
        seen = Seen(critic, fake_images, labels, fake, real_images, labels, real)
        losses = self._with_terms(turn, seen, self.sides.discriminator(real.logits, fake.logits))
        return losses, self.remembered(memory, fake.logits)

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

    def memory(self, replica: int) -> Tensors:
        """Nothing."""
        return {}

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
        """Images of the full size, by class, from latent vectors."""
        model = self.problem.model
        return GrowingSampler(networks, model, ClassConditions(model.classes, classes.names, classes.ids))


@plain_dataclass(frozen=True)
class Critic:
    """The discriminator as terms call it: images [B, C, r, r] in units of `unit`, and labels [B]."""

    network: Callable[..., DiscriminatorOutput]
    stage: Stage
    unit: float
    more: Sequence[Any] = ()
    """What the network takes behind the stage."""

    def __call__(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        return self.network(images * self.unit, labels, self.stage, *self.more)


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
