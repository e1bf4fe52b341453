"""Pictures that go with the measures: interpolations, morphs, neighbours."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainer.foundation import keys
from trainer.foundation.pictures import draw_grid
from trainer.foundation.pixels import to_uint8
from trainer.metrics.samples import CHUNK
from trainer.trained.pretrained import Generator

ROWS, STEPS = 10, 9


def chosen_classes(classes: int) -> list[int]:
    """Up to ten, evenly spread."""
    rows = min(ROWS, max(classes, 1))
    return [row * max(classes, 1) // rows for row in range(rows)]


def interpolation_strips(generator: Generator, seed: int) -> Image.Image:
    """A row per class: images along the straight line between two latent vectors."""
    chosen = chosen_classes(generator.model.classes)
    ends = _latents(generator, seed, "interpolation", 2 * len(chosen)).view(len(chosen), 2, -1)
    share = torch.linspace(0, 1, STEPS)[None, :, None]
    latents = (1 - share) * ends[:, :1] + share * ends[:, 1:]
    labels = torch.tensor(chosen).repeat_interleave(STEPS)
    return _strips(generator, latents.flatten(0, 1), labels, [generator.name_of(k) for k in chosen])


def morph_strips(generator: Generator, seed: int) -> Image.Image | None:
    """A row per class: one latent vector, from the class to the next one (category morphing of the projection paper).

    None for a generator without classes, or one that takes no mixture of classes.
    """
    classes = generator.model.classes
    chosen = chosen_classes(classes)
    if classes < 2:
        return None
    share = torch.linspace(0, 1, STEPS)[None, :, None]
    first = F.one_hot(torch.tensor(chosen), classes).float()[:, None]
    weights = ((1 - share) * first + share * first.roll(-1, 0)).flatten(0, 1)
    latents = _latents(generator, seed, "morph", len(chosen)).repeat_interleave(STEPS, 0)
    names = [generator.name_of(k) for k in chosen]
    return _strips(
        generator, latents, weights, [f"{a} -> {b}" for a, b in zip(names, names[1:] + names[:1], strict=True)]
    )


def neighbour_rows(generated: Tensor, sides: Sequence[Sequence[Sequence[Tensor]]], names: Sequence[str]) -> Image.Image:
    """A row per generated uint8 image [c, h, w]: itself, a gap, its nearest training images by each of the `sides`."""
    rows = []
    for number, image in enumerate(generated):
        gap = torch.full_like(image, 255)
        rows.append(torch.stack([image, *(tile for side in sides for tile in (gap, *side[number]))]))
    return draw_grid(torch.stack(rows), names)


def _latents(generator: Generator, seed: int, purpose: str, count: int) -> Tensor:
    model = generator.model
    return keys.draw_latents(keys.generator(seed, purpose), count, model.latent_dim, model.latent_distribution)


def _strips(generator: Generator, latents: Tensor, labels: Tensor, names: Sequence[str]) -> Image.Image:
    images = to_uint8(generator.images(latents.to(generator.device), labels.to(generator.device), CHUNK))
    return draw_grid(images.view(len(names), -1, *images.shape[1:]), names)
