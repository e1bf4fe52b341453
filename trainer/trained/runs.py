"""A finished or running run, read from outside: its settings and the generator of one of its checkpoints."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import Config, config_from_tree
from trainer.foundation.errors import CheckpointError
from trainer.models import build_generator


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator in evaluation mode, and where it comes from."""

    module: nn.Module
    config: Config
    iteration: int
    averaged: bool
    """Whether the weights are the run's exponential moving average."""
    state_sha256: str
    """Of the whole checkpoint."""
    info: dict[str, Any]
    """What the checkpoint's manifest says besides, such as the names of the classes."""


def load_generator(run: str, iteration: int | None = None, average: bool | None = None) -> TrainedGenerator:
    """The generator of the newest (or the given) checkpoint of the run at `run`.

    `average`: the moving average or the plain weights; None takes the average where the run has one.
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
    prefix = "ema/" if averaged else "generator/"
    module = build_generator(config.generator, config.model)
    weights = {k.removeprefix(prefix): v for k, v in restored.tensors.items() if k.startswith(prefix)}
    module.load_state_dict(weights)
    return TrainedGenerator(
        module.eval().requires_grad_(False),
        config,
        restored.commit.iteration,
        averaged,
        restored.commit.state_sha256,
        dict(restored.commit.info),
    )
