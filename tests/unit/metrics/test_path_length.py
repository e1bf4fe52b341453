"""Path length: closed forms, the crop, LPIPS against another library, refusals, the command on a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.methods.paths import on_path, spaces_of
from trainer.methods.sampling import ClassConditions
from trainer.metrics.features import open_features
from trainer.metrics.lpips import PerceptualDistance
from trainer.metrics.path_length import PathLength, seen_part, trimmed_mean
from trainer.metrics.protocol import Plan, Setting
from trainer.metrics.samples import Samples
from trainer.processes.launch import read_launch


class Squares:
    """The squared distance of pixels."""

    name, crops_faces, dimension, outputs = "feature", False, 0, 0
    description, digest, identity = "squares", "0", "squares"

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().flatten(1).sum(1)


@dataclass
class Straight:
    """Images of 2 x 2 pixels: a linear function of a point of a straight way."""

    matrix: Tensor
    conditions: ClassConditions
    networks: dict[str, nn.Module]
    output: str = "image"
    spaces: Sequence[str] = ("z", "w")

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        return torch.randn(count, 3, generator=source)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        return (latents.double() @ self.matrix).view(-1, 1, 2, 2)

    def on_path(self, space: str, latents: Tensor, conditions: Tensor, shares: Tensor) -> Tensor:
        points = torch.lerp(latents[:, 0].double(), latents[:, 1].double(), shares.double()[:, None])
        return self.sample(points if space == "z" else 2 * points, conditions)


def measured(sampler: Any, network: Any, samples: int = 60) -> dict[str, float]:
    plan, launch = Plan(("ppl",), samples), read_launch("cpu")
    setting = Setting(plan, launch, Samples(sampler, 0), cast(Any, None), Path(), network)
    measure = PathLength(setting)
    measure.work()
    return {m.measure: m.value for m in measure.result()}


def test_the_length_of_a_straight_way_is_its_squared_speed() -> None:
    matrix = torch.randn(3, 4, dtype=torch.float64)
    sampler = Straight(matrix, ClassConditions(0), {})
    found = measured(sampler, Squares(), 50)
    from trainer.foundation import keys

    ends = torch.randn(100, 3, generator=keys.generator(0, "path length", 0)).double().view(50, 2, 3)
    speeds = ((ends[:, 1] - ends[:, 0]) @ matrix).square().sum(1)
    expected = trimmed_mean(speeds)
    assert set(found) == {f"feature_path_length_{space}_{kind}" for space in "zw" for kind in ("full", "end")}
    for name, value in found.items():
        assert value == pytest.approx(expected * (4 if "_w_" in name else 1), rel=1e-2)  # shares are float32


def test_the_ends_of_the_distribution_are_left_out() -> None:
    lengths = torch.arange(1000.0)
    assert trimmed_mean(lengths) == pytest.approx(np.arange(9, 991).mean())
    assert trimmed_mean(torch.cat([lengths[:999], torch.tensor([1e9])])) == pytest.approx(np.arange(9, 991).mean())


def test_what_is_compared() -> None:
    images = torch.arange(16.0 * 16).view(1, 1, 16, 16)
    assert torch.equal(seen_part(images, True), images[:, :, 6:14, 4:12])
    assert torch.equal(seen_part(images, False), images)
    large = torch.randn(1, 1, 1024, 1024)
    assert seen_part(large, True).shape[-1] == 256
    torch.testing.assert_close(seen_part(large, True)[0, 0, 0, 0], large[0, 0, 384:386, 256:258].mean())


def test_a_sampler_without_paths_has_ways_in_z_alone() -> None:
    plain = SimpleNamespace(sample=lambda z, y: z[:, :, None, None], conditions=ClassConditions(0), output="image")
    latents = torch.randn(4, 2, 3)
    assert spaces_of(cast(Any, plain)) == ("z",)
    found = on_path(cast(Any, plain), "z", latents, torch.zeros(4), torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert found is not None
    torch.testing.assert_close(found[1, :, 0, 0], 0.75 * latents[1, 0] + 0.25 * latents[1, 1])
    assert on_path(cast(Any, plain), "z", torch.zeros(4, 2, 0), torch.zeros(4), torch.zeros(4)) is None


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Random weights in the file's names, and the same network of another library."""
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    torch.manual_seed(0)
    other = lpips._LPIPS(pretrained=True, net="vgg", pnet_rand=True, eval_mode=True, resize=None)
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    state = {name: value.clone().contiguous() for name, value in other.state_dict().items()}
    safetensors.torch.save_file(state, path)
    return path, other


def test_lpips_is_that_of_another_library(vgg: tuple[Path, Any]) -> None:
    path, other = vgg
    ours = open_features(f"lpips:{path}", 3)
    assert isinstance(ours, PerceptualDistance)
    assert len(ours.digest) == 64
    first, second = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = other(first, second).flatten()
    torch.testing.assert_close(ours.distance(first, second), expected, rtol=1e-4, atol=1e-6)
    grey = first[:, :1]
    torch.testing.assert_close(ours.distance(grey, grey), torch.zeros(2))
    with pytest.raises(SettingError, match=r"^--features: lpips gives distances alone"):
        ours.both(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_lpips_names_what_a_file_lacks(tmp_path: Path) -> None:
    safetensors.torch.save_file({"lin0.model.1.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(SettingError, match=r"^--features lpips: \S+x\.safetensors lacks 'net\.slice1\.0\.weight'"):
        open_features(f"lpips:{tmp_path / 'x.safetensors'}", 3)


def test_a_network_without_distances_is_refused() -> None:
    setting = SimpleNamespace(network=object(), samples=None)
    with pytest.raises(SettingError, match=r"^--features: this network gives no distances of images between whole"):
        PathLength(cast(Any, setting))


def test_perceptual_lengths_have_their_own_name(vgg: tuple[Path, Any]) -> None:
    matrix = torch.randn(3, 3 * 32 * 32, dtype=torch.float64) * 0.1
    sampler = Straight(matrix, ClassConditions(0), {})
    sampler.sample = lambda latents, conditions: (latents.double() @ matrix).view(-1, 3, 32, 32)  # type: ignore[method-assign]
    found = measured(sampler, open_features(f"lpips:{vgg[0]}", 3), 50)
    assert set(found) == {f"perceptual_path_length_{space}_{kind}" for space in "zw" for kind in ("full", "end")}
    assert all(math.isfinite(value) and value > 0 for value in found.values())
