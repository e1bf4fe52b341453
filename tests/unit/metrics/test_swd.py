"""The sliced Wasserstein distance of Laplacian pyramids, part by part."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from trainer import evaluate
from trainer.config import load_config
from trainer.metrics.records import read_records
from trainer.metrics.swd import distance, doubled, halved, levels_of, patches, pyramid
from trainer.processes.launch import read_launch
from trainer.training.loop import train


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_levels_go_down_to_16_px() -> None:
    assert levels_of(1024) == [1024, 512, 256, 128, 64, 32, 16]
    assert levels_of(32) == [32, 16]
    assert levels_of(28) == [28]


def test_the_filters_are_scipys() -> None:
    image = torch.rand(2, 3, 16, 16, generator=seeded(), dtype=torch.float64)
    taps = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(taps, taps)[None, None]
    down = scipy.ndimage.convolve(image.numpy(), kernel, mode="mirror")[:, :, ::2, ::2]
    np.testing.assert_allclose(halved(image).numpy(), down, atol=1e-12)
    large = np.zeros((2, 3, 16, 16))
    large[:, :, ::2, ::2] = down
    up = scipy.ndimage.convolve(large, 4 * kernel, mode="mirror")
    np.testing.assert_allclose(doubled(torch.from_numpy(down)).numpy(), up, atol=1e-12)
    details, rest = pyramid(image, 2)
    torch.testing.assert_close(details + doubled(rest), image)


def test_patches_are_cut_from_all_places() -> None:
    level = torch.arange(9 * 9).view(1, 1, 9, 9).expand(1, 3, 9, 9) + 1000.0 * torch.arange(3)[:, None, None]
    found = patches(level, seeded())
    assert found.shape == (128, 3, 7, 7)
    corners = set(found[:, 0, 0, 0].int().tolist())
    assert corners == {9 * row + column for row in range(3) for column in range(3)}
    expected = level[0, :, 1:8, 2:9]
    assert any(torch.equal(patch, expected) for patch in found)


def test_the_distance_is_that_of_sorted_projections() -> None:
    first, second = torch.randn(2, 500, 3, 7, 7, generator=seeded())
    second = second**3
    source = seeded(5)
    expected = []
    for _ in range(4):
        directions = torch.randn(147, 128, generator=source).double().numpy()
        directions /= np.linalg.norm(directions, axis=0)
        sides = []
        for part in (first, second):
            x = part.double().numpy()
            x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
            sides.append(np.sort(x.reshape(500, 147) @ directions, 0))
        expected.append(np.abs(sides[0] - sides[1]).mean())
    assert distance(first, second, seeded(5)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_brightness_and_contrast_of_a_channel_do_not_count() -> None:
    first = torch.randn(500, 3, 7, 7, generator=seeded())
    changed = first * torch.tensor([1.0, 2.0, 5.0])[:, None, None] + torch.tensor([3.0, 0.0, -1.0])[:, None, None]
    assert distance(first, changed, seeded()) == pytest.approx(0.0, abs=1e-5)
    assert distance(first, first.flip(0), seeded()) == pytest.approx(0.0, abs=1e-6)
    assert distance(first, torch.rand(500, 3, 7, 7, generator=seeded(1)), seeded()) > 0.01


def test_it_is_measured_and_recorded(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(str(tiny()), ["--run.iterations", "1"])
    assert train(config, read_launch())
    words = ["--measures", "swd", "--samples", "60", "--cache", str(tmp_path / "cache")]
    for _ in range(2):
        assert evaluate.main([config.run.dir, *words]) == 0
    first, second = read_records(config.run.dir)
    assert first["measure"] == "sliced_wasserstein_distance"
    assert first["value"] == second["value"] == pytest.approx(sum(first["per_level"].values()) / 2)
    assert list(first["per_level"]) == ["32 px", "16 px"]
    assert first["samples"] == 60
    assert "grown" not in first
