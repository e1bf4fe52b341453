"""What a method is built for: the settings that are not the method's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.methods.protocol import Method
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

    @property
    def second_derivatives(self) -> bool:
        """Whether a loss differentiates twice, which norms over several processes do not support."""
        ...

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the method does not fit the problem."""
        ...

    def build(self, problem: Problem) -> Method:
        """The method. Raises `SettingError`."""
        ...
