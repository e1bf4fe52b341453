"""Growth as a function of the settings and the iteration alone: which resolution acts, how far it has faded in, with which
batch, at which rate, and where the optimizers start anew.

Karras et al. 2018 (arXiv 1710.10196), section 2 and appendix A.1; where the paper is silent, the official code.

How a method uses it:

- Its settings have a field `growth: GrowthConfig = GrowthConfig()`.
- `check(problem)` calls `config.growth.table(problem.model.resolution, problem.batch)`, which raises ValueError, and the
  table's `check_groups` where the discriminator has a minibatch deviation.
- `build(problem)` makes the table once. `changes` of the method are `table.changes`.
- `turns(iteration)` asks `now = table.at(iteration)`. A turn has `reads={"data": now.batch}`, `made=now.batch`,
  `form=now.stage.form`, `rate=now.rate`; each player's first turn has `forgets=now.forgets`.
- `segments(iterations)` returns `table.describe(iterations)`, for the dry run and the plan.
- The networks take `Stage.of(turn.form)` (trainer/models/growing.py), real images go through `real_level`.

Shapes: none. All counts of images are those of all replicas together.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.foundation.choices import OneOf
from trainer.methods.protocol import Segment
from trainer.methods.schedule import BatchConfig
from trainer.models.growing import SMALLEST, Stage, levels


class Preset(NamedTuple):
    """Official batches of all replicas together and rates, by resolution."""

    batches: Mapping[int, int]
    rates: Mapping[int, float]
    """Factors on the base rate, which is 0.001; 1 where a resolution is missing."""


def _batches(*sizes: int) -> dict[int, int]:
    return dict(zip(levels(1024), sizes, strict=True))


_ONE = _batches(128, 128, 128, 64, 32, 16, 8, 4, 4)
_TWO = _batches(256, 256, 128, 64, 32, 16, 8, 8, 8)
_FOUR = _batches(512, 256, 128, 64, 32, 16, 16, 16, 16)
_EIGHT = _batches(512, 256, 128, 64, 32, 32, 32, 32, 32)
_STYLE_RATES = {128: 1.5, 256: 2.0, 512: 3.0, 1024: 3.0}
PRESETS = {
    "none": Preset({}, {}),
    "pggan_paper": Preset(_batches(16, 16, 16, 16, 16, 16, 14, 6, 3), {}),
    "pggan_1": Preset(_ONE, {1024: 1.5}),
    "pggan_2": Preset(_TWO, {512: 1.5, 1024: 2.0}),
    "pggan_4": Preset(_FOUR, {256: 1.5, 512: 2.0, 1024: 3.0}),
    "pggan_8": Preset(_EIGHT, {128: 1.5, 256: 2.0, 512: 3.0, 1024: 3.0}),
    "stylegan_1": Preset(_ONE, _STYLE_RATES),
    "stylegan_2": Preset(_TWO, _STYLE_RATES),
    "stylegan_4": Preset(_FOUR, _STYLE_RATES),
    "stylegan_8": Preset(_EIGHT, _STYLE_RATES),
}
"""The official configurations for 1, 2, 4 and 8 GPUs, and the first one, which made the paper's pictures."""
PresetName = Annotated[str, OneOf(PRESETS)]
Images = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class GrowthConfig:
    """When the networks grow. The defaults are the official code's."""

    first_resolution: Annotated[int, Field(ge=SMALLEST)] = SMALLEST
    """Pixels of the first stage; `model.resolution`: the networks do not grow."""
    stable_images: Images = 600_000
    """Real images that a resolution is trained for before the next one fades in. The paper has 800,000."""
    fade_images: Images = 600_000
    """Real images while a resolution fades in. The paper has 800,000."""
    preset: PresetName = "none"
    """Official batches of all replicas together, and rates, by resolution; the name's number is that of the GPUs, which
    are replicas here. `none`: every resolution has `batch.real_per_replica` and the optimizers' rates."""
    batches: dict[int, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Images of one replica by resolution, in place of the preset's. While a resolution fades in, its own holds."""
    rates: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Factors on the optimizers' learning rates by resolution, in place of the preset's."""
    repeats: Annotated[int, Field(ge=1)] = 4
    """Iterations for which the fade, once computed, is held (`minibatch_repeats` of the official code)."""
    resets: bool = True
    """Whether both optimizers start anew at the start and at the end of every fade, as in the official code."""
    ramp_images: Annotated[int, Field(ge=0)] = 0
    """The rate rises as exp(-5 (1 - n / ramp)^2) over the first n images (the first official code: 40,000); 0: it does
    not."""

    def table(self, resolution: int, batch: BatchConfig) -> "GrowthTable":
        """The segments for images of this size. Raises ValueError, beginning with the setting, for an impossible one."""
        sides = levels(resolution)
        if self.first_resolution not in sides:
            raise ValueError(
                f"objective.growth.first_resolution: is {self.first_resolution}; give a power of two from {SMALLEST} to "
                f"model.resolution, which is {resolution}"
            )
        for name, given in (("batches", self.batches), ("rates", self.rates)):
            for side in given:
                if side not in sides:
                    raise ValueError(
                        f"objective.growth.{name}: has a value for {side} px, which is no level of networks of "
                        f"{resolution} px; there are {', '.join(map(str, sides))}"
                    )
        return GrowthTable(self, resolution, batch)

    def batch_at(self, side: int, batch: BatchConfig) -> int:
        """Images of one replica at a resolution. Raises ValueError where the preset's do not divide."""
        if side in self.batches:
            return self.batches[side]
        whole = PRESETS[self.preset].batches.get(side)
        if whole is None:
            return batch.real_per_replica
        if whole % batch.replicas:
            raise ValueError(
                f"batch.replicas: is {batch.replicas}, which does not divide the {whole} images at {side} px of "
                f"objective.growth.preset {self.preset}; give a divisor, or objective.growth.batches"
            )
        return whole // batch.replicas

    def rate_at(self, side: int) -> float:
        """The factor on the rates at a resolution."""
        return self.rates.get(side, PRESETS[self.preset].rates.get(side, 1.0))


@plain_dataclass(frozen=True)
class Now:
    """One iteration."""

    images: int
    """Real images before it."""
    stage: Stage
    batch: int
    """Images of one replica."""
    rate: float
    """Factor on the optimizers' rates."""
    forgets: bool
    """Whether the optimizers start anew before it."""


@plain_dataclass(frozen=True)
class GrowthSegment:
    """Iterations in which the same levels act."""

    iteration: int
    """The first one."""
    images: int
    """Real images before it."""
    resolution: int
    """Of the newest level that acts."""
    faded_from: int | None
    """The image at which the level begins to fade in; None: it has faded in."""
    batch: int
    """Images of one replica."""
    rate: float


class GrowthTable:
    """The segments of a run, in their order.

    With d = stable + fade images, i = images // d doublings are complete. The level is stable up to image i d + stable,
    including it, and the next one fades in until image (i + 1) d. All is looked at once in `repeats` iterations.
    """

    def __init__(self, config: GrowthConfig, resolution: int, batch: BatchConfig) -> None:
        self.config, self.replicas, self.resolution = config, batch.replicas, resolution
        segments: list[GrowthSegment] = []
        iteration, images = 0, 0
        end: int | None = 0
        while end is not None:
            side, faded_from, end = self._phase(images)
            own = config.batch_at(side, batch)
            segments.append(GrowthSegment(iteration, images, side, faded_from, own, config.rate_at(side)))
            if end is not None:
                block = config.repeats * own * self.replicas
                blocks = math.ceil((end - images) / block)
                iteration, images = iteration + blocks * config.repeats, images + blocks * block
        self.segments: Sequence[GrowthSegment] = segments
        self._begins: list[int] = [segment.iteration for segment in segments]

    def _phase(self, images: int) -> tuple[int, int | None, int | None]:
        """After so many images: the newest resolution, where it began to fade, the first image of what follows."""
        config = self.config
        period = config.stable_images + config.fade_images
        doublings, within = divmod(images, period)
        side = config.first_resolution << doublings
        if side >= self.resolution:
            return self.resolution, None, None
        start = doublings * period + config.stable_images
        if within <= config.stable_images:
            return side, None, start + 1
        return 2 * side, start, start + config.fade_images

    @property
    def changes(self) -> list[int]:
        """The iterations at which a segment begins, without 0: only there the batch changes."""
        return self._begins[1:]

    def segment_at(self, iteration: int) -> GrowthSegment:
        """The segment of an iteration."""
        return self.segments[bisect.bisect_right(self._begins, iteration) - 1]

    def at(self, iteration: int) -> Now:
        """Everything about an iteration, in whole numbers but for the last division."""
        config, segment = self.config, self.segment_at(iteration)
        inside, whole = iteration - segment.iteration, segment.batch * self.replicas
        held = segment.images + inside // config.repeats * config.repeats * whole
        fade = 1.0 if segment.faded_from is None else (held - segment.faded_from) / config.fade_images
        rate = segment.rate
        if held < config.ramp_images:
            rate *= math.exp(-5.0 * (1.0 - held / config.ramp_images) ** 2)
        return Now(
            segment.images + inside * whole,
            Stage(segment.resolution, fade),
            segment.batch,
            rate,
            config.resets and inside == 0 and iteration > 0,
        )

    def iterations(self, images: int) -> int:
        """Iterations until at least so many real images have been read: the official length of a run."""
        segment = next(s for s in reversed(self.segments) if s.images <= images)
        block = self.config.repeats * segment.batch * self.replicas
        return segment.iteration + math.ceil((images - segment.images) / block) * self.config.repeats

    def check_groups(self, group: int | None, setting: str) -> None:
        """Raise ValueError, beginning with the batch's setting, unless groups of the minibatch deviation divide it.

        `setting`: the name of the group's size.
        """
        for segment in self.segments:
            size = min(group or segment.batch, segment.batch)
            if segment.batch % size:
                own = segment.resolution in self.config.batches or self.config.preset != "none"
                raise ValueError(
                    f"{'objective.growth.batches' if own else 'batch.real_per_replica'}: a replica has {segment.batch} images "
                    f"at {segment.resolution} px, which groups of {size} for the minibatch deviation do not divide; give a "
                    f"multiple of {size}, or change {setting}"
                )

    def describe(self, iterations: int) -> list[Segment]:
        """The segments up to `iterations`, for people."""
        found = []
        for segment, end in zip(self.segments, [*self._begins[1:], iterations], strict=True):
            if segment.iteration >= iterations:
                break
            last = min(end, iterations)
            found.append(
                Segment(
                    segment.iteration,
                    last,
                    {
                        "images": f"{segment.images:,}",
                        "level": f"{segment.resolution} px{'' if segment.faded_from is None else ' fades in'}",
                        "batch": f"{self.replicas} x {segment.batch}",
                        "rate": f"x {segment.rate:g}",
                        "reset": "yes" if self.at(segment.iteration).forgets else "",
                        "place": f"{segment.images // self.replicas:,}",
                    },
                )
            )
        return found
