"""What the fine-tuning stage watches: accuracies by classifiers, and MS-SSIM within classes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifiers import Classifier
from trainer.foundation import keys
from trainer.methods.protocol import Sampler
from trainer.metrics.diversity import ms_ssim_diversity
from trainer.trained.sampling import CHUNK, samples_of


@dataclass(frozen=True)
class Watched:
    """One measurement; accuracies 0..1."""

    ms_ssim: float
    """Mean over pairs of one class; higher is less varied."""
    guiding_accuracy: float
    guiding_loss: float
    """Cross-entropy in nats."""
    independent_accuracy: float | None


@torch.no_grad()
def measure(
    sampler: Sampler,
    seed: int,
    samples: int,
    guiding: tuple[Classifier, Tensor | None],
    independent: tuple[Classifier, Tensor | None] | None,
    device: torch.device | str = "cpu",
) -> Watched:
    """Measure a sampler of classes on `samples` images: samples // 2 pairs of one class, the classes in turn.

    Latents are keyed by (seed, number of the chunk of 50 pairs), so a pair depends on its number alone. Each classifier
    comes with its class map; both are on `device`.
    """
    pairs = max(samples // 2, 1)
    similarity = cross_entropy = right = right_too = 0.0
    for chunk in range(-(-pairs // CHUNK)):
        numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, pairs))
        count = len(numbers)
        source = keys.generator(seed, "watching the classifier's loss", chunk)
        latents = sampler.draw(source, 2 * CHUNK)
        latents = torch.cat([latents[:count], latents[CHUNK : CHUNK + count]])
        labels = sampler.conditions.in_turn(numbers).repeat(2).to(device)
        images = samples_of(sampler, latents, labels, 2 * CHUNK).to(device)
        similarity += float(ms_ssim_diversity(images[:count], images[count:]).double().sum())
        logits, targets = _judge(guiding, images, labels)
        cross_entropy += float(F.cross_entropy(logits, targets, reduction="sum"))
        right += float((logits.argmax(1) == targets).sum())
        if independent:
            logits, targets = _judge(independent, images, labels)
            right_too += float((logits.argmax(1) == targets).sum())
    images_seen = 2 * pairs
    return Watched(
        similarity / pairs,
        right / images_seen,
        cross_entropy / images_seen,
        right_too / images_seen if independent else None,
    )


def _judge(classifier: tuple[Classifier, Tensor | None], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    network, logit_of = classifier
    return network(images), labels if logit_of is None else logit_of[labels]
