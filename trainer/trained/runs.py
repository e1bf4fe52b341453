"""A finished or running run, read from outside: its settings and the sampler of one of its checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from data_pipeline.reading.stream import DataConfig
from trainer.checkpoint.commits import CheckpointStore
from trainer.config import Config, config_from_tree
from trainer.foundation.errors import CheckpointError
from trainer.methods import ObjectiveConfig
from trainer.methods.problem import Problem
from trainer.methods.protocol import NO_NAMES, ClassNames, Method, Sampler, results_of
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.models import DiscriminatorConfig, GeneratorConfig, ModelConfig
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


def method_of(recipe: Recipe) -> Method:
    """The method of these settings."""
    problem = Problem(recipe.model, recipe.batch, recipe.schedule, recipe.generator, recipe.discriminator)
    return recipe.objective.build(problem)


def shown_networks(method: Method) -> dict[str, nn.Module]:
    """The networks of the players that are looked at, by name, with fresh weights."""
    return {name: method.build(name) for player in results_of(method) for name in method.players[player]}


@dataclass(frozen=True)
class Trained:
    """Networks in evaluation mode, and where they come from."""

    networks: Mapping[str, nn.Module]
    """Those of the players that are looked at, by name."""
    config: Config
    iteration: int
    averaged: bool
    """Whether the weights are the run's exponential moving average."""
    state_sha256: str
    """Of the whole checkpoint."""
    info: dict[str, Any]
    """What the checkpoint's manifest also says, such as the names of the classes."""

    def sampler(self, classes: ClassNames = NO_NAMES, sources: Mapping[str, DataConfig] | None = None) -> Sampler:
        """The sampler of these networks. Conditions from data come from the run's own sources, or from these in their place."""
        made = method_of(Recipe.of(self.config)).sampler(self.networks, classes)
        return bind_data(made, {**self.config.all_sources, **(sources or {})})


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
    method = method_of(Recipe.of(config))
    networks = shown_networks(method)
    for player in results_of(method):
        names = method.players[player]
        weights = below("ema" if averaged else player, restored.tensors)
        alone = len(networks if averaged else names) == 1
        for network in names:
            put_weights(networks[network], weights if alone else below(network, weights))
    return Trained(
        networks,
        config,
        restored.commit.iteration,
        averaged,
        restored.commit.state_sha256,
        dict(restored.commit.info),
    )
