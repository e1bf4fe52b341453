"""The judge: perfect, confused and collapsed generators get the figures that they deserve."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.classifiers.training import load_classifier
from trainer.foundation.errors import TrainerError
from trainer.metrics.accuracy import GeneratedAccuracy, generate
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


def test_figures(judge_file: str, tiny_shards: Path) -> None:
    judge = GeneratedAccuracy(judge_file, MODEL)
    real = judge.judge_real(str(tiny_shards))
    assert real.accuracy.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(real.diversity(real), torch.ones(3, dtype=torch.float64))
    varied, collapsed = judge.judge(Painter(), 0, 150), judge.judge(Painter(noise=0.0), 0, 150)
    assert collapsed.accuracy.tolist() == [1.0, 1.0, 1.0]
    assert collapsed.diversity(real).max() < 1e-6
    assert varied.diversity(real).min() > 0.1
    assert judge.measure(Painter(shift=1), 0, 150) == 0.0


def test_a_sample_depends_on_its_index_alone() -> None:
    painter = Painter()
    many = generate(painter, MODEL, torch.arange(120) % 3, seed=4)
    few = generate(painter, MODEL, torch.arange(70) % 3, seed=4)
    assert torch.equal(many[:70], few)
    assert not torch.equal(many, generate(painter, MODEL, torch.arange(120) % 3, seed=5))
    assert max(painter.calls) <= 50


def test_a_classifier_of_other_data_is_refused(judge_file: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"evaluation\.classifier: .* was trained for 3 classes, the model has 10"):
        GeneratedAccuracy(judge_file, ModelConfig(resolution=32, image_channels=1, classes=10))
    with pytest.raises(TrainerError, match=r"evaluation\.classifier: there is no file .*train_classifier"):
        load_classifier(str(tmp_path / "missing.safetensors"))
