"""Class accuracy of generated images: the share that a classifier trained on real images gives the class asked for."""

import torch
from torch import Tensor, nn

from trainer import noise
from trainer.errors import TrainerError
from trainer.metrics.classifier import load_classifier, predict
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
        source = noise.generator(seed, "evaluation", number)
        latents = noise.draw_latents(source, CHUNK, model.latent_dim, model.latent_distribution)[: len(part)]
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

    def per_class(self, module: nn.Module, seed: int, samples: int) -> Tensor:
        """The accuracy of each class [classes], over `samples` images with the classes in turn."""
        labels = torch.arange(samples) % self.model.classes
        images = generate(module, self.model, labels, seed, self.device)
        found = torch.cat([predict(self.classifier, part) for part in torch.split(images, 500)]).cpu()
        right = torch.zeros(self.model.classes).index_add_(0, labels, (found == labels).float())
        return right / torch.bincount(labels, minlength=self.model.classes).clamp(min=1)

    def measure(self, module: nn.Module, seed: int, samples: int) -> float:
        """The mean accuracy over classes."""
        return float(self.per_class(module, seed, samples).mean())
