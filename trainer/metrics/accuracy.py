"""What a classifier trained on real images says of generated ones.

Class accuracy: the share that it gives the class asked for. Diversity: how much its features of one class vary, as a share
of how much they vary among real images of the class; 1 is as diverse as the data, 0 is one image per class.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.classifiers.training import load_classifier, one_epoch
from trainer.foundation import keys
from trainer.foundation.errors import TrainerError
from trainer.models import ModelConfig

CHUNK = 50


def generate(
    module: nn.Module, model: ModelConfig, labels: Tensor, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Images [n, c, h, w] for `labels` [n] from the module in evaluation mode.

    Latents are keyed by (seed, number of the chunk of 50), so a sample depends on its index alone.
    """
    was_training = module.training
    module.eval()
    images = []
    for number, part in enumerate(torch.split(labels, CHUNK)):
        source = keys.generator(seed, "evaluation", number)
        latents = keys.draw_latents(source, CHUNK, model.latent_dim, model.latent_distribution)[: len(part)]
        with torch.no_grad():
            images.append(module(latents.to(device), part.to(device)).float())
    module.train(was_training)
    return torch.cat(images)


class GeneratedAccuracy:
    """Measures with one classifier; raises `TrainerError` if its classes are not the model's."""

    def __init__(self, path: str, model: ModelConfig, device: torch.device | str = "cpu") -> None:
        classifier, self.info = load_classifier(path)
        for what, theirs, ours in (
            ("classes", len(self.info.class_names), model.classes),
            ("resolution", self.info.resolution, model.resolution),
            ("image channels", self.info.image_channels, model.image_channels),
        ):
            if theirs != ours:
                raise TrainerError(
                    f"evaluation.classifier: {path} was trained for {theirs} {what}, the model has {ours}; "
                    "train one on this run's shards with `python -m trainer.train_classifier`"
                )
        self.model = model
        self.device = torch.device(device)
        self.classifier = classifier.to(device)

    def judge(self, module: nn.Module, seed: int, samples: int) -> "Judgement":
        """Accuracy and features of `samples` images, the classes in turn."""
        labels = torch.arange(samples) % self.model.classes
        images = generate(module, self.model, labels, seed, self.device)
        return self._judge(images, labels)

    def judge_real(self, shards: str) -> "Judgement":
        """The same of all real images in `shards`."""
        batches = list(one_epoch(shards, 500))
        return self._judge(torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]))

    def measure(self, module: nn.Module, seed: int, samples: int) -> float:
        """The mean accuracy over classes."""
        return float(self.judge(module, seed, samples).accuracy.mean())

    @torch.no_grad()
    def _judge(self, images: Tensor, labels: Tensor) -> "Judgement":
        parts = [self.classifier.features(part.to(self.device)) for part in torch.split(images, 500)]
        features = torch.cat(parts)
        found = self.classifier.head(features).argmax(1).cpu()
        features = features.cpu().double()
        chosen = [labels == label for label in range(self.model.classes)]
        return Judgement(
            accuracy=torch.stack([(found[rows] == label).double().mean() for label, rows in enumerate(chosen)]),
            variance=torch.stack([features[rows].var(0).sum() for rows in chosen]),
        )


class Judgement(NamedTuple):
    """Per class, float64 [classes]."""

    accuracy: Tensor
    """Share of images that are given the class asked for."""
    variance: Tensor
    """Sum over features of their unbiased variance within the class."""

    def diversity(self, real: "Judgement") -> Tensor:
        """Variance as a share of the real images', [classes]."""
        return self.variance / real.variance
