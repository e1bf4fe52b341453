"""Path length (Karras et al. 2019, section 4.1): how much images change along a short piece of a way between two latents.

With LPIPS it is the paper's perceptual path length. With a classifier's features it has another name, since the numbers
cannot be compared.
"""

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.foundation import keys
from trainer.foundation.errors import SettingError
from trainer.methods.paths import on_path, spaces_of
from trainer.metrics.protocol import Measure, Needs, Setting
from trainer.metrics.records import Measurement
from trainer.metrics.samples import in_order
from trainer.trained.sampling import CHUNK, chunks_of, evaluating

EPSILON = 1e-4
"""Length of the piece, as a share of the way."""
LARGEST = 256
"""Larger images are reduced to this side."""


@runtime_checkable
class Distance(Protocol):
    """A network that says how far apart images are."""

    name: str
    """In the names of measurements."""
    crops_faces: bool
    """Whether images are cut to where a face is, as the official measure does for all of them."""

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """[n], at least float32, of images [n, c, h, w] in [-1, 1]."""
        ...


def seen_part(images: Tensor, crops_faces: bool) -> Tensor:
    """What is compared: rows 3/8 to 7/8 and columns 2/8 to 6/8 (or all), then means of squares down to 256 px."""
    if crops_faces:
        part = images.shape[-1] // 8
        images = images[:, :, 3 * part : 7 * part, 2 * part : 6 * part]
    factor = images.shape[-1] // LARGEST
    return F.avg_pool2d(images, factor) if factor > 1 else images


def trimmed_mean(lengths: Tensor) -> float:
    """The mean of [n] without what is below the 1st and above the 99th percentile."""
    values = lengths.double().numpy()
    low, high = np.percentile(values, 1, method="lower"), np.percentile(values, 99, method="higher")
    return float(values[(values >= low) & (values <= high)].mean())


class PathLength(Measure):
    """Of `samples` pairs of latents with the conditions in turn: `full` at a random place of the way, `end` at its start."""

    name, meaning = "ppl", "path length in z, and in w where there is one: perceptual with --features lpips:FILE"
    needs = Needs(network=True)
    titles: ClassVar[dict[str, str]] = {
        f"{of}_path_length_{space}_{kind}": f"{of} path length in {space}, {kind}"
        for of in ("perceptual", "feature")
        for space in ("w", "z")
        for kind in ("full", "end")
    }
    in_all = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        network: object = setting.network
        if not isinstance(network, Distance):
            raise SettingError(
                "--features: this network gives no distances of images between whole values, which ppl needs; give "
                "lpips:FILE or a classifier"
            )
        self._distance = network
        sampler = setting.samples.sampler
        self._spaces = [space for space in ("w", "z") if space in spaces_of(sampler)]
        self._lengths = torch.empty(0)

    def work(self) -> None:
        """The chunks of pairs are dealt to the processes."""
        setting, sampler = self.setting, self.setting.samples.sampler
        device = setting.launch.device

        @torch.no_grad()
        def of_chunk(chunk: int) -> Tensor:
            source = keys.generator(setting.plan.seed, "path length", chunk)
            drawn = sampler.draw(source, 2 * CHUNK)
            latents = drawn.view(CHUNK, 2, *drawn.shape[1:]).to(device)
            places = torch.rand(CHUNK, generator=source).to(device)
            conditions = setting.samples.conditions(chunk).to(device)
            columns = []
            for space in self._spaces:
                for place in (places, torch.zeros_like(places)):
                    pair = [on_path(sampler, space, latents, conditions, place + step) for step in (0.0, EPSILON)]
                    if pair[0] is None or pair[1] is None:
                        raise SettingError(
                            "--measures: ppl needs latent vectors, which this generator has not; leave it out"
                        )
                    first, second = (
                        seen_part(images, self._distance.crops_faces) for images in pair if images is not None
                    )
                    columns.append(self._distance.distance(first, second) / EPSILON**2)
            return torch.stack(columns, 1)

        with evaluating(sampler):
            found = list(
                in_order(setting.launch, chunks_of(setting.plan.samples), (CHUNK, 2 * len(self._spaces)), of_chunk)
            )
        if setting.launch.is_main:
            self._lengths = torch.cat(found)[: setting.plan.samples]

    def result(self) -> list[Measurement]:
        names = [f"{space}_{kind}" for space in self._spaces for kind in ("full", "end")]
        more = {
            "samples": self.setting.plan.samples,
            **self.setting.of_network(),
            "epsilon": EPSILON,
            "crop": "3/8 to 7/8, 2/8 to 6/8" if self._distance.crops_faces else "none",
            "truncation": "none",
        }
        return [
            Measurement(f"{self._distance.name}_path_length_{name}", trimmed_mean(column), more, better="lower")
            for name, column in zip(names, self._lengths.T, strict=True)
        ]
