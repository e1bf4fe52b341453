"""A finished or running run, read from outside: its settings and the sampler of one of its checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter
from torch import nn

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import BatchConfig, Config, config_from_tree
from trainer.foundation.errors import CheckpointError
from trainer.methods import ObjectiveConfig
from trainer.methods.protocol import NO_NAMES, ClassNames, Sampler
from trainer.methods.sampling import ClassConditions, LatentSampler
from trainer.methods.schedule import ScheduleConfig
from trainer.models import DiscriminatorConfig, GeneratorConfig, ModelConfig, build_generator
from trainer.trained.real import bind_data
from trainer.trained.weights import below, put_weights


@dataclass(frozen=True)
class Recipe:
    """The settings that a method's networks are built from: a part of `Config`, and what an export keeps of it."""

    objective: ObjectiveConfig
    model: ModelConfig
    batch: BatchConfig
    schedule: ScheduleConfig
    generator: GeneratorConfig | None = None
    discriminator: DiscriminatorConfig | None = None

    @classmethod
    def of(cls, config: Config) -> "Recipe":
        """The recipe of an experiment."""
        return cls(
            config.objective, config.model, config.batch, config.schedule, config.generator, config.discriminator
        )

    def plain(self) -> dict[str, Any]:
        """As plain values, every default written out."""
        tree: dict[str, Any] = TypeAdapter(Recipe).dump_python(self, mode="json")
        return tree


class Samplable(Protocol):
    """The part of a method that makes samples (see `trainer.methods.protocol.Method`)."""

    @property
    def players(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def shown(self) -> str: ...

    def build(self, network: str) -> nn.Module: ...

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = ..., /) -> Sampler: ...


@dataclass(frozen=True)
class _Adversarial:
    """What `objective.build(problem)` will give for the methods of today."""

    recipe: Recipe
    players: Mapping[str, Sequence[str]]
    shown: str = "generator"

    def build(self, network: str) -> nn.Module:
        assert self.recipe.generator is not None
        return build_generator(self.recipe.generator, self.recipe.model)

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES, /) -> Sampler:
        model = self.recipe.model
        return LatentSampler(networks, model, ClassConditions(model.classes, classes.names, classes.ids))


def method_of(recipe: Recipe) -> Samplable:
    """The method of these settings. Until objectives build methods it replaces
    `recipe.objective.build(Problem(recipe.model, recipe.batch, ...))`."""
    return _Adversarial(recipe, {"generator": ("generator",)})


def shown_networks(recipe: Recipe) -> dict[str, nn.Module]:
    """The networks of the player that is sampled, by name, with fresh weights."""
    method = method_of(recipe)
    return {name: method.build(name) for name in method.players[method.shown]}


def sampler_of(recipe: Recipe, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
    """The method's sampler of these networks."""
    return method_of(recipe).sampler(networks, classes)


@dataclass(frozen=True)
class Trained:
    """Networks in evaluation mode, and where they come from."""

    networks: Mapping[str, nn.Module]
    """Those of the player that is sampled, by name."""
    config: Config
    iteration: int
    averaged: bool
    """Whether the weights are the run's exponential moving average."""
    state_sha256: str
    """Of the whole checkpoint."""
    info: dict[str, Any]
    """What the checkpoint's manifest also says, such as the names of the classes."""

    def sampler(self, classes: ClassNames = NO_NAMES) -> Sampler:
        """The sampler of these networks; conditions from data come from the run's own."""
        return bind_data(sampler_of(Recipe.of(self.config), self.networks, classes), self.config.data)


def load_trained(run: str, iteration: int | None = None, average: bool | None = None) -> Trained:
    """The sampled networks of the newest (or the given) checkpoint of the run at `run`, a path or URL.

    average: the moving average or the plain weights; None takes the average where the run has one.

    Raises `CheckpointError` if the run has no such checkpoint, or no average though it is asked for.
    """
    restored = CheckpointStore(run).restore(iteration)
    if restored is None:
        raise CheckpointError(f"RUN: {run} holds no checkpoint yet; give the folder of a run that has written one")
    config = config_from_tree(restored.commit.info["settings"])
    has_average = any(name.startswith("ema/") for name in restored.tensors)
    if average and not has_average:
        raise CheckpointError(f"RUN: {run} was trained without a moving average (ema.decay is 0)")
    averaged = has_average if average is None else average
    recipe = Recipe.of(config)
    networks = shown_networks(recipe)
    weights = below("ema" if averaged else method_of(recipe).shown, restored.tensors)
    for network, module in networks.items():
        put_weights(module, weights if len(networks) == 1 else below(network, weights))
    return Trained(
        networks,
        config,
        restored.commit.iteration,
        averaged,
        restored.commit.state_sha256,
        dict(restored.commit.info),
    )
