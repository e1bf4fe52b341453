"""The judge: perfect, confused and collapsed generators get the figures that they deserve."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.classifiers.training import load_classifier, one_epoch
from trainer.foundation.errors import TrainerError
from trainer.methods.sampling import ClassConditions, LatentSampler
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.metrics.judge import ClassSums
from trainer.metrics.samples import Samples, generate
from trainer.models import ModelConfig

MODEL = ModelConfig(resolution=32, image_channels=1, classes=3, latent_dim=8)


class Painter(nn.Module):
    """Draws what the tiny data set shows (noise round a level per class), with another class and less noise if asked."""

    def __init__(self, shift: int = 0, noise: float = 1.0) -> None:
        super().__init__()
        self.shift, self.noise = shift, noise
        self.calls: list[int] = []

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        self.calls.append(len(labels))
        level = 60.0 + 60.0 * ((labels + self.shift) % 3)[:, None, None, None]
        spread = latents.repeat_interleave(4, 1)[:, None, :, None] * latents.repeat_interleave(4, 1)[:, None, None, :]
        grey = torch.zeros(len(labels), 1, 32, 32)
        grey[:, :, 2:-2, 2:-2] = (level + 20 * self.noise * spread)[:, :, 2:-2, 2:-2]
        return grey.clamp(0, 255) / 127.5 - 1.0


def sampler_of(painter: Painter) -> LatentSampler:
    return LatentSampler({"generator": painter}, MODEL, ClassConditions(MODEL.classes))


def test_figures(judge_file: str, tiny_shards: Path) -> None:
    judge = GeneratedAccuracy(judge_file, MODEL)

    def of(painter: Painter) -> ClassSums:
        labels = torch.arange(150) % 3
        return judge.judge(generate(sampler_of(painter), labels, 0), labels)

    real = judge.judge(*(torch.cat(parts) for parts in zip(*one_epoch(str(tiny_shards), 500), strict=True)))
    assert real.accuracy.flatten().tolist() == [1.0, 1.0, 1.0]
    varied, collapsed = of(Painter()), of(Painter(noise=0.0))
    assert collapsed.accuracy.flatten().tolist() == [1.0, 1.0, 1.0]
    assert (collapsed.variance / real.variance).max() < 1e-6
    assert (varied.variance / real.variance).min() > 0.1
    assert judge.measure(sampler_of(Painter(noise=0.0)), 0, 150) == 1.0
    assert judge.measure(sampler_of(Painter(shift=1)), 0, 150) == 0.0


def test_a_sample_depends_on_its_index_alone() -> None:
    painter = Painter()
    sampler = sampler_of(painter)
    many = generate(sampler, torch.arange(120) % 3, seed=4)
    few = generate(sampler, torch.arange(70) % 3, seed=4)
    assert torch.equal(many[:70], few)
    assert not torch.equal(many, generate(sampler, torch.arange(120) % 3, seed=5))
    assert max(painter.calls) <= 50
    assert painter.training  # as before
    whole = Samples(sampler, 4)
    assert torch.equal(whole.first(70), (few * 127.5 + 127.5).clamp(0, 255).to(torch.uint8))
    assert torch.equal(whole.first_of_condition(torch.tensor(2), 60)[:50], whole.of_condition(torch.tensor(2), 0))


def test_a_classifier_of_other_data_is_refused(judge_file: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"evaluation\.classifier: .* was trained for 3 classes, the model has 10"):
        GeneratedAccuracy(judge_file, ModelConfig(resolution=32, image_channels=1, classes=10))
    with pytest.raises(TrainerError, match=r"evaluation\.classifier: there is no file .*train_classifier"):
        load_classifier(str(tmp_path / "missing.safetensors"))
