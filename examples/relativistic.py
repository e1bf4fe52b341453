"""A method that lies outside the trainer: the relativistic pairing game (Jolicoeur-Martineau 2018; Huang et al. 2024, R3GAN).

Each generated image is compared with a real one, so the generator's turn reads real images too. The settings name it:

    python trainer/main.py configs/fashion32_projection.yaml --run.dir runs/relativistic \\
        --objective.name examples.relativistic:RelativisticConfig
"""

from collections.abc import Mapping
from dataclasses import replace

import torch.nn.functional as F
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from trainer.foundation.keys import Keys
from trainer.methods.adversarial import AdversarialConfig, AdversarialMethod
from trainer.methods.problem import Problem
from trainer.methods.protocol import Networks, Tensors, Turn
from trainer.methods.terms.term import Seen


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class RelativisticConfig(AdversarialConfig):
    """Settings of the game. `loss` is not looked at; penalties work as they do elsewhere."""

    def build(self, problem: Problem) -> "RelativisticMethod":
        """The config builds what it names."""
        return RelativisticMethod(self, problem, ())


class RelativisticMethod(AdversarialMethod):
    """D minimises E softplus(-(D(x) - D(G(z)))), G the same with x and G(z) exchanged, over pairs of one class."""

    def turns(self, iteration: int) -> list[Turn]:
        """Every turn reads as many real samples as it generates: they are pairs."""
        return [replace(turn, reads={"data": turn.made}) for turn in super().turns(iteration)]

    def draw(self, turn: Turn, keys_of: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """The labels to generate are those of the real images."""
        images, labels = real["data"]["image"], real["data"]["class"]
        latents = self.problem.model.latents(keys_of.generator("latents"), turn.made)
        return {"latents": latents, "labels": labels, "real_images": images, "real_labels": labels}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The mover wants its own side of each pair to look the more real one."""
        D, labels = networks["discriminator"], draw["labels"]
        of_discriminator = turn.player == "discriminator"
        fake_images = draw["fake_images"] if of_discriminator else networks["generator"](draw["latents"], labels)
        real_images = draw["real_images"].detach().requires_grad_(self.image_gradients(turn))
        real, fake = D(real_images, labels), D(fake_images, labels)
        advantage = real.logits - fake.logits if of_discriminator else fake.logits - real.logits
        seen = Seen(D, fake_images, labels, fake, real_images, labels, real)
        return self.with_terms(turn, seen, F.softplus(-advantage).mean()), memory
