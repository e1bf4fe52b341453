"""Nearest neighbours of generated images among the training images, in pixels and in features: does it copy?

Distances are Euclidean, of pixels in [-1, 1] or of features. The yardstick is the same of real images, each without
itself: a generated image is a *near copy* if it is closer to a training image than all but 1% of the real ones
are. About 1% of the images of a generator that does not copy are.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.foundation.pictures import draw_grid
from trainer.metrics.protocol import Measure, Needs, Setting
from trainer.metrics.records import Measurement
from trainer.metrics.reference import Reference
from trainer.metrics.samples import as_signed
from trainer.trained.real import real_chunks
from trainer.trained.sampling import CHUNK, chunks_of, device_of

QUANTILE = 0.01
SHOWN = 4
"""Neighbours of each image."""
SHOWN_ROWS = 10
"""Generated images in the picture."""
_ROWS = 8192


class Nearest(NamedTuple):
    """The k nearest training images of each query, nearest first."""

    ids: Tensor
    """int64 [q, k]: their places in the shards."""
    distances: Tensor
    """float32 [q, k]."""


class NearCopies(NamedTuple):
    """What the distances say."""

    share: float
    """Of the generated images: nearer than the yardstick."""
    yardstick: float
    """The 1% quantile of the real images' distances to their nearest other image."""
    median_ratio: float
    """Median distance of generated images over that of real ones."""


class _Best:
    """The k smallest distances so far, with their ids."""

    def __init__(self, queries: int, count: int) -> None:
        self.ids = torch.full((queries, count), -1)
        self.distances = torch.full((queries, count), torch.inf)

    def offer(self, distances: Tensor, ids: Tensor, own_ids: Tensor) -> Tensor:
        """Squared distances [q, n] to the images `ids` [n]; a query's own image does not count. -> which are new, [q, k]:
        their column, or -1."""
        distances = distances.masked_fill(own_ids[:, None] == ids[None, :], torch.inf)
        kept = self.ids.shape[1]
        self.distances, chosen = torch.cat([self.distances, distances], 1).topk(kept, largest=False, sorted=True)
        self.ids = torch.cat([self.ids, ids.expand(len(distances), -1)], 1).gather(1, chosen)
        return chosen - kept


def nearest_features(queries: Tensor, own_ids: Tensor, reference: Reference, count: int) -> Nearest:
    """Of features [q, F]; `own_ids` [q] is a query's own place among the training images, -1 for a generated one."""
    best = _Best(len(queries), count)
    for first in range(0, len(reference.labels), _ROWS):
        block = torch.from_numpy(np.array(reference.features[first : first + _ROWS]))
        distances = torch.cdist(queries, block, compute_mode="donot_use_mm_for_euclid_dist").square()
        best.offer(distances, torch.arange(first, first + len(block)), own_ids)
    return Nearest(best.ids, best.distances.sqrt())


class PixelSearch(NamedTuple):
    """The nearest in pixels, and pictures of training images by id."""

    nearest: Nearest
    pictures: dict[int, Tensor]
    """uint8 [c, h, w], of the nearest in pixels and of the ids that were asked for."""


def nearest_pixels(
    queries: Tensor, own_ids: Tensor, data: DataConfig, count: int, wanted: Iterable[int] = (), device: str = "cpu"
) -> PixelSearch:
    """One pass over all training images, 50 at a time, for uint8 queries [q, c, h, w]; also fetches the images `wanted`."""
    flat = as_signed(queries.flatten(1)).to(device)
    lengths = flat.square().sum(1, keepdim=True)
    best, asked = _Best(len(queries), count), set(wanted)
    pictures: dict[int, Tensor] = {}
    for chunk in real_chunks(data):
        ids, images = chunk.ids[: chunk.new], chunk.images[: chunk.new]
        other = as_signed(images.flatten(1)).to(device)
        squares = lengths + other.square().sum(1) - 2.0 * flat @ other.T
        new = best.offer(squares.clamp_min(0).cpu(), ids, own_ids)
        for column in set(new[new >= 0].tolist()) | {i for i, key in enumerate(ids.tolist()) if key in asked}:
            pictures[int(ids[column])] = images[column]
        if len(pictures) > 4 * len(queries) * count:
            pictures = _kept(pictures, best.ids, asked)
    pictures = _kept(pictures, best.ids, asked)
    # The squares above lose digits where they are small, which is where it matters: once more, by differences.
    signed = as_signed(queries)
    exact = torch.full_like(best.distances, torch.inf)
    for row, ids_of_row in enumerate(best.ids.tolist()):
        for column, key in enumerate(ids_of_row):
            if key >= 0:
                exact[row, column] = torch.dist(signed[row], as_signed(pictures[key]))
    order = exact.argsort(1)
    return PixelSearch(Nearest(best.ids.gather(1, order), exact.gather(1, order)), pictures)


def _kept(pictures: dict[int, Tensor], ids: Tensor, asked: set[int]) -> dict[int, Tensor]:
    needed = set(ids.flatten().tolist()) | asked
    return {key: picture for key, picture in pictures.items() if key in needed}


def near_copies(generated: Tensor, real: Tensor) -> NearCopies:
    """From the distances to the nearest training image: of generated images [q], of real ones to another one [r]."""
    yardstick = float(torch.quantile(real, QUANTILE))
    share = float((generated <= yardstick).float().mean())
    return NearCopies(share, yardstick, float(generated.median() / real.median()))


def neighbour_rows(generated: Tensor, sides: Sequence[Sequence[Sequence[Tensor]]], names: Sequence[str]) -> Image.Image:
    """A row per generated uint8 image [c, h, w]: itself, a gap, its nearest training images by each of the `sides`."""
    rows = []
    for number, image in enumerate(generated):
        gap = torch.full_like(image, 255)
        rows.append(torch.stack([image, *(tile for side in sides for tile in (gap, *side[number]))]))
    return draw_grid(torch.stack(rows), names)


class Neighbours(Measure):
    """Of the first --queries samples. In the main process alone: one pass over all training images."""

    name, meaning = "neighbours", "nearest training images, in pixels and in features"
    needs = Needs(network=True, reference=True)
    titles: ClassVar[dict[str, str]] = {
        "near_copies_pixels": "near copies of training images, in pixels",
        "near_copies_features": "near copies of training images, in features",
    }
    outcomes = frozenset({"median_distance_over_real"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._found: list[Measurement] = []
        self._picture: Image.Image | None = None

    def work(self) -> None:
        setting, count, reference = self.setting, self.setting.plan.queries, self.setting.reference
        if reference is None:  # not the main process
            return
        assert setting.network is not None
        generated = setting.samples.first(count)
        own = list(real_chunks(setting.data, 0, chunks_of(min(count, len(reference.labels)))))
        real = torch.cat([chunk.images[: chunk.new] for chunk in own])[:count]
        ids = torch.cat([torch.full((count,), -1), torch.cat([chunk.ids[: chunk.new] for chunk in own])[:count]])
        images = torch.cat([generated, real])
        features = torch.cat([setting.network.both(part)[0].cpu() for part in torch.split(images, CHUNK)])
        by_feature = nearest_features(features, ids, reference, SHOWN)
        shown = min(SHOWN_ROWS, count)
        wanted = by_feature.ids[:shown].flatten().tolist()
        search = nearest_pixels(images, ids, setting.data, SHOWN, wanted, str(device_of(setting.samples.sampler)))
        of_pixels = {"distance": "Euclidean, of pixels in [-1, 1]"}
        for kind, distances, how in (
            ("pixels", search.nearest.distances, of_pixels),
            ("features", by_feature.distances, setting.of_network()),
        ):
            copies = near_copies(distances[:count, 0], distances[count:, 0])
            self._found.append(self._measurement(kind, copies, len(real), how, reference))
        sides = [
            [[search.pictures[i] for i in row] for row in ids[:shown].tolist()]
            for ids in (search.nearest.ids, by_feature.ids)
        ]
        conditions = setting.samples.sampler.conditions
        names = [conditions.caption(condition) for condition in conditions.in_turn(range(shown))]
        self._picture = neighbour_rows(generated[:shown], sides, names)

    def _measurement(
        self, kind: str, found: NearCopies, real: int, how: dict[str, Any], reference: Reference
    ) -> Measurement:
        more = {
            "samples": self.setting.plan.queries,
            "real_samples": real,
            "expected_without_copying": QUANTILE,
            "yardstick": found.yardstick,
            "median_distance_over_real": found.median_ratio,
            **how,
            "reference": reference.describe(),
        }
        return Measurement(f"near_copies_{kind}", found.share, more, "%")

    def result(self) -> list[Measurement]:
        return self._found

    def pictures(self) -> dict[str, Image.Image]:
        return {} if self._picture is None else {"neighbours": self._picture}
