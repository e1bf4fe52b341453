"""The classifiers' settings, and their short form on a command line."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.foundation.errors import SettingError

_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class SmallClassifierConfig:
    """Our own small classifier."""

    name: Literal["small"] = "small"
    weights: str
    """Path or fsspec URL of the file that `python -m trainer.train_classifier` wrote."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class EfficientNetLite0Config:
    """EfficientNet-Lite0, ILSVRC2012, from the installed package; nothing is downloaded."""

    name: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    weights: str | None = None
    """Path or fsspec URL of other weights of this network; none: the package's."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class TimmClassifierConfig:
    """A model of timm; its input size and normalisation are those of timm's entry for it."""

    name: Literal["timm"] = "timm"
    model: Annotated[str, Field(min_length=1)]
    """Its name in timm, with the tag of the pretraining where sizes depend on it, such as `resnet50.a1_in1k`."""
    weights: str
    """Path or fsspec URL of its weights (safetensors, or a state dict of torch.save)."""
    class_ids: tuple[str, ...] = ()
    """WordNet ids in the order of the logits; empty: the 1000 of ILSVRC2012 in the standard order."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class TorchvisionClassifierConfig:
    """A model of torchvision; its input size and normalisation are those of torchvision's default weights for it."""

    name: Literal["torchvision"] = "torchvision"
    model: Annotated[str, Field(min_length=1)]
    """Its name in torchvision, such as `resnet50`."""
    weights: str
    """Path or fsspec URL of its weights (safetensors, or a state dict of torch.save)."""
    class_ids: tuple[str, ...] = ()
    """WordNet ids in the order of the logits; empty: the 1000 of ILSVRC2012 in the standard order."""


ClassifierConfig = Annotated[
    SmallClassifierConfig | EfficientNetLite0Config | TimmClassifierConfig | TorchvisionClassifierConfig,
    Field(discriminator="name"),
]
"""A classifier, by `name`: small, efficientnet_lite0, timm or torchvision."""


def parse_classifier(text: str, setting: str = "--classifier") -> ClassifierConfig:
    """`efficientnet_lite0`, `timm:MODEL:WEIGHTS`, `torchvision:MODEL:WEIGHTS`, or the path or URL of a small classifier's
    weights. Raises `SettingError`."""
    source, _, rest = text.partition(":")
    if text == "efficientnet_lite0":
        return EfficientNetLite0Config()
    if source in ("timm", "torchvision"):
        model, _, weights = rest.partition(":")
        if not model or not weights:
            raise SettingError(
                f"{setting}: {text!r} lacks the model or its weights; write {source}:MODEL:WEIGHTS, such as "
                f"{source}:resnet50:/path/resnet50.safetensors"
            )
        kind = TimmClassifierConfig if source == "timm" else TorchvisionClassifierConfig
        return kind(model=model, weights=weights)
    if not text:
        raise SettingError(f"{setting}: is empty; give efficientnet_lite0, timm:MODEL:WEIGHTS or a file of weights")
    return SmallClassifierConfig(weights=text)
