"""Semi-supervised GANs: a discriminator that is a classifier of K classes, trained with few labels.

Odena 2016 makes "generated" one more class, and all its real images have labels. Salimans et al. 2016, section 5, add real
images without labels, and train the generator by feature matching. The classifier in the discriminator is the result.

l [B, K] are the class logits relative to that of generated images, so Z = sum_k exp l_k = p(real) / p(generated).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.problem import Problem
from trainer.methods.protocol import NO_NAMES, ClassNames, Networks, Sampler, Shards, Tensors, Turn
from trainer.methods.sampling import ClassConditions, LatentSampler
from trainer.models import BY_CLASS, ModelConfig, check_signature, classifies
from trainer.models.weight_norm import start_from

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
LABELLED, UNLABELLED = "labelled", "data"
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class SGANConfig:
    """The labelled images are the source `labelled`, the unlabelled ones `data`, whose classes are not looked at."""

    name: Literal["sgan"] = "sgan"
    form: Literal["feature_matching", "fake_class", "supervised"] = "feature_matching"
    """`feature_matching`: Salimans et al. 2016. `fake_class`: Odena 2016, without unlabelled images; G maximises what D
    minimises. `supervised`: the baseline, the same discriminator as a classifier of the labelled images alone."""
    unlabelled_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss of unlabelled and generated images, next to that of labelled ones (`unlabeled_weight`)."""
    matching: Literal["squared", "absolute"] = "squared"
    """How mean features are compared: squared differences as on MNIST, or absolute ones as on CIFAR-10 and SVHN."""
    first_samples: Annotated[int, Field(ge=0)] = 500
    """Unlabelled images (labelled ones where the form reads no others) that the scales of weight normalisation begin from;
    0: they begin at 1."""
    second_derivatives: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the networks and the form do not fit together."""
        for section, settings in ((GENERATOR, problem.generator), (DISCRIMINATOR, problem.discriminator)):
            check_signature(section, settings, BY_CLASS, self.name)
        if not problem.model.classes:
            raise ValueError(f"model.classes: is 0, but objective.name {self.name} trains a classifier; set it")
        if not classifies(problem.discriminator):
            raise ValueError(
                f"discriminator.name: {self.name} needs a discriminator that classifies and this one does not; set it to "
                "improved_mlp or improved_conv"
            )
        if self.form == "feature_matching" and not getattr(problem.discriminator, "gives_features", False):
            raise ValueError(
                "objective.form: feature_matching needs a discriminator that gives features and this one does not; set "
                "discriminator.name to improved_mlp or improved_conv"
            )

    def build(self, problem: Problem) -> "SGAN":
        """The method."""
        return SGAN(self, problem)


def labelled_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-E l_y + E log Z: cross-entropy over the K classes (Salimans et al. 2016, L_supervised)."""
    return F.cross_entropy(logits, labels)


def unlabelled_loss(real: Tensor, generated: Tensor) -> Tensor:
    """-1/2 E log(Z / (Z + 1)) over real and -1/2 E log(1 / (Z + 1)) over generated logits (L_unsupervised, halved as in the
    authors' code). It never forms Z."""
    real_score, fake_score = torch.logsumexp(real, 1), torch.logsumexp(generated, 1)
    return 0.5 * F.softplus(-real_score).mean() + 0.5 * F.softplus(fake_score).mean()


def fake_class_loss(logits: Tensor, labels: Tensor, generated: Tensor) -> Tensor:
    """The mean of -log p(y) and -log p(generated) over K + 1 classes, half the batch each (Odena 2016, section 2)."""
    of_real = F.softplus(torch.logsumexp(logits, 1)) - logits.gather(1, labels[:, None])[:, 0]
    return 0.5 * of_real.mean() + 0.5 * F.softplus(torch.logsumexp(generated, 1)).mean()


def saturating_loss(generated: Tensor) -> Tensor:
    """G maximises its part of `fake_class_loss` (Odena 2016, section 2); the gradient fades where D is sure."""
    return -0.5 * F.softplus(torch.logsumexp(generated, 1)).mean()


def matching_loss(real: Tensor, generated: Tensor, how: Literal["squared", "absolute"]) -> Tensor:
    """The mean over units of the squared or absolute difference of mean features [B, F] (Salimans et al. 2016, section 3.1).
    Real features are constants."""
    difference = real.detach().mean(0) - generated.mean(0)
    return difference.square().mean() if how == "squared" else difference.abs().mean()


class SGAN:
    """An iteration is turns of the discriminator and one of the generator; without G in the supervised form."""

    players: Mapping[str, Sequence[str]] = {GENERATOR: (GENERATOR,), DISCRIMINATOR: (DISCRIMINATOR,)}
    shown = GENERATOR
    kept = (DISCRIMINATOR,)
    changes: Sequence[int] = ()

    def __init__(self, config: SGANConfig, problem: Problem) -> None:
        self.config, self.problem = config, problem
        self.real = LABELLED if config.form != "feature_matching" else UNLABELLED
        self.first = {self.real: config.first_samples} if config.first_samples else {}

    def build(self, network: str) -> nn.Module:
        """The network of this name."""
        assert self.problem.generator is not None and self.problem.discriminator is not None  # noqa: PT018
        if network == GENERATOR:
            return self.problem.generator.build(self.problem.model)
        return self.problem.discriminator.build(self.problem.model)

    def start(self, networks: Mapping[str, nn.Module], real: Mapping[str, Tensors]) -> None:
        """Weight normalisation begins from real images in D, and from latents in G (Salimans & Kingma 2016, section 3)."""
        for fields in real.values():
            images, labels = fields["image"], torch.zeros(len(fields["image"]), dtype=torch.int64)
            latents = self.problem.model.latents(torch.default_generator, len(images)).to(images.dtype)
            start_from(networks[GENERATOR], latents, labels)
            start_from(networks[DISCRIMINATOR], images, labels)

    def check(self, sources: Mapping[str, Shards]) -> None:
        """Raise `SettingError` unless the networks are made for the images, and the labelled ones have labels."""
        model = self.problem.model
        for name, (url, manifest) in sources.items():
            where = f"the shards of {_section(name)} in {url} hold"
            for setting, asked, found in (
                ("model.resolution", model.resolution, manifest.resolution),
                ("model.image_channels", model.image_channels, manifest.channels),
            ):
                if asked != found:
                    raise SettingError(f"{setting}: is {asked}, but {where} images with {found}; set it to {found}")
        classes = len(sources[LABELLED].manifest.classes)
        if not classes:
            raise SettingError(
                f"{_section(LABELLED)}.shards: the samples have no class, and the classifier learns from them; give labelled "
                "shards, and the unlabelled ones as data.shards"
            )
        if model.classes != classes:
            raise SettingError(
                f"model.classes: is {model.classes}, but the shards of {_section(LABELLED)} hold {classes} classes; set it to "
                f"{classes}"
            )
        if UNLABELLED in sources:
            self._check_sizes(sources)

    @staticmethod
    def _check_sizes(sources: Mapping[str, Shards]) -> None:
        labelled, unlabelled = (sources[name].manifest for name in (LABELLED, UNLABELLED))
        if labelled.samples > unlabelled.samples:
            raise SettingError(
                f"data.shards: hold {unlabelled.samples} images, fewer than the {labelled.samples} labelled ones; give all "
                f"images as data.shards, and the labelled ones as {_section(LABELLED)}"
            )

    def turns(self, iteration: int) -> list[Turn]:
        """The generator's turn, number 0, first or last; the discriminator's are 1, 2, ..."""
        batch, schedule, form = self.problem.batch, self.problem.schedule, self.config.form
        n, matched = batch.real_per_replica, form == "feature_matching"
        reads = {LABELLED: n, UNLABELLED: n} if matched else {LABELLED: n}
        made = 0 if form == "supervised" else n
        of_discriminator = [
            Turn(DISCRIMINATOR, step + 1, reads=reads, made=made) for step in range(schedule.discriminator_steps)
        ]
        if form == "supervised":
            return of_discriminator
        m = batch.generated_per_replica
        of_generator = Turn(GENERATOR, 0, reads={UNLABELLED: m} if matched else {}, made=m)
        return [of_generator, *of_discriminator] if schedule.generator_first else [*of_discriminator, of_generator]

    def draw(self, turn: Turn, keys: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """`latents` [m, Z] and `labels` [m], which G does not look at; `real_images`, `real_labels` of the labelled source,
        and `images` of the other, whose labels go no further than here."""
        draw: dict[str, Tensor] = {}
        if turn.made:
            draw["latents"] = self.problem.model.latents(keys.generator("latents"), turn.made)
            draw["labels"] = torch.zeros(turn.made, dtype=torch.int64)
        if LABELLED in real:
            draw |= {"real_images": real[LABELLED]["image"], "real_labels": real[LABELLED]["class"]}
        if UNLABELLED in real:
            draw["images"] = real[UNLABELLED]["image"]
        return draw

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> dict[str, Tensor]:
        """The generated images of the discriminator's turn."""
        if turn.player == GENERATOR or not turn.made:
            return {}
        return {"fake_images": networks[GENERATOR](draw["latents"], draw["labels"])}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The mover's loss. Noise and dropout of D are on in every pass."""
        D, config = networks[DISCRIMINATOR], self.config
        if turn.player == GENERATOR:
            fake = D(networks[GENERATOR](draw["latents"], draw["labels"]), draw["labels"])
            logged = {"fake_score": fake.logits.mean()}
            if config.form == "feature_matching":
                real = D(draw["images"], draw["labels"])
                loss = matching_loss(real.features, fake.features, config.matching)
            else:
                loss = saturating_loss(fake.class_logits)
            return self._told(loss, logged), memory
        labels = draw["real_labels"]
        labelled = D(draw["real_images"], labels).class_logits
        logged = {"labelled_error": (labelled.argmax(1) != labels).float().mean()}
        if config.form == "supervised":
            return self._told(labelled_loss(labelled, labels), logged), memory
        fake = D(draw["fake_images"], draw["labels"])
        logged["fake_score"] = fake.logits.mean()
        if config.form == "fake_class":
            logged["real_score"] = torch.logsumexp(labelled, 1).mean()
            return self._told(fake_class_loss(labelled, labels, fake.class_logits), logged), memory
        unlabelled = D(draw["images"], labels)
        parts = labelled_loss(labelled, labels), unlabelled_loss(unlabelled.class_logits, fake.class_logits)
        logged |= {"real_score": unlabelled.logits.mean(), "labelled": parts[0], "unlabelled": parts[1]}
        return self._told(parts[0] + config.unlabelled_weight * parts[1], logged), memory

    @staticmethod
    def _told(loss: Tensor, logged: Tensors) -> dict[str, Tensor]:
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def memory(self, replica: int) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
        """Images without a condition, and the classifier."""
        model, settings = self.problem.model, self.problem.discriminator
        described = {
            "model": _plain("trainer.models:ModelConfig", ModelConfig, model),
            "network": _plain(f"{type(settings).__module__}:{type(settings).__qualname__}", type(settings), settings),
        }
        return ClassifyingSampler(networks, model, ClassConditions(0), described=described)


@plain_dataclass
class ClassifyingSampler(LatentSampler):
    """Unconditional samples of G; and D as a classifier (`Classifying` in trainer/methods/sampling.py)."""

    described: Mapping[str, Any] | None = None
    """How the classifier's network is built: settings with the class that they belong to as `name`."""

    @property
    def classifier(self) -> nn.Module:
        """D: `head(features(images))` are the class logits [n, K] of images [n, C, H, W] in [-1, 1]."""
        return self.networks[DISCRIMINATOR]


def _section(source: str) -> str:
    return source if source == "data" else f"sources.{source}"


def _plain(name: str, kind: Any, settings: object) -> dict[str, Any]:
    tree: dict[str, Any] = TypeAdapter(kind).dump_python(settings, mode="json")
    return {**tree, "name": name}
