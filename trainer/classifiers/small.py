"""A small convolutional classifier for small images, and the file of weights of it or of a classifier from a training."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from data_pipeline.storage.files import written_aside
from trainer.classifiers.weights import read_weights
from trainer.foundation.choices import load_class
from trainer.foundation.errors import SettingError

_KEY = "menagerie_classifier"


@dataclass(frozen=True)
class ClassifierInfo:
    """What the weights file says of itself."""

    resolution: int
    image_channels: int
    class_names: tuple[str, ...]
    width: int
    fingerprint: str
    """Of the shards it was trained on."""
    test_accuracy: float
    class_ids: tuple[str, ...] = ()
    """The classes' ids in those shards; files of earlier versions have none."""
    described: dict[str, Any] | None = None
    """Of another network than the small one, how it is built: the settings `network` and `model`, whose `name` is their
    class, as package.module:ClassName."""


class SmallClassifier(nn.Module):
    """Four convolutions (5x5 stride 2, then 3x3), two poolings, a linear layer: images [n, c, h, w] -> logits [n, classes]."""

    def __init__(self, image_channels: int, classes: int, width: int) -> None:
        super().__init__()

        def convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
            return [layer, nn.BatchNorm2d(after), nn.ReLU()]

        self.layers = nn.Sequential(
            *convolution(image_channels, width, 5, 2),
            *convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            *convolution(4 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees: [n, 4 * width]."""
        features: Tensor = self.layers(images).mean((2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def save_classifier(path: Path, model: nn.Module, info: ClassifierInfo) -> None:
    """Weights as safetensors, with `info` in the header."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with written_aside(path) as part:
        save_file(state, part, metadata={_KEY: json.dumps(asdict(info))})


class FeaturesAndHead(Protocol):
    """What a file of weights gives."""

    def features(self, images: Tensor) -> Tensor:
        """[n, F] of images [n, c, h, w] in [-1, 1]."""
        ...

    def head(self, features: Tensor) -> Tensor:
        """Logits [n, classes]."""
        ...


def build_described(described: Mapping[str, Any]) -> Any:
    """The network that these settings describe, with fresh weights. Raises ValueError."""
    network, model = (_settings(described[part]) for part in ("network", "model"))
    return network.build(model)


def _settings(tree: Mapping[str, Any]) -> Any:
    kind: Any = load_class(tree["name"])
    return TypeAdapter(kind).validate_python({name: value for name, value in tree.items() if name != "name"})


def read_small(path: str, setting: str = "evaluation.classifier") -> tuple[Any, ClassifierInfo, str]:
    """What `save_classifier` wrote, in evaluation mode, and the file's sha256. Raises `SettingError`."""
    cure = "make it with `python -m trainer.train_classifier TRAIN_SHARDS TEST_SHARDS --out FILE`"
    file = read_weights(path, setting, cure)
    text = file.metadata.get(_KEY)
    if text is None:
        raise SettingError(f"{setting}: {path} was not written by `python -m trainer.train_classifier`; {cure}")
    fields = json.loads(text)
    sequences = {name: tuple(fields.get(name, ())) for name in ("class_names", "class_ids")}
    info = ClassifierInfo(**{**fields, **sequences})
    model: Any
    if info.described is None:
        model = SmallClassifier(info.image_channels, len(info.class_names), info.width)
    else:
        try:
            model = build_described(info.described)
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise SettingError(
                f"{setting}: the network of {path} cannot be built ({reason}); export it again"
            ) from None
    model.load_state_dict(file.tensors)
    return model.eval(), info, file.sha256


def load_classifier(path: str) -> tuple[Any, ClassifierInfo]:
    """Read what `save_classifier` wrote, in evaluation mode. Raises `SettingError`."""
    return read_small(path)[:2]
