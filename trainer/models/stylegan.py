"""The generator of "A Style-Based Generator Architecture" (Karras et al. 2019, arXiv 1812.04948) for any power of two.

z -> mapping network -> w; a synthesis network from a constant, whose every layer has noise and a style made of w. The
settings give every row of the paper's Table 1. All layers exist from the start; a stage (trainer/models/growing.py) says
which of them act. What the paper leaves open is as in the official code.

Layer 0 is the constant, layer 1 the convolution at 4 px, then two layers a level: 2 log2(R) - 2 in all. Shapes: B batch, C
channels, K classes, Z latent dimension, W width of w, N layers, r the stage's resolution.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.models.config import ModelConfig
from trainer.models.forms import Placed
from trainer.models.growing import (
    SMALLEST,
    EqualisedConvolution,
    EqualisedLinear,
    Reached,
    Stage,
    enlarged,
    faded,
    leaky_relu,
    levels,
    pixel_norm,
    placed_blocks,
)
from trainer.models.layers import SQRT2, at_least_float32, full_precision, upsample
from trainer.models.pggan import Widths


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class StyleGANGeneratorConfig(Widths):
    """Settings of the generator; the defaults are the official code's, configuration F of Table 1."""

    mapping_layers: Annotated[int, Field(ge=0)] = 8
    """Layers of the mapping network; 0: w is the normalised z (configurations A and B)."""
    mapping_width: Annotated[int, Field(ge=1)] = 512
    """Width of the mapping network, and length of w."""
    mapping_rate: Annotated[float, Field(gt=0)] = 0.01
    """Factor on the mapping network's learning rate."""
    latent_norm: Literal["joint", "separate"] = "joint"
    """The pixel norm of the input runs over z and the class's vector together, as in the official code; or over each of them
    alone, as in later ones."""
    styles: bool = True
    """Whether layers have a style made of w (configurations C to F)."""
    constant_input: bool = True
    """Whether the first layer is a constant (D to F); else it is made of w (A to C)."""
    noise: bool = True
    """Whether layers have noise (E and F)."""
    pixel_norm: bool = False
    """Whether layers end with a pixel norm (A and B)."""
    instance_norm: bool = True
    """Whether an instance norm precedes the style (C to F)."""
    blur: bool = True
    """Whether doublings and halvings are bilinear: the result is blurred by [1, 2, 1] (B to F)."""
    w_average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Weight of the old mean of w in every training pass."""
    truncation_layers: Annotated[int, Field(ge=1)] | None = 8
    """So many first layers are truncated, 8: up to 32 px; null: all."""

    def build(self, model: ModelConfig) -> "StyleGANGenerator":
        """The network, weights drawn from torch's default generator."""
        return StyleGANGenerator(self, model)


def layers_at(resolution: int) -> int:
    """Layers with a style in a network of this size: 2 log2(r) - 2."""
    return 2 * resolution.bit_length() - 4


def blur(x: Tensor) -> Tensor:
    """x [B, C, H, W] with [1, 2, 1] x [1, 2, 1] / 16, depthwise, zeros around it."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=channels)


class StyleGANGenerator(nn.Module):
    """Mapping network, synthesis network, the mean of w, and a linear RGB layer for every level."""

    draws = couples_samples = False

    def __init__(self, config: StyleGANGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.resolution, self.layers = model.resolution, layers_at(model.resolution)
        self.mapping = Mapping(config, model)
        width = self.mapping.width
        self.w_average = StyleAverage(width, config.w_average_decay)
        sides = levels(model.resolution)
        first = config.at(SMALLEST)
        self.constant = nn.Parameter(torch.ones(1, first, SMALLEST, SMALLEST)) if config.constant_input else None
        self.dense = None
        if not config.constant_input:
            self.dense = EqualisedLinear(width, first * SMALLEST**2, SQRT2 / 4, bias=False)
        self.first = Ending(config, first, SMALLEST, width)
        self.conv = EqualisedConvolution(first, first, 3, bias=False)
        self.second = Ending(config, first, SMALLEST, width)
        self.blocks = nn.ModuleDict({str(side): SynthesisBlock(config, side, width) for side in sides[1:]})
        self.to_rgb = nn.ModuleDict(
            {str(side): EqualisedConvolution(config.at(side), model.image_channels, 1, gain=1.0) for side in sides}
        )
        self.reached = Reached(SMALLEST)

    def forward(
        self,
        latents: Tensor,
        labels: Tensor,
        stage: Stage | None = None,
        mixed: Tensor | None = None,
        cutoff: Tensor | None = None,
    ) -> Tensor:
        """Images, at least float32, not bounded. In training noise is drawn for every layer and sample, and the mean of w
        follows; else noise is the stored one.

        Args:
            latents: [B, Z].
            labels: int64 [B], or float class weights [B, K].
            stage: images are [B, C, r, r]; None: of the full size, at the stage of the network's last training.
            mixed: [B, Z]: latents whose w takes over from layer `cutoff` on.
            cutoff: int64 [B].
        """
        w = self.mapping(latents, labels)
        self.w_average(w)
        styles = w[:, None].expand(-1, self.layers, -1)
        if mixed is not None and cutoff is not None:
            other = self.mapping(mixed, labels)[:, None]
            first = torch.arange(self.layers, device=w.device) < cutoff[:, None]
            styles = torch.where(first[..., None], styles, other)
        return self.synthesised(styles, stage)

    def synthesised(self, styles: Tensor, stage: Stage | None = None, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Images for the w of each layer, [B, N, W].

        noise: a map [B, 1, s, s] for each layer, in place of the stored and the drawn ones.
        """
        whole = stage is None
        stage = self.reached(stage)
        maps = [None] * self.layers if noise is None else list(noise)
        if self.constant is not None:
            h = self.constant.expand(len(styles), -1, -1, -1)
        else:
            assert self.dense is not None
            h = self.dense(styles[:, 0]).view(len(styles), -1, SMALLEST, SMALLEST)
        h = self.first(h, styles[:, 0], maps[0])
        h = self.second(self.conv(h), styles[:, 1], maps[1])
        below, side, layer = h, SMALLEST, 2
        while side < stage.resolution:
            side *= 2
            below, h = h, self.blocks[str(side)](h, styles[:, layer : layer + 2], maps[layer : layer + 2])
            layer += 2
        images = at_least_float32(self.to_rgb[str(side)](h))
        if stage.fade < 1.0:
            images = faded(upsample(at_least_float32(self.to_rgb[str(side // 2)](below))), images, stage.fade)
        return enlarged(images, self.resolution) if whole else images

    @property
    def endings(self) -> list["Ending"]:
        """What follows each layer's convolution, from layer 0 on."""
        found = [self.first, self.second]
        for block in self.blocks.values():
            found += [block.ending1, block.ending2]  # type: ignore[list-item]
        return found

    def placed_convolutions(self, resolution: int) -> list[Placed]:
        """The 3x3 convolutions, from first to last."""
        return [Placed("conv", self.conv, SMALLEST), *placed_blocks(self.blocks.items(), doubled=True)]


class Mapping(nn.Module):
    """latents [B, Z], labels -> w [B, W]: a class's vector next to z, pixel norm, dense layers (section 2)."""

    draws = couples_samples = False

    def __init__(self, config: StyleGANGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.joint = config.latent_norm == "joint"
        self.embedding = nn.Parameter(torch.randn(model.classes, model.latent_dim)) if model.classes else None
        inputs = model.latent_dim * (2 if model.classes else 1)
        self.width = config.mapping_width if config.mapping_layers else inputs
        widths = [inputs, *[config.mapping_width] * config.mapping_layers]
        self.layers = nn.ModuleList(
            EqualisedLinear(before, config.mapping_width, rate_multiplier=config.mapping_rate) for before in widths[:-1]
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """`labels` are int64 [B], or float class weights [B, K]."""
        if self.embedding is None:
            w = pixel_norm(latents)
        else:
            with full_precision(latents.device):
                weights = labels.is_floating_point()
                vectors = labels @ self.embedding if weights else F.embedding(labels, self.embedding)
            parts = [at_least_float32(latents), vectors]
            w = pixel_norm(torch.cat(parts, 1)) if self.joint else torch.cat([pixel_norm(part) for part in parts], 1)
        for layer in self.layers:
            w = leaky_relu(layer(w))
        return w


class StyleAverage(nn.Module):
    """The mean of w, for truncation: mean of the batch + decay (old - mean of the batch), in every training pass.

    As in the official code it follows the batches of replica 0 alone, those of the discriminator's turn, too.
    """

    draws = couples_samples = False
    moves_state = True
    value: Tensor

    def __init__(self, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(width))
        self.update_statistics = True

    def begin_passes(self) -> None:
        """Nothing: what matters is which replica it is."""

    def start_replica(self, number: int) -> None:
        """The mean follows replica 0 alone."""
        self.update_statistics = number == 0

    def end_passes(self) -> None:
        """Every pass is followed again."""
        self.update_statistics = True

    @torch.no_grad()
    def forward(self, w: Tensor) -> Tensor:
        """Follow w [B, W] of a training pass; the mean [W]."""
        if self.training and self.update_statistics:
            mean = w.mean(0).to(self.value.dtype)
            self.value.copy_(mean + self.decay * (self.value - mean))
        return self.value


class Ending(nn.Module):
    """What follows a layer's convolution, in this order: noise, bias, leaky ReLU, norms, style. x [B, C, s, s]."""

    couples_samples = moves_state = False
    stored: Tensor

    def __init__(self, config: StyleGANGeneratorConfig, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.pixel_norm, self.instance_norm = config.pixel_norm, config.instance_norm
        self.noise = nn.Parameter(torch.zeros(channels)) if config.noise else None
        if config.noise:
            self.register_buffer("stored", torch.randn(1, 1, side, side))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = EqualisedLinear(width, 2 * channels, gain=1.0) if config.styles else None

    @property
    def draws(self) -> bool:
        """The noise is drawn in a training pass."""
        return self.noise is not None

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Args: w [B, W]; noise [B, 1, s, s], in place of the drawn or the stored one."""
        with full_precision(x.device):
            x = at_least_float32(x)
            if self.noise is not None:
                if noise is None:
                    noise = self._drawn(x) if self.training else self.stored
                x = x + noise.to(x.dtype) * self.noise[:, None, None]
            x = leaky_relu(x + self.bias[:, None, None])
            if self.pixel_norm:
                x = pixel_norm(x)
            if self.instance_norm:
                x = F.instance_norm(x, eps=1e-8)
            if self.style is not None:
                scale, offset = self.style(w).view(len(x), 2, -1, 1, 1).unbind(1)
                x = x * (scale + 1.0) + offset
            return x

    @staticmethod
    def _drawn(x: Tensor) -> Tensor:
        return torch.randn((len(x), 1, *x.shape[2:]), dtype=x.dtype, device=x.device)


class SynthesisBlock(nn.Module):
    """x [B, I, s/2, s/2] -> [B, O, s, s]: two layers."""

    draws = couples_samples = False

    def __init__(self, config: StyleGANGeneratorConfig, side: int, width: int) -> None:
        super().__init__()
        inputs, outputs = config.at(side // 2), config.at(side)
        self.blur = config.blur
        self.conv1 = EqualisedConvolution(inputs, outputs, 3, bias=False, doubles=True)
        self.ending1 = Ending(config, outputs, side, width)
        self.conv2 = EqualisedConvolution(outputs, outputs, 3, bias=False)
        self.ending2 = Ending(config, outputs, side, width)

    def forward(self, x: Tensor, styles: Tensor, noise: Sequence[Tensor | None]) -> Tensor:
        """Args: styles [B, 2, W]; noise: two maps [B, 1, s, s], or None."""
        h = self.conv1(x)
        h = self.ending1(blur(h) if self.blur else h, styles[:, 0], noise[0])
        images: Tensor = self.ending2(self.conv2(h), styles[:, 1], noise[1])
        return images
