"""From images to tags (Mirza & Osindero 2014, section 4.2): a game on vectors.

A sample is the features of an image and one of its tags, which is its class. The generator makes word vectors of noise and
features; the discriminator tells them from the vectors of the images' tags. The vectors of the vocabulary are frozen: a
network without parameters, so that the state, and an export, holds them.

Shapes: B samples of one replica, F features of an image, D numbers of a word vector, V words of the vocabulary.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from data_pipeline.reading.word_vectors import read_word_vectors
from trainer.classifiers import Classifier, build_classifier, parse_classifier
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.problem import Problem
from trainer.methods.protocol import NO_NAMES, ClassNames, Conditions, Networks, Sampler, Shards, Tensors, Turn
from trainer.methods.terms.losses import LOSSES, LossName
from trainer.models import ModelConfig
from trainer.models.tagging import TagDiscriminator, TagGenerator, WordTable

GENERATOR, DISCRIMINATOR, WORDS = "generator", "discriminator", "words"
DRAWS = 100
"""Vectors of an image that vote for its words."""
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class TaggingConfig:
    """Settings of the game; the defaults are the paper's where it gives them."""

    name: Literal["tagging"] = "tagging"
    words: str
    """File of word vectors (word2vec text or binary, GloVe text), path or URL. All tags must have one. They are scaled to
    the length sqrt(D)."""
    network: str | None = None
    """The classifier whose features the shards hold, as in --features of trainer.evaluate; samples of image files need it."""
    features: Count = 4096
    """F: numbers of an image's vector."""
    word_length: Count = 200
    """D: numbers of a word vector."""
    loss: LossName = "non_saturating"
    """The paper does not give the generator's side; its predecessor's is non-saturating."""
    noise_units: Count = 500
    """Of the generator: rectified linear units that see the noise."""
    image_units: Count = 2000
    """Of the generator: rectified linear units that see the features."""
    discriminator_word_units: Count = 500
    """Rectified linear units that see the word vector."""
    discriminator_image_units: Count = 1200
    """Rectified linear units that see the features."""
    joint_units: Count = 1000
    """Of the discriminator: maxout units that see both."""
    joint_pieces: Count = 3
    """Linear functions of which each of these is the largest."""
    dropout: Share = 0.5
    """Share of hidden units that the next layer does not see in training. Samples are drawn without."""
    generator_range: Range = 0.05
    """Initial weights are U(-range, range), biases 0. Not given in the paper; this is the predecessor's."""
    discriminator_range: Range = 0.005
    """The same of the discriminator."""
    mismatched: bool = False
    """Whether half of what the discriminator takes for generated are real words with the features of another image (Reed et
    al. 2016, algorithm 1). The paper has none."""
    centred_words: bool = False
    """Subtract the vocabulary's mean from its vectors, so that cosines are about it. Not in the paper."""
    normalised_features: bool = False
    """Each image's features are shifted and scaled to mean 0 and variance 1. Not in the paper."""
    nearest: Count = 20
    """Words that a generated vector votes for: the nearest by cosine."""
    second_derivatives: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the problem is another one."""
        for section, settings in ((GENERATOR, problem.generator), (DISCRIMINATOR, problem.discriminator)):
            if settings is not None:
                raise ValueError(
                    f"{section}: means nothing to {self.name}, whose networks are in objective; leave it out"
                )
        if problem.model.classes < 2:
            raise ValueError(f"model.classes: is {problem.model.classes}; set it to the number of tags")
        if problem.terms:
            raise ValueError("classifier_loss: looks at images, and this game has none; leave it out")

    def build(self, problem: Problem) -> "TaggingMethod":
        """The game."""
        return TaggingMethod(self, problem)


class TaggingMethod:
    """One generator, with the frozen vocabulary, against one discriminator."""

    players: Mapping[str, Sequence[str]] = {GENERATOR: (GENERATOR, WORDS), DISCRIMINATOR: (DISCRIMINATOR,)}
    shown = GENERATOR
    changes: Sequence[int] = ()
    draws = False

    def __init__(self, config: TaggingConfig, problem: Problem) -> None:
        self.config, self.problem = config, problem
        self.sides = LOSSES[config.loss]
        self.vectors = torch.zeros(problem.model.classes, config.word_length)
        """Of the vocabulary [V, D]. `check` reads them; a checkpoint brings its own."""

    def build(self, network: str) -> nn.Module:
        """The network of this name."""
        config = self.config
        if network == WORDS:
            return WordTable(self.vectors.clone())
        if network == GENERATOR:
            return TagGenerator(
                latent_dim=self.problem.model.latent_dim,
                features=config.features,
                word_length=config.word_length,
                noise_units=config.noise_units,
                image_units=config.image_units,
                dropout=config.dropout,
                weight_range=config.generator_range,
                normalised=config.normalised_features,
            )
        return TagDiscriminator(
            features=config.features,
            word_length=config.word_length,
            word_units=config.discriminator_word_units,
            image_units=config.discriminator_image_units,
            joint_units=config.joint_units,
            joint_pieces=config.joint_pieces,
            dropout=config.dropout,
            weight_range=config.discriminator_range,
            normalised=config.normalised_features,
        )

    def check(self, sources: Mapping[str, Shards]) -> None:
        """Read the vectors of the vocabulary. Raises `SettingError` unless the shards hold such samples and every tag has a
        vector."""
        url, manifest = sources["data"]
        cure = "make them with `make_shards tags` and trainer.extract_features"
        if not manifest.labelled:
            raise SettingError(f"data.shards: the vectors in {url} have no tags (no classes); {cure}")
        for setting, asked, found, what in (
            ("objective.features", self.config.features, manifest.vector_length, "numbers in a vector"),
            ("model.classes", self.problem.model.classes, len(manifest.classes), "tags"),
        ):
            if asked != found:
                raise SettingError(
                    f"{setting}: is {asked}, but the shards in {url} have {found} {what}; set it to {found}"
                )
        self._check_network(url, manifest.options.get("notice", {}).get("features_digest"))
        self.vectors = self._read_words(manifest.class_names)

    def _check_network(self, url: str, digest: str | None) -> None:
        """Raise `SettingError` where the features are another network's."""
        if self.config.network is None or digest is None:
            return
        network = _classifier(self.config.network)
        if network.digest != digest:
            raise SettingError(
                f"objective.network: {network.description} has other weights than the network that made the features in "
                f"{url}; name that one"
            )

    def _read_words(self, tags: Sequence[str]) -> Tensor:
        """[V, D], of the length sqrt(D). Raises `SettingError`, or DataError for a file that cannot be read."""
        found = read_word_vectors(self.config.words, tags, "objective.words")
        if missing := [tag for tag in tags if tag not in found]:
            raise SettingError(
                f"objective.words: {self.config.words} has no vector of the tag {missing[0]!r} ({len(missing)} of "
                f"{len(tags)} tags lack one); give the file that `make_shards tags --words` was given"
            )
        vectors = torch.stack([torch.from_numpy(found[tag]) for tag in tags])
        if self.config.centred_words:
            vectors = F.normalize(vectors - vectors.mean(0), dim=1)
        length = vectors.shape[1]
        if length != self.config.word_length:
            raise SettingError(
                f"objective.word_length: is {self.config.word_length}, but the vectors in {self.config.words} have {length} "
                f"numbers; set it to {length}"
            )
        return vectors * math.sqrt(length)

    def turns(self, iteration: int) -> list[Turn]:
        """The generator's turn, number 0, first or last; the discriminator's are 1, 2, ..."""
        batch, schedule = self.problem.batch, self.problem.schedule
        n, m = batch.real_per_replica, batch.generated_per_replica
        of_generator = Turn(GENERATOR, 0, reads={"data": m}, made=m)
        of_discriminator = [
            Turn(DISCRIMINATOR, step + 1, reads={"data": n}, made=n) for step in range(schedule.discriminator_steps)
        ]
        return [of_generator, *of_discriminator] if schedule.generator_first else [*of_discriminator, of_generator]

    def draw(self, turn: Turn, keys: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """`latents` [B, Z], `features` [B, F] and `labels` [B], the tags."""
        fields = real["data"]
        latents = self.problem.model.latents(keys.generator("latents"), turn.made)
        return {"latents": latents, "features": fields["vector"], "labels": fields["class"]}

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> dict[str, Tensor]:
        """Real and generated word vectors [B, D] of the discriminator's turn."""
        if turn.player == GENERATOR:
            return {}
        fake = networks[GENERATOR](draw["latents"], draw["features"])
        return {"real_words": networks[WORDS](draw["labels"]), "fake_words": fake}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The mover's side of the loss."""
        D, features = networks[DISCRIMINATOR], draw["features"]
        logged: dict[str, Tensor] = {}
        if turn.player == GENERATOR:
            fake = D(networks[GENERATOR](draw["latents"], features), features)
            loss = self.sides.generator(fake)
        else:
            real, fake = D(draw["real_words"], features), D(draw["fake_words"], features)
            logged["real_score"] = real.mean().detach()
            wrong = [D(draw["real_words"], features.roll(1, 0))] if self.config.mismatched else []
            loss = self.sides.discriminator(real, torch.cat([fake, *wrong]))
        return {"loss": loss, "adversarial": loss.detach(), **logged, "fake_score": fake.mean().detach()}, memory

    def memory(self, replica: int) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
        """Word vectors of images, and the words nearest to them."""
        config = self.config
        conditions = FeatureConditions(config.features)
        return TagSampler(networks, self.problem.model, conditions, classes.names, config.nearest, config.network)


@plain_dataclass
class FeatureConditions:
    """Features of images, float32 [F]: those of the data, by number."""

    features: int
    real: Callable[[range], Mapping[str, Tensors]] | None = None

    def bind(self, real: Callable[[range], Mapping[str, Tensors]]) -> None:
        """Take the features from `real`."""
        self.real = real

    def parse(self, text: str) -> Tensor:
        """Nothing can be named. Raises `SettingError`."""
        raise SettingError(f"classes: {text!r} names no image, and this generator makes words of images; give --source")

    def evenly(self, count: int) -> Tensor:
        """The first `count` samples' [count, F]; none without data."""
        return self.in_turn(range(count)) if self.real else torch.empty(0, self.features)

    def in_turn(self, numbers: range) -> Tensor:
        """The features [n, F] of the samples with these numbers. Raises `SettingError` without data."""
        if self.real is None:
            raise SettingError(
                "classes: this generator makes words of images, of which an export has none; give --source"
            )
        features: Tensor = self.real(numbers)["data"]["vector"]
        return features

    def caption(self, condition: Tensor) -> str:
        """Nothing: features have no name."""
        return ""


@plain_dataclass
class TagSampler:
    """Word vectors [n, D] of features, and the words that they vote for (section 4.2: of 100 vectors of an image)."""

    networks: Mapping[str, nn.Module]
    model: ModelConfig
    conditions: Conditions
    names: Sequence[str]
    """Of the vocabulary; empty where they are not known."""
    nearest: int
    network: str | None
    """The classifier whose features the networks know."""
    output: str = "vector"

    @property
    def channels(self) -> int:
        """Of the pictures that are described. Raises `SettingError` without a classifier."""
        return self._classifier.image_channels

    @functools.cached_property
    def _classifier(self) -> Classifier:
        if self.network is None:
            raise SettingError(
                "objective.network: is not set, so pictures have no features; name the classifier that made the data's"
            )
        return _classifier(self.network)

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Latents [count, Z] on the CPU. One at a time, the first n of more are the same."""
        return self.model.latents(source, count)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """Word vectors [n, D] of latents [n, Z] and features [n, F]."""
        made: Tensor = self.networks[GENERATOR](latents, conditions)
        return made

    def scores(self, samples: Tensor) -> Tensor:
        """Float64 [V] of word vectors [n, D] of one image: how many have a word among their nearest; among words of equally
        many votes the mean cosine decides."""
        table = F.normalize(self._words.double(), dim=1)
        cosines = F.normalize(samples.to(table), dim=1) @ table.t()
        chosen = cosines.topk(min(self.nearest, len(table)), 1).indices
        votes = torch.bincount(chosen.flatten(), minlength=len(table))
        return votes + (cosines.mean(0) + 1) / 4

    @property
    def _words(self) -> Tensor:
        vectors = self.networks[WORDS].vectors
        assert isinstance(vectors, Tensor)
        return vectors

    @torch.no_grad()
    def describe(self, picture: Tensor, source: torch.Generator, words: int = 10) -> list[str]:
        """The words for a picture [C, H, W] in [-1, 1], of its centred square, best first: by the votes of 100 vectors
        (section 4.2). Raises `SettingError` without a classifier or names."""
        if not self.names:
            raise SettingError("classes: the names of the tags are not known; sample a run whose shards can be read")
        side = min(picture.shape[1:])
        top, left = ((length - side) // 2 for length in picture.shape[1:])
        square = picture[None, :, top : top + side, left : left + side]
        features = self._classifier.to(picture.device).features(square)
        made = self.sample(self.draw(source, DRAWS).to(features), features.expand(DRAWS, -1))
        best = self.scores(made).topk(min(words, len(self.names))).indices
        return [self.names[number] for number in best.tolist()]


def _classifier(name: str) -> Classifier:
    return build_classifier(parse_classifier(name, "objective.network"), "cpu", "objective.network")
