"""The adversarial game of a generator and a discriminator: two sides of a loss, and terms. AC-GAN adds the class term.

Odena et al. 2017; Miyato & Koyama 2018, whose projection and concat are conditionings of the discriminator.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation import keys
from trainer.foundation.keys import Keys
from trainer.methods.problem import Problem, check_images
from trainer.methods.protocol import NO_NAMES, ClassNames, Networks, Sampler, Shards, Tensors, Turn
from trainer.methods.sampling import ClassConditions, LatentSampler
from trainer.methods.terms.classes import ClassTerm
from trainer.methods.terms.losses import LOSSES, LossName
from trainer.methods.terms.penalty_terms import NoPenaltyConfig, PenaltyConfig
from trainer.methods.terms.term import Seen, Term
from trainer.models import BY_CLASS, check_signature, classifies, couples_samples
from trainer.models.conditioning import DiscriminatorOutput

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


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

    @property
    def second_derivatives(self) -> bool:
        return bool(self.penalty.build())

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the networks and the loss do not fit together."""
        for section, settings in ((GENERATOR, problem.generator), (DISCRIMINATOR, problem.discriminator)):
            check_signature(section, settings, BY_CLASS, getattr(self, "name", type(self).__name__))
        assert problem.discriminator is not None
        self.check_classifier(classifies(problem.discriminator) and problem.model.classes > 0)
        if self.passes == "joint" and couples_samples(problem.discriminator):
            raise ValueError(
                "objective.passes: joint would mix real and generated images in the discriminator's batch norm; "
                "set it to separate"
            )

    def check_classifier(self, classifies: bool) -> None:
        """Raise ValueError unless the loss trains the discriminator's classifier where there is one."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class AdversarialConfig(_LossSettings):
    """An adversarial loss; the defaults are the official code's."""

    name: Literal["adversarial"] = "adversarial"

    def check_classifier(self, classifies: bool) -> None:
        if classifies:
            raise ValueError(
                f"objective.name: {self.name} would leave the discriminator's classifier untrained; set it to acgan"
            )

    def build(self, problem: Problem) -> "AdversarialMethod":
        """The game without class terms."""
        return AdversarialMethod(self, problem, ())


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

    def check_classifier(self, classifies: bool) -> None:
        if not classifies:
            raise ValueError(
                "objective.name: acgan needs a discriminator that classifies and this one does not; set "
                "discriminator.conditioning.name to acgan, and model.classes to the number of classes"
            )

    def build(self, problem: Problem) -> "AdversarialMethod":
        """The game with class terms."""
        term = ClassTerm(self.discriminator_class_weight, self.generator_class_weight, self.classify_generated)
        return AdversarialMethod(self, problem, (term,))


class AdversarialMethod:
    """One generator, one discriminator. An iteration is a turn of the generator and turns of the discriminator."""

    players: Mapping[str, Sequence[str]] = {GENERATOR: (GENERATOR,), DISCRIMINATOR: (DISCRIMINATOR,)}
    shown = GENERATOR
    changes: Sequence[int] = ()

    def __init__(self, config: AdversarialConfig | ACGANConfig, problem: Problem, terms: Sequence[Term]) -> None:
        """`terms`: the method's, in the order in which they are added, after the penalty's."""
        self.config, self.problem = config, problem
        self.sides = LOSSES[config.loss]
        every = (*config.penalty.build(), *terms, *problem.terms)
        self.terms = {term.name: term for term in every}
        if len(self.terms) < len(every):
            raise ValueError(f"terms: two have the same name, of {', '.join(term.name for term in every)}; rename one")
        self.draws = any(getattr(term, "draws", True) for term in every)

    def build(self, network: str) -> nn.Module:
        """The network of this name."""
        assert self.problem.generator is not None and self.problem.discriminator is not None  # noqa: PT018
        if network == GENERATOR:
            return self.problem.generator.build(self.problem.model)
        return self.problem.discriminator.build(self.problem.model)

    def check(self, sources: Mapping[str, Shards]) -> None:
        """Raise `SettingError` unless the networks are made for the images of the source `data`."""
        check_images(self.problem.model, sources["data"])

    def turns(self, iteration: int) -> list[Turn]:
        """The generator's turn, number 0, first or last; the discriminator's are 1, 2, ..."""
        batch, schedule = self.problem.batch, self.problem.schedule
        of_generator = Turn(
            GENERATOR, 0, made=batch.generated_per_replica, terms=self._weights(GENERATOR, iteration, iteration)
        )
        of_discriminator = [
            Turn(
                DISCRIMINATOR,
                step + 1,
                reads={"data": batch.real_per_replica},
                made=batch.real_per_replica,
                terms=self._weights(DISCRIMINATOR, iteration, iteration * schedule.discriminator_steps + step),
            )
            for step in range(schedule.discriminator_steps)
        ]
        if schedule.generator_first:
            return [of_generator, *of_discriminator]
        return [*of_discriminator, of_generator]

    def _weights(self, player: str, iteration: int, update: int) -> dict[str, float]:
        weights = {name: term.weight(player, iteration, update) for name, term in self.terms.items()}
        return {name: weight for name, weight in weights.items() if weight is not None}

    def draw(self, turn: Turn, keys_of: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """`latents` [m, Z] and `labels` [m] to generate; in the discriminator's turn also `real_images`, `real_labels`."""
        model = self.problem.model
        latents = model.latents(keys_of.generator("latents"), turn.made)
        labels = keys.draw_labels(keys_of.generator("labels"), turn.made, model.classes)
        draw = {"latents": latents, "labels": labels}
        if turn.player == DISCRIMINATOR:
            fields = real["data"]
            unlabelled = torch.zeros(len(fields["image"]), dtype=torch.int64)  # for a model without classes
            draw |= {"real_images": fields["image"], "real_labels": fields.get("class", unlabelled)}
        return draw

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> dict[str, Tensor]:
        """The generated images of the discriminator's turn."""
        if turn.player == GENERATOR:
            return {}
        return {"fake_images": networks[GENERATOR](draw["latents"], draw["labels"])}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The side of the loss that belongs to the mover, and the terms that are on."""
        if turn.player == GENERATOR:
            seen = self._generated(networks, draw)
            loss = self.sides.generator(seen.fake.logits)
        else:
            seen = self._compared(networks, draw, self.image_gradients(turn))
            assert seen.real is not None
            loss = self.sides.discriminator(seen.real.logits, seen.fake.logits)
        return self.with_terms(turn, seen, loss), memory

    def image_gradients(self, turn: Turn) -> bool:
        """Whether a term of the turn differentiates the logits with respect to the real images."""
        return any(self.terms[name].differentiates_images for name in turn.terms)

    def with_terms(self, turn: Turn, seen: Seen, adversarial: Tensor) -> dict[str, Tensor]:
        """The adversarial loss and the turn's terms as "loss", and all that is logged."""
        logged = {"adversarial": adversarial}
        if seen.real is not None:
            logged["real_score"] = seen.real.logits.mean()
        logged["fake_score"] = seen.fake.logits.mean()
        loss = adversarial
        for name, weight in turn.terms.items():
            value = self.terms[name].value(turn.player, seen, weight)
            loss = loss + value.loss
            logged |= value.logged
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    @staticmethod
    def _generated(networks: Networks, draw: Tensors) -> Seen:
        D, labels = networks[DISCRIMINATOR], draw["labels"]
        images = networks[GENERATOR](draw["latents"], labels)
        return Seen(D, images, labels, D(images, labels))

    def _compared(self, networks: Networks, draw: Tensors, image_gradients: bool) -> Seen:
        D, real_images, real_labels = networks[DISCRIMINATOR], draw["real_images"], draw["real_labels"]
        fake_images, fake_labels = draw["fake_images"], draw["labels"]
        if image_gradients:
            real_images = real_images.detach().requires_grad_(True)
        if self.config.passes == "separate":
            real, fake = D(real_images, real_labels), D(fake_images, fake_labels)
        else:
            n = len(real_images)
            both = D(torch.cat([real_images, fake_images]), torch.cat([real_labels, fake_labels]))
            logits, class_logits = both.logits, both.class_logits
            real = DiscriminatorOutput(logits[:n], None if class_logits is None else class_logits[:n])
            fake = DiscriminatorOutput(logits[n:], None if class_logits is None else class_logits[n:])
        return Seen(D, fake_images, fake_labels, fake, real_images, real_labels, real)

    def memory(self, replica: int) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
        """Images by class, from latent vectors."""
        model = self.problem.model
        return LatentSampler(networks, model, ClassConditions(model.classes, classes.names, classes.ids))
