"""What the settings of all networks share: the problem they are built for, and what they say of the network."""

from typing import Annotated, Protocol

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation import keys


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ModelConfig:
    """The problem that both networks are built for."""

    resolution: Annotated[int, Field(ge=4)] = 128
    """Height and width of the images, pixels."""
    image_channels: Annotated[int, Field(ge=1)] = 3
    """Channels of the images: 3 for colour, 1 for grey."""
    classes: Annotated[int, Field(ge=0)] = 1000
    """Number of classes; 0 makes both networks unconditional."""
    latent_dim: Annotated[int, Field(ge=1)] = 128
    """Length of the latent vector z."""
    latent_distribution: keys.LatentDistribution = "normal"
    """z ~ N(0, 1), U(-1, 1) (`uniform`) or U(0, 1) (`unit_uniform`). The official code's default is normal."""

    def latents(self, source: torch.Generator, count: int) -> Tensor:
        """Latents [count, latent_dim] from a keyed generator on the CPU."""
        return keys.draw_latents(source, count, self.latent_dim, self.latent_distribution)


class NetworkConfig(Protocol):
    """The settings of a network. They build what they name.

    A discriminator's settings also say `classifies` and `couples_samples` (below), as attributes or properties. Settings of a
    network that is not called as trainer/models/__init__.py has it say how: `signature`.
    """

    def build(self, model: ModelConfig) -> nn.Module:
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible one."""
        ...


def classifies(config: object) -> bool:
    """Whether the discriminator has class logits where there are classes. Settings that do not say it: it has none."""
    return bool(getattr(config, "classifies", False))


def couples_samples(config: object) -> bool:
    """Whether what the discriminator says of a sample depends on the others of its pass. Settings that do not say it: it
    does, so real and generated samples are kept in separate passes."""
    return bool(getattr(config, "couples_samples", True))


BY_CLASS = "class"
"""The signature of most networks: G(latents, labels), D(images, labels)."""


def check_signature(section: str, config: object, wanted: str, objective: str) -> None:
    """Raise ValueError unless the network of the section (`generator`, `discriminator`) is called as the objective calls it.

    A signature is a word that a method and the networks that fit it agree on. Settings that say none are `BY_CLASS`.
    """
    if config is None:
        raise ValueError(f"{section}: is missing (not set); give it a value")
    found = getattr(config, "signature", BY_CLASS)
    if found != wanted:
        name = getattr(config, "name", type(config).__name__)
        raise ValueError(
            f"{section}.name: {name} takes {_TAKEN.get(found, found)}, but objective.name {objective} gives its {section} "
            f"{_TAKEN.get(wanted, wanted)}; choose another {section}, or another objective"
        )


_TAKEN = {BY_CLASS: "a class", "image": "images alone", "small image": "small images"}
