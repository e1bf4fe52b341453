"""Nearest neighbours of generated images among the training images, in pixels and in features: does it copy?

Distances are Euclidean, of pixels in [-1, 1] or of features. As a yardstick the same is done with real images, each
without itself: a generated image is a *near copy* if it is closer to a training image than all but 1% of the real ones
are. About 1% of the images of a generator that does not copy are.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.metrics.real import real_chunks
from trainer.metrics.reference import Reference
from trainer.metrics.samples import as_signed

QUANTILE = 0.01
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
