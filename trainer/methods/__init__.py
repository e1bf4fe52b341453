"""The methods. To add one: a file with its settings and its class, and the settings' name in this union."""

from typing import Annotated

from trainer.foundation.choices import Choice
from trainer.methods.adversarial import ACGANConfig, AdversarialConfig
from trainer.methods.pggan import PGGANConfig

ObjectiveConfig = Annotated[AdversarialConfig | ACGANConfig | PGGANConfig, Choice(methods=("build", "check"))]
"""The section `objective`."""

__all__ = ["ObjectiveConfig"]
