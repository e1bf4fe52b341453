"""Super-resolution with the projection discriminator (Miyato & Koyama 2018, section 5.2), as in the official branch `sr`.

The condition of both networks is an image: the generator makes a large image of a small one, the discriminator judges a large
image with its small one. The loss is adversarial alone.

Shapes: n images of one replica, [n, C, H, W] large, [n, C, H/4, W/4] small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.foundation.transfer import to_device
from trainer.methods.problem import Problem
from trainer.methods.protocol import NO_NAMES, ClassNames, Conditions, Networks, Shards, Tensors, Turn
from trainer.methods.sampling import PictureConditions
from trainer.methods.terms.losses import LOSSES, LossName
from trainer.models import ModelConfig, check_signature
from trainer.models.layers import at_least_float32

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
FACTOR = 4
"""Sides of the large image over those of the small one."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SuperResolutionConfig:
    """Settings of the game; the defaults are the official branch's."""

    second_derivatives: ClassVar[bool] = False

    name: Literal["superresolution"] = "superresolution"
    loss: LossName = "hinge"
    """The branch has the hinge."""

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the networks do not fit."""
        check_signature(GENERATOR, problem.generator, "small image", self.name)
        check_signature(DISCRIMINATOR, problem.discriminator, "small image", self.name)
        if problem.model.classes:
            raise ValueError(f"model.classes: is {problem.model.classes}, but {self.name} has no classes; set it to 0")
        if problem.terms:
            raise ValueError(
                f"classifier_loss: is a section, but {self.name} has no classes to be guided to; leave it out"
            )

    def build(self, problem: Problem) -> "SuperResolution":
        """The game."""
        return SuperResolution(self, problem)


class SuperResolution:
    """A turn of the generator on small images of its own, and turns of the discriminator on new pairs.

    In a discriminator's turn the generated image is made of the small image of the real one.
    """

    players: Mapping[str, Sequence[str]] = {GENERATOR: (GENERATOR,), DISCRIMINATOR: (DISCRIMINATOR,)}
    shown = GENERATOR
    changes: Sequence[int] = ()
    draws = False

    def __init__(self, config: SuperResolutionConfig, problem: Problem) -> None:
        self.config, self.problem = config, problem
        self.sides = LOSSES[config.loss]

    def build(self, network: str) -> nn.Module:
        """The network of this name."""
        assert self.problem.generator is not None and self.problem.discriminator is not None  # noqa: PT018
        if network == GENERATOR:
            return self.problem.generator.build(self.problem.model)
        return self.problem.discriminator.build(self.problem.model)

    def check(self, sources: Mapping[str, Shards]) -> None:
        """Raise `SettingError` unless the images of the source `data` have the networks' size and channels."""
        model, (url, manifest) = self.problem.model, sources["data"]
        for setting, asked, found in (
            ("model.resolution", model.resolution, manifest.resolution),
            ("model.image_channels", model.image_channels, manifest.channels),
        ):
            if asked != found:
                raise SettingError(
                    f"{setting}: is {asked}, but the shards in {url} hold images with {found}; set it to {found}"
                )

    def turns(self, iteration: int) -> list[Turn]:
        """The generator's turn, number 0, first or last; the discriminator's are 1, 2, ... Each reads images of its own."""
        batch, schedule = self.problem.batch, self.problem.schedule
        n = batch.generated_per_replica
        of_generator = Turn(GENERATOR, 0, reads={"data": n}, made=n)
        n = batch.real_per_replica
        of_discriminator = [
            Turn(DISCRIMINATOR, step + 1, reads={"data": n}, made=n) for step in range(schedule.discriminator_steps)
        ]
        return [of_generator, *of_discriminator] if schedule.generator_first else [*of_discriminator, of_generator]

    def draw(self, turn: Turn, keys: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """`small`, and in the discriminator's turn also `large`, the real images."""
        large = real["data"]["image"]
        noise = keys.generator("dequantization of small images") if self.problem.batch.dequantize else None
        small = shrunk(large, noise)
        return {"small": small} if turn.player == GENERATOR else {"small": small, "large": large}

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> dict[str, Tensor]:
        """The images that the generator makes of the small ones of the real ones."""
        return {} if turn.player == GENERATOR else {"made": networks[GENERATOR](draw["small"])}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The mover's side of the adversarial loss."""
        D, small = networks[DISCRIMINATOR], draw["small"]
        if turn.player == GENERATOR:
            fake = D(networks[GENERATOR](small), small)
            loss = self.sides.generator(fake)
            return {"loss": loss, "fake_score": fake.detach().mean()}, memory
        real, fake = D(draw["large"], small), D(draw["made"], small)
        loss = self.sides.discriminator(real, fake)
        return {"loss": loss, "real_score": real.detach().mean(), "fake_score": fake.detach().mean()}, memory

    def memory(self, replica: int) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> "UpscalingSampler":
        """Large images of small ones."""
        return UpscalingSampler(networks, self.problem.model)


def shrunk(large: Tensor, noise: torch.Generator | None = None) -> Tensor:
    """Small images of large ones [n, C, H, W] in [-1, 1]: antialiased bilinear, rounded to 8 bits as a file would be.

    With a generator both are x / 128 - 1 + U(0, 1/128), else x / 127.5 - 1 (trainer/foundation/pixels.py).
    """
    scale = 127.5 if noise is None else 128.0
    pixels = ((large + 1.0) * scale).round() if noise is None else ((large + 1.0) * scale).floor()
    size = (large.shape[2] // FACTOR, large.shape[3] // FACTOR)
    small = F.interpolate(pixels, size, mode="bilinear", antialias=True).round().clamp(0, 255)
    if noise is not None:
        small = small + to_device(torch.rand(small.shape, generator=noise), small.device)
    return small / scale - 1.0


def enlarged(small: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Images at another size, `bilinear` or `bicubic`, in [-1, 1]."""
    return F.interpolate(small, size, mode=mode, antialias=True, align_corners=False).clamp(-1, 1)


@plain_dataclass
class SmallPictures(PictureConditions):
    """Conditions: small images, made of the source's."""

    def evenly(self, count: int) -> Tensor:
        """Of the first `count` images; none without data."""
        side = self.model.resolution // FACTOR
        return self.in_turn(range(count)) if self.real else torch.empty(0, self.model.image_channels, side, side)

    def in_turn(self, numbers: range) -> Tensor:
        """Of the images with these numbers."""
        return shrunk(super().in_turn(numbers))

    def large(self, numbers: range) -> Tensor:
        """The images themselves."""
        return super().in_turn(numbers)


@plain_dataclass
class UpscalingSampler:
    """Large images of small ones. The latent of a sample is the key of its noise, int64 [n]."""

    networks: Mapping[str, nn.Module]
    model: ModelConfig
    output: str = "image"
    conditions: Conditions = field(init=False)
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        self.conditions = self._pictures = SmallPictures(self.model)
        self.channels = self.model.image_channels

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Keys [count] on the CPU."""
        return torch.randint(2**62, (count,), generator=source)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """Images [n, C, 4h, 4w] of small ones [n, C, h, w]. The noise is drawn on the CPU, so it is the same everywhere."""
        network = self.networks[GENERATOR]
        size = conditions.shape[-2:]
        each = [network.noise(torch.Generator().manual_seed(key), *size) for key in latents.tolist()]  # type: ignore[operator]
        noise = [to_device(torch.cat(planes), conditions.device) for planes in zip(*each, strict=True)]
        return at_least_float32(network(conditions, noise))

    def remake(self, picture: Tensor, source: torch.Generator) -> Tensor:
        """A picture [C, h, w], enlarged."""
        return self.sample(self.draw(source, 1), picture[None])[0]

    def partners(self, numbers: range) -> Tensor:
        """What the samples should be like: the large images."""
        return self._pictures.large(numbers)

    def labels(self, numbers: range) -> Tensor:
        """The classes of the large images."""
        return self._pictures.field("class", numbers)

    def baselines(self, conditions: Tensor, side: int | None = None) -> dict[str, Tensor]:
        """The small images, enlarged without learning, in one step."""
        size = (side or conditions.shape[2] * FACTOR, side or conditions.shape[3] * FACTOR)
        return {mode: enlarged(conditions, size, mode) for mode in ("bilinear", "bicubic")}

    def strips(self, count: int) -> tuple[Tensor, list[str]]:
        """A row for each of the first images: enlarged without learning, by the generator twice, and the image itself."""
        numbers = range(count)
        device = next(self.networks[GENERATOR].parameters()).device
        small, large = self._pictures.in_turn(numbers).to(device), self._pictures.large(numbers).to(device)
        keys = self.draw(torch.Generator().manual_seed(0), 2 * count)
        columns = [*self.baselines(small).values(), *(self.sample(part, small) for part in keys.chunk(2)), large]
        return torch.stack(columns, 1), ["bilinear, bicubic, made twice, real"] * count
