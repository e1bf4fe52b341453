"""Measures that look at one class after another: MS-SSIM of random pairs, and intra-FID."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.metrics.diversity import ms_ssim_diversity
from trainer.metrics.features import FeatureNetwork
from trainer.metrics.frechet import Moments, class_distance
from trainer.metrics.real import images_of_class, manifest_of
from trainer.metrics.reference import Reference, cached_values
from trainer.metrics.samples import CHUNK, Sampler, as_signed, chunks_of, in_order
from trainer.processes.launch import Launch


def pairs_of(images: Tensor, pairs: int) -> Tensor:
    """MS-SSIM of up to `pairs` disjoint pairs of uint8 images [n, c, h, w]: image i with image i + n // 2; NaN for the rest."""
    count = min(pairs, len(images) // 2)
    values = torch.full((pairs,), torch.nan)
    if count:
        signed = as_signed(images)
        values[:count] = ms_ssim_diversity(signed[:count], signed[count : 2 * count])
    return values


def generated_ms_ssim(launch: Launch, sampler: Sampler, pairs: int) -> Tensor | None:
    """Of every class, the mean over its pairs: float64 [classes] in the main process, None elsewhere.

    The classes are dealt to the processes; pairs are (0, n), (1, n + 1) ... of the class's keyed samples.
    """

    def work(label: int) -> Tensor:
        images = torch.cat([sampler.of_class(label, chunk) for chunk in range(chunks_of(2 * pairs))])
        return pairs_of(images[: 2 * pairs], pairs)

    found = list(in_order(launch, sampler.classes, (pairs,), work))
    return torch.stack(found).nanmean(1) if launch.is_main else None


def real_ms_ssim(launch: Launch, data: DataConfig, cache: Path, pairs: int) -> Tensor | None:
    """The same of real images, with the same settings; kept in the cache. NaN for a class of a single image."""
    if not launch.is_main:
        return None
    manifest = manifest_of(data)

    def compute() -> dict[str, object]:
        classes = range(len(manifest.classes))
        values = [pairs_of(images_of_class(data, label, 2 * pairs), pairs).nanmean() for label in classes]
        return {"ms_ssim": [None if value.isnan() else float(value) for value in values]}

    found = cached_values(cache, f"ms-ssim/{manifest.fingerprint}/{pairs}", compute)["ms_ssim"]
    assert isinstance(found, list)
    return torch.tensor([float("nan") if value is None else value for value in found], dtype=torch.float64)


class Relation(NamedTuple):
    """Accuracy against MS-SSIM over classes, as the AC-GAN paper's figure 10 (Odena et al. 2017, section 4.3)."""

    correlation: float
    """Pearson's r; positive: the classes that are drawn right are the less varied ones."""
    accurate_if_alike: float
    """Of the classes at or above the threshold of MS-SSIM, the share with an accuracy above 1%; NaN if there are none."""
    accurate_if_varied: float
    """The same of the classes below it."""


def accuracy_against_ms_ssim(accuracy: Tensor, ms_ssim: Tensor, threshold: float) -> Relation:
    """Of per-class values [classes] each."""
    both = torch.stack([accuracy.double(), ms_ssim.double()])
    flat = bool((both.std(1) == 0).any()) or both.shape[1] < 2
    correlation = float("nan") if flat else float(torch.corrcoef(both)[0, 1])
    alike = ms_ssim >= threshold
    shares = [float((accuracy[rows] > 0.01).double().mean()) for rows in (alike, ~alike)]
    return Relation(correlation, *shares)


def intra_frechet(
    launch: Launch, sampler: Sampler, network: FeatureNetwork, reference: Reference | None, samples: int
) -> Tensor | None:
    """The distance of each class's `samples` generated images to all its real ones: float64 [classes], main process only.

    Chunks are dealt to the processes; the main one holds the moments of one class (24 F^2 bytes at the end of a class)
    and the real features of one class at a time.
    """
    chunks = chunks_of(samples)

    def work(number: int) -> Tensor:
        return network.both(sampler.of_class(number // chunks, number % chunks))[0]

    distances, moments = [], Moments(network.dimension)
    results = in_order(launch, sampler.classes * chunks, (CHUNK, network.dimension), work)
    for number, features in enumerate(results):
        label, chunk = divmod(number, chunks)
        moments.add(features[: samples - chunk * CHUNK])
        if chunk == chunks - 1:
            assert reference is not None
            distances.append(class_distance(moments.gaussian(), reference.of_class(label)))
            moments = Moments(network.dimension)
    return torch.tensor(distances, dtype=torch.float64) if launch.is_main else None
