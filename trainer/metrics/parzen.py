"""Parzen-window log-likelihood of real images under generated ones, as the first GAN papers report it.

The protocol is that of the code of Goodfellow et al. 2014 (goodfeli/adversarial, parzen_ll.py), which Mirza & Osindero 2014
follow: a Gaussian of one bandwidth on every generated image, pixels in [0, 1]. The number says little. The centres of
clusters of real images score higher than real images, and another number of samples moves it by a hundred nats.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.foundation.errors import SettingError
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement
from trainer.trained.real import manifest_of, real_chunks

BANDWIDTHS = tuple(10 ** (-1 + step / 9) for step in range(10))
"""Ten values, evenly spaced in their logarithm, from 0.1 to 1."""
CHOOSING = 1_000
"""Images that choose the bandwidth; where --real must give them, a quarter of it at most."""
CAUTION = (
    "no verdict on quality: blurred centres of clusters beat real images; compare only at an equal number of samples"
)
_ROWS = 500  # real images of one block: with 10,000 samples 40 MB of float64


class ParzenResult(NamedTuple):
    """What `parzen` found."""

    mean: float
    """Mean log-likelihood of the scored images, nats."""
    standard_error: float
    """Over the scored images: std / sqrt(n), not over seeds or trainings."""
    bandwidth: float
    at_edge: bool
    """The bandwidth is the smallest or the largest of the grid: the grid does not fit."""


def log_likelihoods(images: Tensor, centres: Tensor, bandwidths: tuple[float, ...]) -> Tensor:
    """log (1/m) sum_i N(x; mu_i, sigma^2) of each image and each bandwidth, float64 [n, bandwidths].

    Args:
        images: [n, d] in [0, 1].
        centres: [m, d] in [0, 1]: the generated images.
    """
    x, mu = images.double(), centres.double()
    d, lengths = x.shape[1], mu.square().sum(1)
    found = []
    for rows in torch.split(x, _ROWS):
        squares = (rows.square().sum(1, keepdim=True) + lengths - 2 * rows @ mu.T).clamp_min(0)
        found.append(
            torch.stack(
                [
                    torch.logsumexp(squares / (-2 * sigma**2), 1)
                    - math.log(len(mu))
                    - d * math.log(sigma * math.sqrt(2 * math.pi))
                    for sigma in bandwidths
                ],
                1,
            )
        )
    return torch.cat(found)


def parzen(centres: Tensor, choosing: Tensor, scored: Tensor) -> ParzenResult:
    """The bandwidth with the largest mean on the images `choosing`, then the mean on the images `scored`; all [n, d]."""
    means = log_likelihoods(choosing, centres, BANDWIDTHS).mean(0)
    best = int(means.argmax())
    values = log_likelihoods(scored, centres, BANDWIDTHS[best : best + 1])[:, 0]
    error = float(values.std(correction=0)) / math.sqrt(len(values))
    return ParzenResult(float(values.mean()), error, BANDWIDTHS[best], best in (0, len(BANDWIDTHS) - 1))


class Parzen(Measure):
    """Of all samples as 8-bit images. --validation chooses the bandwidth and --real is scored.

    Without --validation the first of the real images choose it, and only the others are scored.
    """

    name, meaning = "parzen", "Parzen-window log-likelihood, as the first papers report it; no verdict on quality"
    needs = Needs(samples=True)
    titles: ClassVar[dict[str, str]] = {"parzen_log_likelihood": "Parzen-window log-likelihood (nats)"}
    outcomes = frozenset({"standard_error", "bandwidth", "bandwidth_at_edge"})
    in_all = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._kept: list[Tensor] = []
        self._found: list[Measurement] = []

    def add(self, seen: Seen) -> None:
        self._kept.append(seen.samples.flatten(1))

    def work(self) -> None:
        """In the main process alone."""
        setting = self.setting
        if not setting.launch.is_main:
            return
        validation = setting.validation
        choosing, scored = _sets(setting.data, validation)
        found = parzen(_unit(torch.cat(self._kept)), _unit(choosing), _unit(scored))
        more = {
            "samples": setting.plan.samples,
            "pixels": choosing.shape[1],
            "scored_images": len(scored),
            "bandwidth_chosen_on": f"{len(choosing)} images of {'--validation' if validation else '--real, not scored'}",
            "standard_error": found.standard_error,
            "bandwidth": found.bandwidth,
            "bandwidth_at_edge": found.at_edge,
            "caution": CAUTION,
            "reference": {"data_fingerprint": setting.manifest.fingerprint},
        }
        if validation is not None:
            more["validation"] = {"data_fingerprint": manifest_of(validation).fingerprint}
        self._found = [Measurement("parzen_log_likelihood", found.mean, more)]

    def result(self) -> list[Measurement]:
        return self._found

    @classmethod
    def note(cls, details: Mapping[str, Any]) -> str:
        edge = ", at the edge of the grid" if details.get("bandwidth_at_edge") else ""
        return (
            f"+- {details['standard_error']:.2g} over images, bandwidth {details['bandwidth']:.4f}{edge}; "
            f"{details['caution']}"
        )


def _sets(data: DataConfig, validation: DataConfig | None) -> tuple[Tensor, Tensor]:
    """Images that choose the bandwidth and images that are scored, uint8 [n, d]. Raises `SettingError` for too few."""
    images = _images(data)
    if validation is not None:
        return torch.cat(list(_limited(_images(validation), CHOOSING))), torch.cat(list(images))
    whole = torch.cat(list(images))
    choosing = min(CHOOSING, len(whole) // 4)
    if not choosing:
        raise SettingError(
            f"--real: {data.shards} holds {len(whole)} images, and parzen takes a quarter to choose the bandwidth; give at "
            "least 4, or the images that choose with --validation"
        )
    return whole[:choosing], whole[choosing:]


def _images(data: DataConfig) -> Iterator[Tensor]:
    """All real images, in the order of `real_chunks`."""
    return (chunk.images[: chunk.new].flatten(1) for chunk in real_chunks(data))


def _limited(parts: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The first `count` images."""
    left = count
    for part in parts:
        if left <= 0:
            return
        yield part[:left]
        left -= len(part)


def _unit(images: Tensor) -> Tensor:
    """uint8 -> float64 in [0, 1]."""
    return images.double() / 255
