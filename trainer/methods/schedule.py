"""Who is updated when, on how many samples, at which learning rate: pure functions of the iteration."""

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.foundation.choices import Choice

_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
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


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ConstantRate:
    """The full rate."""

    name: Literal["constant"] = "constant"

    def factor(self, done: int, length: int) -> float:
        """The factor on the base rate when `done` of the stage's `length` iterations are done (0 to `length`)."""
        return 1.0

    def words(self, until: int) -> str:
        """The law in words, for a stage until `until`."""
        return "constant"


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class LinearToZeroRate:
    """From the full rate at the stage's first iteration to 0 at `until`."""

    name: Literal["linear_to_zero"] = "linear_to_zero"

    def factor(self, done: int, length: int) -> float:
        """As the official code's `LinearShift`: 1 - done / length."""
        return 1.0 - done / length

    def words(self, until: int) -> str:
        """The law in words."""
        return f"linear to 0 at {until:,}"


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ExponentialRate:
    """Divided by the same number in every iteration, down to a floor (Mirza & Osindero 2014, section 4.1)."""

    name: Literal["exponential"] = "exponential"
    divisor: Annotated[float, Field(ge=1.0)]
    """The rate of each iteration is the last one's divided by this; the stage's first iteration has the full rate."""
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the base rate below which it does not fall."""

    def factor(self, done: int, length: int) -> float:
        """max(floor, divisor^-done), a closed form of the iteration."""
        return max(self.floor, math.pow(self.divisor, -done))

    def words(self, until: int) -> str:
        """The law in words."""
        return f"divided by {self.divisor:g} in every iteration, not below {self.floor:g} of it"


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class LinearStepsRate:
    """Towards 0 in equal steps, one an epoch, as PyTorch's LambdaLR does when it is stepped once an epoch."""

    name: Literal["linear_steps"] = "linear_steps"
    every: Annotated[int, Field(ge=1)]
    """Iterations of one step: an epoch."""
    steps: Annotated[int, Field(ge=1)]
    """Steps from the full rate to 0."""
    first: Annotated[int, Field(ge=0)] = 1
    """Steps that are taken at the stage's first iteration."""

    def factor(self, done: int, length: int) -> float:
        """max(0, 1 - (first + whole epochs) / steps)."""
        return max(0.0, 1.0 - (self.first + done // self.every) / self.steps)

    def words(self, until: int) -> str:
        """The law in words."""
        return f"1 / {self.steps:,} of it less every {self.every:,} iterations, {self.first:,} at once"


RateLaw = Annotated[
    ConstantRate | LinearToZeroRate | ExponentialRate | LinearStepsRate,
    Choice(methods=("factor", "words"), names_alone=True),
]
"""A stage's learning-rate law. To add one: its settings, and its name in this union."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Stage:
    """A range of iterations with one learning-rate law."""

    until: Annotated[int, Field(ge=1)]
    """The first iteration that no longer belongs to the stage."""
    learning_rate: RateLaw = ConstantRate()
    """`constant`; `linear_to_zero`, from the full rate at the stage's first iteration to 0 at `until`; or a section with
    `name: exponential`, `divisor` and `floor`, or with `name: linear_steps`, `every`, `steps` and `first`."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ScheduleConfig:
    """The stages of a run, in order."""

    discriminator_steps: Annotated[int, Field(ge=1)] = 5
    """Discriminator updates in one iteration (`n_dis` of the official code), after the generator's one update."""
    generator_first: bool = True
    """The generator's update stands before the discriminator's in an iteration, as in the official updater; many ports have
    it last."""
    stages: tuple[Stage, ...] = (
        Stage(until=400_000),
        Stage(until=450_000, learning_rate=LinearToZeroRate()),
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

    As in the official code, the rate of update t is set from the number of updates done before it: in a stage [s, e) the
    law sees t - s of e - s. Beyond the last stage its final value holds.
    """
    start = 0
    for stage in schedule.stages:
        if iteration < stage.until or stage is schedule.stages[-1]:
            break
        start = stage.until
    return stage.learning_rate.factor(min(iteration, stage.until) - start, stage.until - start)


def describe(schedule: ScheduleConfig, iterations: int, learning_rate: float) -> list[str]:
    """One line per stage, for the dry run and the log."""
    lines, start = [], 0
    for stage in schedule.stages:
        if start >= iterations:
            lines.append(f"iterations {start:,} to {stage.until:,}: not reached")
            continue
        end = min(stage.until, iterations)
        law = stage.learning_rate.words(stage.until)
        lines.append(f"iterations {start:,} to {end:,}: learning rate {learning_rate:g}, {law}")
        start = stage.until
    return lines
