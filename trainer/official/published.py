"""The published generators of progressive growing and of StyleGAN, from their official names and layouts to ours.

Convolutions are [height, width, in, out] there, dense layers [in, out]. Doublings that the official code fuses with their
convolution (StyleGAN: from 128 px) have a kernel that is flipped in both axes here. Progressive growing's fused layers have
[height, width, out, in] as well.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.methods.growth import GrowthConfig
from trainer.methods.pggan import PGGANConfig
from trainer.methods.stylegan import StyleGANConfig
from trainer.models.config import ModelConfig
from trainer.models.growing import levels
from trainer.models.pggan import PGGANGeneratorConfig, Widths
from trainer.models.stylegan import StyleGANGeneratorConfig, layers_at
from trainer.official.pickled import Array, Pickled, PickledNetwork, PickleError

LICENCE = "CC BY-NC 4.0, as the authors published it"
FUSED_FROM = 128
"""Pixels from which StyleGAN's `fused_scale: auto` fuses."""


@dataclass(frozen=True)
class Published:
    """A generator: the settings that build it, and its state by our names."""

    objective: PGGANConfig | StyleGANConfig
    model: ModelConfig
    state: dict[str, Tensor]


def published_generator(path: str, pickled: Pickled) -> Published:
    """The generator whose weights are averaged (the last network). Raises `PickleError`, naming the array, where it does
    not fit."""
    network = pickled.networks[-1]
    styled = "4x4/Const/const" in network.arrays or "dlatent_avg" in network.arrays
    if not styled and "4x4/Dense/weight" not in network.arrays:
        raise PickleError(
            f"{path}: its last network, {network.name}, is no generator of progressive growing or StyleGAN; give the "
            "published file"
        )
    taker = _Taker(path, network)
    side = max(int(name.split("x")[0]) for name in network.arrays if name[0].isdigit())
    found = _stylegan(taker, side) if styled else _pggan(taker, side)
    taker.finish()
    return found


class _Taker:
    """Takes arrays by name, each once."""

    def __init__(self, path: str, network: PickledNetwork) -> None:
        self.path, self.left, self.arguments = path, dict(network.arrays), network.arguments

    def take(self, name: str) -> Array:
        if name not in self.left:
            raise PickleError(f"{self.path}: lacks {name}, which this generator needs; give the published file")
        return self.left.pop(name)

    def conv(self, name: str, *, turned: bool = False, flipped: bool = False) -> Tensor:
        """[h, w, in, out] -> [out, in, h, w]; `turned`: from [h, w, out, in]."""
        array = self.take(name)
        if array.ndim != 4:
            raise PickleError(f"{self.path}: {name} has shape {list(array.shape)} and is no convolution's")
        order = (2, 3, 0, 1) if turned else (3, 2, 0, 1)
        return _tensor(array.transpose(order)[..., ::-1, ::-1] if flipped else array.transpose(order))

    def dense(self, name: str) -> Tensor:
        return _tensor(self.take(name).T)

    def plain(self, name: str) -> Tensor:
        return _tensor(self.take(name))

    def finish(self) -> None:
        """Nothing may be left but the discriminator's and the training's own."""
        if self.left:
            name = sorted(self.left)[0]
            raise PickleError(f"{self.path}: holds {name}, which this generator does not have; give the published file")


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _rgb(taker: _Taker, side: int) -> Iterator[tuple[str, Tensor]]:
    """Of every level, counted there from the full resolution."""
    for lod, level in enumerate(reversed(levels(side))):
        yield f"to_rgb.{level}.weight", taker.conv(f"ToRGB_lod{lod}/weight")
        yield f"to_rgb.{level}.bias", taker.plain(f"ToRGB_lod{lod}/bias")


def _reached(taker: _Taker, side: int) -> dict[str, Tensor]:
    """The stage, from the levels of detail that were left out."""
    lod = float(taker.left.pop("lod", np.zeros(())))
    whole = int(lod)
    resolution, fade = side >> whole, 1.0 - (lod - whole)
    return {
        "reached.resolution": torch.tensor(resolution),
        "reached.fade": torch.tensor(fade, dtype=torch.float64),
    }


def _widths(path: str, channels: Mapping[int, int]) -> dict[str, Any]:
    """The settings that give these channels at these levels."""
    most, side = max(channels.values()), max(channels)
    for base in (channels[side] * side // 2, most * 2):
        found = Widths(fmap_base=max(base, 2), fmap_max=most)
        if all(found.at(level) == count for level, count in channels.items()):
            return {"fmap_base": max(base, 2), "fmap_max": most}
    raise PickleError(
        f"{path}: has {dict(channels)} channels by level, which no setting gives; give the published file"
    )


def _stylegan(taker: _Taker, side: int) -> Published:
    arrays = taker.left
    state = _reached(taker, side)
    channels = {level: arrays[f"ToRGB_lod{lod}/weight"].shape[2] for lod, level in _lods(taker, side)}
    layers = sum(name.startswith("Dense") and name.endswith("/weight") for name in arrays)
    if not layers or "4x4/Const/const" not in arrays or "4x4/Const/StyleMod/weight" not in arrays:
        raise PickleError(f"{taker.path}: is no configuration D to F of StyleGAN; give a published file")
    noise = "4x4/Const/Noise/weight" in arrays
    mapping_width = arrays["Dense0/bias"].shape[0]
    classes = len(arrays["LabelConcat/weight"]) if "LabelConcat/weight" in arrays else 0
    latent_dim = arrays["Dense0/weight"].shape[0] // (2 if classes else 1)
    if classes:
        state["mapping.embedding"] = taker.plain("LabelConcat/weight")
    for number in range(layers):
        state[f"mapping.layers.{number}.weight"] = taker.dense(f"Dense{number}/weight")
        state[f"mapping.layers.{number}.bias"] = taker.plain(f"Dense{number}/bias")
    state["w_average.value"] = taker.plain("dlatent_avg")
    state["constant"] = taker.plain("4x4/Const/const")
    state["conv.weight"] = taker.conv("4x4/Conv/weight")
    fused = taker.arguments.get("fused_scale", "auto")
    endings = [("4x4/Const", "first"), ("4x4/Conv", "second")]
    for level in levels(side)[1:]:
        flipped = fused is True or (fused == "auto" and level >= FUSED_FROM)
        block = f"blocks.{level}"
        state[f"{block}.conv1.weight"] = taker.conv(f"{level}x{level}/Conv0_up/weight", flipped=flipped)
        state[f"{block}.conv2.weight"] = taker.conv(f"{level}x{level}/Conv1/weight")
        endings += [(f"{level}x{level}/Conv0_up", f"{block}.ending1"), (f"{level}x{level}/Conv1", f"{block}.ending2")]
    for number, (theirs, ours) in enumerate(endings):
        state[f"{ours}.bias"] = taker.plain(f"{theirs}/bias")
        state[f"{ours}.style.weight"] = taker.dense(f"{theirs}/StyleMod/weight")
        state[f"{ours}.style.bias"] = taker.plain(f"{theirs}/StyleMod/bias")
        if noise:
            state[f"{ours}.noise"] = taker.plain(f"{theirs}/Noise/weight")
            state[f"{ours}.stored"] = taker.plain(f"noise{number}")
    for number in range(0 if noise else layers_at(side)):
        taker.left.pop(f"noise{number}", None)  # it has no effect
    state |= dict(_rgb(taker, side))
    generator = StyleGANGeneratorConfig(
        **_widths(taker.path, channels), mapping_layers=layers, mapping_width=mapping_width, noise=noise
    )
    objective = StyleGANConfig(growth=GrowthConfig(first_resolution=min(8, side)), generator=generator)
    return Published(objective, _model(side, state, classes, latent_dim), state)


def _lods(taker: _Taker, side: int) -> list[tuple[int, int]]:
    """(level of detail, pixels) of every level. Raises `PickleError` where one has no RGB layer."""
    found = list(enumerate(reversed(levels(side))))
    for lod, _ in found:
        if f"ToRGB_lod{lod}/weight" not in taker.left:
            raise PickleError(f"{taker.path}: lacks ToRGB_lod{lod}/weight, which this generator needs")
    return found


def _pggan(taker: _Taker, side: int) -> Published:
    state = _reached(taker, side)
    channels = {level: taker.left[f"ToRGB_lod{lod}/weight"].shape[2] for lod, level in _lods(taker, side)}
    state["dense.weight"] = taker.dense("4x4/Dense/weight")
    state["dense_bias"] = taker.plain("4x4/Dense/bias")
    for theirs, ours in (("weight", "first.weight"), ("bias", "first.bias")):
        state[ours] = taker.conv(f"4x4/Conv/{theirs}") if theirs == "weight" else taker.plain(f"4x4/Conv/{theirs}")
    for level in levels(side)[1:]:
        block, fused = f"blocks.{level}", f"{level}x{level}/Conv0_up/weight" in taker.left
        first = f"{level}x{level}/{'Conv0_up' if fused else 'Conv0'}"
        state[f"{block}.conv1.weight"] = taker.conv(f"{first}/weight", turned=fused, flipped=fused)
        state[f"{block}.conv1.bias"] = taker.plain(f"{first}/bias")
        state[f"{block}.conv2.weight"] = taker.conv(f"{level}x{level}/Conv1/weight")
        state[f"{block}.conv2.bias"] = taker.plain(f"{level}x{level}/Conv1/bias")
    state |= dict(_rgb(taker, side))
    labels = int(taker.arguments.get("label_size") or 0)
    objective = PGGANConfig(generator=PGGANGeneratorConfig(**_widths(taker.path, channels)))
    return Published(objective, _model(side, state, labels, state["dense.weight"].shape[1] - labels), state)


def _model(side: int, state: Mapping[str, Tensor], classes: int, latent_dim: int) -> ModelConfig:
    return ModelConfig(
        resolution=side, image_channels=len(state[f"to_rgb.{side}.bias"]), classes=classes, latent_dim=latent_dim
    )
