"""A small convolutional classifier for small images, trained by us on real images, that judges generated ones."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.stream import DataConfig, open_stream
from trainer import noise
from trainer.errors import TrainerError
from trainer.images import normalise
from trainer.launch import keep_freed_memory


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


def train_classifier(
    train_shards: str, test_shards: str, *, epochs: int, seed: int, width: int = 16, batch_size: int = 128
) -> tuple[SmallClassifier, ClassifierInfo]:
    """Train on one set of shards and measure the accuracy on another: Adam, one-cycle rate up to 0.01, no augmentation."""
    torch.manual_seed(noise.key(seed, "classifier"))
    keep_freed_memory()
    with open_stream(DataConfig(shards=train_shards), seed=seed, replicas=1, held=[0], batch_size=batch_size) as stream:
        manifest = stream.manifest
        model = SmallClassifier(manifest.channels, len(manifest.class_names), width)
        steps = max(2, epochs * manifest.samples // batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        for _ in range(steps):
            images, labels, _positions = next(stream)
            loss = functional.cross_entropy(model(normalise(images[0])), labels[0])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
    model.eval()
    right = total = 0
    for images, labels in one_epoch(test_shards, batch_size):
        right += int((predict(model, images) == labels).sum())
        total += len(labels)
    info = ClassifierInfo(
        manifest.resolution, manifest.channels, manifest.class_names, width, manifest.fingerprint, right / total
    )
    return model, info


def one_epoch(shards: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample of the shards once: images [n, c, h, w] in [-1, 1], labels [n]; the last batch may be smaller."""
    with open_stream(DataConfig(shards=shards), seed=0, replicas=1, held=[0], batch_size=batch_size) as stream:
        left = stream.manifest.samples
        while left:
            images, labels, _positions = next(stream)
            count = min(left, batch_size)
            yield normalise(images[0, :count]), labels[0, :count].clone()
            left -= count


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The most probable class of each image [n, c, h, w] in [-1, 1]: int64 [n]."""
    classes: Tensor = model(images).argmax(1)
    return classes


def save_classifier(path: Path, model: SmallClassifier, info: ClassifierInfo) -> None:
    """Weights as safetensors, with `info` in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, temporary, metadata={"menagerie_classifier": json.dumps(asdict(info))})
    temporary.replace(path)


def load_classifier(path: str) -> tuple[SmallClassifier, ClassifierInfo]:
    """Read what `save_classifier` wrote, in evaluation mode. Raises `TrainerError`."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("menagerie_classifier")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"evaluation.classifier: cannot read {path} ({error}); make it with "
            "`python -m trainer.train_classifier TRAIN_SHARDS TEST_SHARDS --out FILE`"
        ) from None
    if text is None:
        raise TrainerError(f"evaluation.classifier: {path} was not written by `python -m trainer.train_classifier`")
    fields = json.loads(text)
    info = ClassifierInfo(**{**fields, "class_names": tuple(fields["class_names"])})
    model = SmallClassifier(info.image_channels, len(info.class_names), info.width)
    model.load_state_dict(state)
    return model.eval(), info
