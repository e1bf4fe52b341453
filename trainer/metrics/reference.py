"""What is known of the real images: their features, kept in a cache by digest, so that they are computed once.

`features.npy` is a memory-mapped float32 [samples, F] in the order of the shards (10.5 GB for ImageNet's 1.28 M images and
2048 features, on disk; memory holds what is in use), next to labels, predictions and moments.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.manifest.format import Manifest
from data_pipeline.reading.stream import DataConfig
from data_pipeline.storage.files import replace_file
from trainer.foundation.errors import TrainerError
from trainer.metrics.features import FeatureNetwork, combined_digest
from trainer.metrics.frechet import Gaussian, Moments
from trainer.metrics.over_real import RealRows, over_real_images
from trainer.processes.launch import Launch, share_object
from trainer.trained.real import RealChunk, manifest_of
from trainer.trained.sampling import chunks_of

FORMAT = "menagerie-reference-1"


logger = logging.getLogger("menagerie.metrics")


def default_cache() -> Path:
    """`MENAGERIE_CACHE`, or `menagerie` in the user's folder for caches."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        home = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return Path(os.environ.get("MENAGERIE_CACHE") or Path(home) / "menagerie")


@dataclass(frozen=True)
class Reference:
    """Features of all real images by one network."""

    digest: str
    """Of the data's fingerprint, the network and its weights."""
    manifest: Manifest
    features: NDArray[np.float32]
    """[samples, F], memory-mapped."""
    labels: NDArray[np.int64]
    """[samples]."""
    predictions: NDArray[np.int64]
    """[samples]: the largest logit."""
    gaussian: Gaussian

    def of_class(self, label: int) -> Tensor:
        """Features [n, F] of a class."""
        return torch.from_numpy(self.features[np.flatnonzero(self.labels == label)])

    def subset(self, count: int) -> Tensor:
        """Features of `count` (or all) images, drawn without replacement, always the same."""
        chosen = np.sort(np.random.default_rng(0).permutation(len(self.labels))[:count])
        return torch.from_numpy(self.features[chosen])

    def describe(self) -> dict[str, object]:
        """For a record."""
        return {
            "digest": self.digest,
            "data_fingerprint": self.manifest.fingerprint,
            "samples": len(self.labels),
        }


def open_reference(launch: Launch, data: DataConfig, network: FeatureNetwork, cache: Path) -> Reference | None:
    """From the cache, else computed by all processes and put there; in the main process, None in the others."""
    manifest = manifest_of(data)
    digest = combined_digest(FORMAT, manifest.fingerprint, network.identity)
    folder = cache / "references" / digest[:32]
    if not share_object(launch, (folder / "summary.json").exists()):
        _compute(launch, data, network, manifest, folder)
    return _read(folder, digest, manifest) if launch.is_main else None


def _compute(launch: Launch, data: DataConfig, network: FeatureNetwork, manifest: Manifest, folder: Path) -> None:
    """By all processes; the main one writes each row in its sample's place."""

    def work(chunk: RealChunk) -> Tensor:
        features, logits = network.both(chunk.images)
        return torch.cat([logits.argmax(1)[:, None].double(), features.double()], 1)

    results = over_real_images(launch, data, chunks_of(manifest.samples), 1 + network.dimension, work)
    if not launch.is_main:
        for _ in results:
            pass
        return
    what = f"features of {manifest.samples:,} real images by {network.description}"
    print(f"computing {what}, once; they are kept in {folder}", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write(scratch, results, manifest, network)
        try:
            os.replace(scratch, folder)
        except OSError:  # another evaluation was faster: what it wrote is the same
            shutil.rmtree(scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _write(folder: Path, results: Iterator[RealRows], manifest: Manifest, network: FeatureNetwork) -> None:
    samples, dimension = manifest.samples, network.dimension
    features = np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype=np.float32, shape=(samples, dimension)
    )
    table = np.full((samples, 2), -1, dtype=np.int64)
    for rows in results:
        ids = rows.ids.numpy()
        table[ids, 0], table[ids, 1] = rows.labels.numpy(), rows.values[:, 0].long().numpy()
        features[ids] = rows.values[:, 1:].float().numpy()
    if (table[:, 0] < 0).any():
        raise RuntimeError(f"{int((table[:, 0] < 0).sum())} of {samples} real images were not reached")
    features.flush()
    moments = Moments(dimension)
    for first in range(0, samples, 1000):
        moments.add(torch.from_numpy(np.array(features[first : first + 1000])))
    gaussian = moments.gaussian()
    np.savez(folder / "moments.npz", mean=gaussian.mean, covariance=gaussian.covariance)
    np.savez(folder / "classes.npz", labels=table[:, 0], predictions=table[:, 1])
    summary = {
        "format": FORMAT,
        "samples": samples,
        "data_fingerprint": manifest.fingerprint,
        "features": network.description,
        "features_digest": network.digest,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _read(folder: Path, digest: str, manifest: Manifest) -> Reference:
    try:
        with np.load(folder / "moments.npz") as moments, np.load(folder / "classes.npz") as classes:
            gaussian = Gaussian(moments["mean"], moments["covariance"], len(classes["labels"]))
            labels, predictions = classes["labels"], classes["predictions"]
        features = np.load(folder / "features.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise TrainerError(f"--cache: {folder} is damaged ({error}); delete it, and it is computed again") from None
    return Reference(digest, manifest, features, labels, predictions, gaussian)


def cached_values(cache: Path, key: str, compute: Callable[[], Mapping[str, object]]) -> dict[str, object]:
    """A small JSON document by digest of `key`: read, or computed and kept. Only the main process calls it."""
    path = cache / "references" / f"{combined_digest(FORMAT, key)[:32]}.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
            if isinstance(found, dict):
                return found
        except ValueError:
            pass
        logger.warning("%s is damaged; it is computed again", path)
    values = dict(compute())
    replace_file(path, (json.dumps(values) + "\n").encode())
    return values
