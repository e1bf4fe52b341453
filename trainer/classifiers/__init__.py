"""Frozen, pretrained classifiers of images: they judge generated ones, and their loss can train a generator."""

from trainer.classifiers.build import build_classifier
from trainer.classifiers.class_map import check_class_map
from trainer.classifiers.classifier import Classifier
from trainer.classifiers.config import (
    ClassifierConfig,
    EfficientNetLite0Config,
    SmallClassifierConfig,
    TimmClassifierConfig,
    TorchvisionClassifierConfig,
    parse_classifier,
)

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "EfficientNetLite0Config",
    "SmallClassifierConfig",
    "TimmClassifierConfig",
    "TorchvisionClassifierConfig",
    "build_classifier",
    "check_class_map",
    "parse_classifier",
]
