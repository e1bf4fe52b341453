"""Who is updated when, on how many samples, at which learning rate: pure functions of the iteration."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class BatchConfig:
    """Batch sizes per replica, a logical data-parallel worker; the number of processes does not matter."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """Replicas: each has its own stream of real samples, its own noise and its own batch-norm batch."""
    real_per_replica: Annotated[int, Field(ge=1)] = 64
    """Real images, and as many generated ones, in one discriminator step of one replica."""
    generated_per_replica: Annotated[int, Field(ge=1)] = 128
    """Generated images in the generator's step of one replica (`n_gen_samples` of the official code)."""
    dequantize: bool = True
    """Real images as x / 128 - 1 + U(0, 1/128), as the official datasets/imagenet.py; false: x / 127.5 - 1 without noise, as
    the official datasets/cifar10.py."""
    synchronised_norm: bool = False
    """Batch norm over all replicas together ("cross-GPU"), rather than in each replica alone as in the official code."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Stage:
    """A range of iterations with one learning-rate law."""

    until: Annotated[int, Field(ge=1)]
    """The first iteration that no longer belongs to the stage."""
    learning_rate: Literal["constant", "linear_to_zero"] = "constant"
    """`linear_to_zero` falls from the full rate at the stage's first iteration to 0 at `until`."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ScheduleConfig:
    """The stages of a run, in order."""

    discriminator_steps: Annotated[int, Field(ge=1)] = 5
    """Discriminator updates in one iteration (`n_dis` of the official code), after the generator's one update."""
    generator_first: bool = True
    """The generator's update stands before the discriminator's in an iteration, as in the official updater; many ports have
    it last."""
    stages: tuple[Stage, ...] = (
        Stage(until=400_000),
        Stage(until=450_000, learning_rate="linear_to_zero"),
    )
    """The paper's: 400K iterations at the full rate, then 50K of linear decay to 0."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("schedule.stages: is empty; give at least one stage")
        for before, after in pairwise(self.stages):
            if after.until <= before.until:
                raise ValueError(
                    f"schedule.stages: a stage until {after.until} follows one until {before.until}; "
                    "list the stages in ascending order"
                )


def learning_rate_factor(schedule: ScheduleConfig, iteration: int) -> float:
    """The factor in [0, 1] on the base learning rate for the update of `iteration` (counted from 0).

    As in the official code, whose `LinearShift` sets the rate for update t from the number of updates done before it:
    over a decaying stage [s, e) the factor is 1 - (t - s) / (e - s). Beyond the last stage its final value holds.
    """
    start = 0
    for stage in schedule.stages:
        if iteration < stage.until:
            if stage.learning_rate == "constant":
                return 1.0
            return 1.0 - (iteration - start) / (stage.until - start)
        start = stage.until
    return 0.0 if schedule.stages[-1].learning_rate == "linear_to_zero" else 1.0


def describe(schedule: ScheduleConfig, iterations: int, learning_rate: float) -> list[str]:
    """One line per stage, for the dry run and the log."""
    lines, start = [], 0
    for stage in schedule.stages:
        if start >= iterations:
            lines.append(f"iterations {start:,} to {stage.until:,}: not reached")
            continue
        end = min(stage.until, iterations)
        law = "constant" if stage.learning_rate == "constant" else f"linear to 0 at {stage.until:,}"
        lines.append(f"iterations {start:,} to {end:,}: learning rate {learning_rate:g}, {law}")
        start = stage.until
    return lines
