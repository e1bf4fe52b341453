"""The training of the small classifier, on real images; it judges generated ones."""

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig, open_stream
from trainer.classifiers.identity import check_classes
from trainer.classifiers.small import ClassifierInfo, SmallClassifier, load_classifier, save_classifier
from trainer.foundation import keys
from trainer.foundation.pixels import normalise
from trainer.processes.launch import keep_freed_memory

__all__ = [
    "ClassifierInfo",
    "SmallClassifier",
    "load_classifier",
    "one_epoch",
    "predict",
    "save_classifier",
    "train_classifier",
]


def train_classifier(
    train_shards: str, test_shards: str, *, epochs: int, seed: int, width: int = 16, batch_size: int = 128
) -> tuple[SmallClassifier, ClassifierInfo]:
    """Train on one set of shards and measure the accuracy on another: Adam, one-cycle rate up to 0.01, no augmentation.

    Raises `SettingError` where the test images have a class that the others have not.
    """
    train_classes, test_classes = load_manifest(train_shards).classes, load_manifest(test_shards).classes
    cure = "give test images of the classes that the classifier is trained for"
    places = torch.tensor(check_classes(test_classes, train_classes, "TEST_SHARDS", train_shards, cure))
    torch.manual_seed(keys.key(seed, "classifier"))
    keep_freed_memory()
    with open_stream(
        DataConfig(shards=train_shards), seed=seed, replicas=1, held=[0], sizes=repeat(batch_size)
    ) as stream:
        manifest = stream.manifest
        model = SmallClassifier(manifest.channels, len(manifest.class_names), width)
        steps = max(2, epochs * manifest.samples // batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        for _ in range(steps):
            batch = next(stream)
            loss = functional.cross_entropy(model(normalise(batch.images[0])), batch.labels[0])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
    model.eval()
    right = total = 0
    for images, labels in one_epoch(test_shards, batch_size):
        right += int((predict(model, images) == places[labels]).sum())
        total += len(labels)
    info = ClassifierInfo(
        manifest.resolution,
        manifest.channels,
        manifest.class_names,
        width,
        manifest.fingerprint,
        right / total,
        tuple(entry.id for entry in manifest.classes),
    )
    return model, info


def one_epoch(shards: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample of the shards once: images [n, c, h, w] in [-1, 1], labels [n]; the last batch may be smaller."""
    with open_stream(DataConfig(shards=shards), seed=0, replicas=1, held=[0], sizes=repeat(batch_size)) as stream:
        left = stream.manifest.samples
        while left:
            batch = next(stream)
            count = min(left, batch_size)
            yield normalise(batch.images[0, :count]), batch.labels[0, :count].clone()
            left -= count


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The most probable class of each image [n, c, h, w] in [-1, 1]: int64 [n]."""
    classes: Tensor = model(images).argmax(1)
    return classes
