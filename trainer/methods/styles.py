"""How a generator with styles is sampled: truncation, style mixing, and ways in z and in w (Karras et al. 2019).

Shapes: n samples, Z latent dimension, W width of w, N layers. A latent row is [Z + 1]: z, and the number of its noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from trainer.foundation import keys
from trainer.foundation.errors import SettingError
from trainer.methods.protocol import Conditions
from trainer.methods.sheets import Sheet
from trainer.models.config import ModelConfig
from trainer.models.growing import Stage
from trainer.models.stylegan import StyleGANGenerator, layers_at

NOISES = 2**24
"""Numbers of noises: whole numbers below it are exact in float32."""
PSIS = (1.0, 0.7, 0.5, 0.25, 0.0, -0.5, -1.0)
"""Columns of the truncation sheet; 0 is the mean image."""
GROUPS = {"coarse, 4 to 8 px": range(4), "middle, 16 to 32 px": range(4, 8), "fine, from 64 px": range(8, 64)}
"""Layers whose styles a row of the mixing sheet takes from its column (the paper's figure 3)."""


@dataclass
class StyledSampler:
    """Samples of styles: latents are [n, N, W], the w of each layer. The noise is the stored one."""

    networks: Mapping[str, nn.Module]
    """One network, called `generator`."""
    conditions: Conditions
    output: str = "image"

    @property
    def network(self) -> StyleGANGenerator:
        return cast(StyleGANGenerator, self.networks["generator"])

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Nothing: styles are made of something. Raises `SettingError`."""
        raise SettingError("--sheet: its styles are not drawn; draw latents with the generator's own sampler")

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """Images [n, C, H, W], at least float32; conditions are in the styles already."""
        return self.network.synthesised(latents)


@dataclass
class StyleSampler:
    """Samples of z by way of w. Every sample has noise of its own, as in the official code's measures."""

    networks: Mapping[str, nn.Module]
    """One network, called `generator`."""
    model: ModelConfig
    conditions: Conditions
    truncation_layers: int | None
    """So many first layers are truncated; None: all."""
    psi: float = 1.0
    output: str = "image"
    spaces: Sequence[str] = ("z", "w")
    sheets: Mapping[str, str] = field(
        default_factory=lambda: {
            "truncation": f"a row per sample, truncated by psi = {', '.join(f'{psi:g}' for psi in PSIS)}",
            "mixing": "the first row's styles in the first column's images, group of layers by group",
            "mean": "the image of the mean w",
            "lerp": "straight ways in w, from each sample to the next",
            "slerp": "ways over the sphere in z, from each sample to the next",
        }
    )

    @property
    def network(self) -> StyleGANGenerator:
        return cast(StyleGANGenerator, self.networks["generator"])

    @property
    def grown(self) -> dict[str, float]:
        """The stage of the network's last training."""
        stage: Stage = self.network.reached(None)
        return stage.form

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Latents [count, Z + 1] on the CPU. One at a time, the first n of more are the same."""
        z = self.model.latents(source, count)
        return torch.cat([z, torch.randint(NOISES, (count, 1), generator=source).float()], 1)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """Images of z with the noise of its number, at least float32."""
        styles = self.styles(latents[:, :-1], conditions)
        return self.network.synthesised(styles, noise=self.noise(latents[:, -1]))

    def truncated(self, bound: float) -> "StyleSampler":
        """w_mean + psi (w - w_mean) in place of w (section B), psi = `bound`, 0 and below included."""
        return replace(self, psi=bound)

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Over the sphere in z, with the noise of `first`."""
        z = slerp(first[:, None, :-1], last[:, None, :-1], shares[:, None])
        return torch.cat([z, first[:, None, -1:].expand(-1, len(shares), -1)], 2)

    def on_path(self, space: str, latents: Tensor, conditions: Tensor, shares: Tensor) -> Tensor:
        """Over the sphere in z, straight in w, never truncated; all have the noise of the first latent."""
        first, last, share = latents[:, 0, :-1], latents[:, 1, :-1], shares[:, None]
        if space == "z":
            w = self.mapped(slerp(first, last, share), conditions)
        else:
            w = torch.lerp(self.mapped(first, conditions), self.mapped(last, conditions), share)
        noise = self.noise(latents[:1, 0, -1])
        expanded = None if noise is None else [part.expand(len(w), -1, -1, -1) for part in noise]
        return self.network.synthesised(self.spread(w, 1.0), noise=expanded)

    def mapped(self, z: Tensor, conditions: Tensor) -> Tensor:
        """z [n, Z] -> w [n, W]."""
        w: Tensor = self.network.mapping(z, conditions)
        return w

    def styles(self, z: Tensor, conditions: Tensor) -> Tensor:
        """z [n, Z] -> the w of each layer [n, N, W], truncated."""
        return self.spread(self.mapped(z, conditions), self.psi)

    def spread(self, w: Tensor, psi: float) -> Tensor:
        """w [n, W] -> [n, N, W], truncated by psi in the first layers."""
        mean, layers = self.network.w_average.value, self.network.layers
        bound = torch.lerp(mean, w, psi) if psi != 1.0 else w
        first = layers if self.truncation_layers is None else min(self.truncation_layers, layers)
        return torch.cat([bound[:, None].expand(-1, first, -1), w[:, None].expand(-1, layers - first, -1)], 1)

    def noise(self, numbers: Tensor) -> list[Tensor] | None:
        """A map [n, 1, s, s] for each layer that acts, drawn on the CPU by each sample's number [n]; None: no noise."""
        network = self.network
        if network.first.noise is None:
            return None
        sides = [2 ** (2 + layer // 2) for layer in range(layers_at(network.reached(None).resolution))]
        rows = []
        for number in numbers.tolist():
            source = keys.generator(0, "noise of a sample", int(number))
            rows.append(torch.randn(sum(side * side for side in sides), generator=source))
        maps = torch.split(torch.stack(rows).to(numbers.device), [side * side for side in sides], 1)
        drawn = [part.view(-1, 1, side, side) for part, side in zip(maps, sides, strict=True)]
        return drawn + [drawn[-1]] * (network.layers - len(drawn))  # of layers that do not act

    @torch.no_grad()
    def sheet(self, name: str, latents: Tensor, conditions: Tensor, steps: int) -> Sheet:
        """One of `sheets`. Raises `SettingError` for too few latents."""
        n = len(conditions)
        if name != "mean" and name != "truncation" and latents.shape[1] < 2:
            raise SettingError(f"--count: is 1, and the sheet {name} needs two samples of each class; give more")
        z = latents[..., :-1].flatten(0, 1)
        every = conditions.repeat_interleave(latents.shape[1], 0)
        w = self.mapped(z, every).view(n, latents.shape[1], -1)
        names = [self.conditions.caption(condition) for condition in conditions]
        if name == "mean":
            mean = self.network.w_average.value
            return self._sheet([""], ["mean of w"], self.spread(mean[None], 1.0), conditions[:1])
        if name == "truncation":
            cells = torch.stack([self.spread(w.flatten(0, 1), psi) for psi in PSIS], 1)
            rows = [caption for caption in names for _ in range(latents.shape[1])]
            return self._sheet(rows, [f"psi {psi:g}" for psi in PSIS], cells.flatten(0, 1), every)
        if name == "mixing":
            return self._mixing(w, names, conditions)
        shares = torch.linspace(0, 1, steps, device=w.device)
        if name == "lerp":
            ways = torch.lerp(w[:, :-1, None], w[:, 1:, None], shares[:, None])
        else:
            z = latents[..., :-1]
            on_way = slerp(z[:, :-1, None], z[:, 1:, None], shares[:, None])
            labels = conditions.repeat_interleave(on_way[0].shape[0] * steps, 0)
            ways = self.mapped(on_way.flatten(0, 2), labels)
        rows = [caption for caption in names for _ in range(latents.shape[1] - 1)]
        cells = self.spread(ways.reshape(-1, w.shape[-1]), self.psi)
        return self._sheet(rows, [f"{share:.3g}" for share in shares.tolist()], cells, conditions[:1])

    def _mixing(self, w: Tensor, names: Sequence[str], conditions: Tensor) -> Sheet:
        """Columns: the first sample of each condition, or with one condition its samples of even number. Rows: the second
        of each, or those of odd number, once for each group of layers. The corner is the mean image."""
        alone = len(conditions) == 1
        sources, targets = (w[0, ::2], w[0, 1::2]) if alone else (w[:, 0], w[:, 1])
        mean, layers = self.network.w_average.value, self.network.layers
        groups = {group: within for group, within in GROUPS.items() if within.start < layers}
        rows, cells = ["styles of"], [torch.cat([self.spread(mean[None], 1.0), self.spread(sources, self.psi)])]
        for group, within in groups.items():
            taken = torch.tensor([layer in within for layer in range(layers)], device=w.device)[:, None]
            for row, target in enumerate(self.spread(targets, self.psi)):
                mixed = torch.where(taken, self.spread(sources, self.psi), target)
                cells.append(torch.cat([target[None], mixed]))
                rows.append(f"{group}{'' if alone else f' of {names[row]}'}")
        columns = ["image", *(f"source {number}" for number in range(len(sources)))] if alone else ["image", *names]
        return self._sheet(rows, columns, torch.cat(cells), conditions[:1])

    def _sheet(self, rows: Sequence[str], columns: Sequence[str], cells: Tensor, conditions: Tensor) -> Sheet:
        """Cells are styles [rows * columns, N, W]."""
        unused = conditions[:1].expand(len(cells), *conditions.shape[1:])
        return Sheet(rows, columns, StyledSampler(self.networks, self.conditions), cells, unused)


def slerp(first: Tensor, last: Tensor, share: Tensor) -> Tensor:
    """From one vector [..., Z] to another: the direction over the unit sphere (White 2016), the length straight."""
    lengths = [torch.linalg.vector_norm(z, dim=-1, keepdim=True) for z in (first, last)]
    a, b = first / lengths[0], last / lengths[1]
    cosine = (a * b).sum(-1, keepdim=True).clamp(-1, 1)
    aside = b - a * cosine
    aside = aside / torch.linalg.vector_norm(aside, dim=-1, keepdim=True).clamp(min=1e-12)
    angle = share * torch.acos(cosine)
    length = torch.lerp(lengths[0], lengths[1], share.to(first.dtype))
    found: Tensor = length * (a * torch.cos(angle) + aside * torch.sin(angle))
    return found
