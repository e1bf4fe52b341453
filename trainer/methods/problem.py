"""What a method is built for: the settings that are not the method's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.foundation.errors import SettingError
from trainer.methods.protocol import Method, Shards
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.terms.term import Term
from trainer.models import DiscriminatorConfig, GeneratorConfig, ModelConfig


@dataclass(frozen=True)
class Problem:
    """The experiment's settings that a method may look at."""

    model: ModelConfig
    batch: BatchConfig
    schedule: ScheduleConfig
    generator: GeneratorConfig | None = None
    discriminator: DiscriminatorConfig | None = None
    terms: Sequence[Term] = ()
    """Loss terms from outside the method, for example the fine-tuning stage's classifier."""


class MethodConfig(Protocol):
    """The settings of a method: the section `objective`, told apart by `name`."""

    @property
    def name(self) -> str: ...

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the method does not fit the problem."""
        ...

    def build(self, problem: Problem) -> Method:
        """The method. Raises `SettingError`."""
        ...


def check_images(model: ModelConfig, shards: Shards) -> None:
    """Raise `SettingError` unless networks of `model` are made for the images and classes of these shards."""
    where, manifest = f"the shards in {shards.url} hold", shards.manifest
    for setting, asked, found in (
        ("model.resolution", model.resolution, manifest.resolution),
        ("model.image_channels", model.image_channels, manifest.channels),
    ):
        if asked != found:
            raise SettingError(f"{setting}: is {asked}, but {where} images with {found}; set it to {found}")
    classes = len(manifest.classes)
    if model.classes not in (0, classes):
        raise SettingError(
            f"model.classes: is {model.classes}, but {where} {classes} classes; set it to {classes}, or to 0 for no "
            "condition"
        )


def differentiates_twice(config: MethodConfig) -> bool:
    """Whether a loss has second derivatives, which compiled code, ZeRO and norms over several processes do not support.

    The settings say so with the attribute `second_derivatives`. Those that do not say it are taken for the worst.
    """
    return bool(getattr(config, "second_derivatives", True))


def resets_optimizers(config: MethodConfig) -> bool:
    """Whether turns of the method let an optimizer forget, which ZeRO cannot. The settings say so with the attribute
    `resets_optimizers`; left out: they do not."""
    return bool(getattr(config, "resets_optimizers", False))
