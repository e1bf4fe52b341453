"""Pictures that go with the measures: from one latent vector to another, and from one class to the next."""

import torch
from PIL import Image
from torch import Tensor

from trainer.foundation import keys
from trainer.foundation.pictures import draw_grid
from trainer.foundation.pixels import to_uint8
from trainer.methods.paths import between
from trainer.methods.protocol import Sampler
from trainer.methods.sampling import Mixing
from trainer.metrics.protocol import Measure
from trainer.trained.sampling import samples_of

ROWS, STEPS = 10, 9


def interpolation_strips(sampler: Sampler, seed: int) -> Image.Image | None:
    """A row per condition: images on the way between two latent vectors.

    None for a sampler without latent vectors, or without conditions to choose from.
    """
    chosen = sampler.conditions.evenly(ROWS)
    ends = sampler.draw(keys.generator(seed, "interpolation"), 2 * len(chosen))
    ends = ends.view(len(chosen), 2, *ends.shape[1:])
    latents = between(sampler, ends[:, 0], ends[:, 1], torch.linspace(0, 1, STEPS))
    if latents is None:
        return None
    names = [sampler.conditions.caption(condition) for condition in chosen]
    return _strips(sampler, latents.flatten(0, 1), chosen.repeat_interleave(STEPS, 0), names)


def morph_strips(sampler: Sampler, seed: int) -> Image.Image | None:
    """A row per condition: one latent vector, from the condition to the next one (category morphing of the projection
    paper).

    None for a sampler with fewer than two conditions, or whose conditions have no mixtures.
    """
    conditions = sampler.conditions
    chosen = conditions.evenly(ROWS)
    if len(chosen) < 2 or not isinstance(conditions, Mixing):
        return None
    share = torch.linspace(0, 1, STEPS)
    following = chosen.roll(-1, 0)
    mixed = torch.cat([conditions.mix(a, b, share) for a, b in zip(chosen, following, strict=True)])
    latents = sampler.draw(keys.generator(seed, "morph"), len(chosen)).repeat_interleave(STEPS, 0)
    names = [f"{conditions.caption(a)} -> {conditions.caption(b)}" for a, b in zip(chosen, following, strict=True)]
    return _strips(sampler, latents, mixed, names)


def _strips(sampler: Sampler, latents: Tensor, conditions: Tensor, names: list[str]) -> Image.Image:
    images = to_uint8(samples_of(sampler, latents, conditions))
    return draw_grid(images.view(len(names), -1, *images.shape[1:]), names)


class Strips(Measure):
    """Pictures alone."""

    name, meaning = "strips", "pictures: latent interpolations and class morphs"

    def pictures(self) -> dict[str, Image.Image]:
        sampler, seed = self.setting.samples.sampler, self.setting.plan.seed
        made = {"interpolation": interpolation_strips(sampler, seed), "morph": morph_strips(sampler, seed)}
        return {name: picture for name, picture in made.items() if picture is not None}
