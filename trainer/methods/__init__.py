"""The methods. To add one: a file with its settings and its class, and the settings' name in this union."""

from typing import Annotated

from trainer.foundation.choices import Choice
from trainer.methods.adversarial import ACGANConfig, AdversarialConfig
from trainer.methods.cyclegan import CycleGANConfig
from trainer.methods.pggan import PGGANConfig
from trainer.methods.sgan import SGANConfig
from trainer.methods.stylegan import StyleGANConfig
from trainer.methods.superresolution import SuperResolutionConfig
from trainer.methods.tagging import TaggingConfig

ObjectiveConfig = Annotated[
    AdversarialConfig
    | ACGANConfig
    | CycleGANConfig
    | PGGANConfig
    | SGANConfig
    | StyleGANConfig
    | SuperResolutionConfig
    | TaggingConfig,
    Choice(methods=("build", "check")),
]
"""The section `objective`."""

__all__ = ["ObjectiveConfig"]
