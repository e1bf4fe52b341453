"""StyleGAN's draws, settings, and how it is sampled: truncation, mixing, sheets, ways in z and in w."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.games import problem, turn_of
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.growing import GrowingSampler
from trainer.methods.growth import GrowthConfig
from trainer.methods.paths import Interpolating
from trainer.methods.problem import Problem, differentiates_twice, resets_optimizers
from trainer.methods.sampling import Truncating
from trainer.methods.schedule import BatchConfig
from trainer.methods.sheets import Sheets
from trainer.methods.stylegan import StyleGANConfig, StyleGANMethod
from trainer.methods.styles import PSIS, StyleSampler, slerp
from trainer.methods.terms.penalty_terms import R1Config
from trainer.models import ModelConfig
from trainer.models.growing import Stage
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from trainer.models.stylegan import StyleGANGeneratorConfig, layers_at
from trainer.models.stylegan_discriminator import StyleGANDiscriminatorConfig
from trainer.trained.sampling import samples_of

WIDTHS: dict[str, Any] = {"fmap_base": 16, "fmap_max": 8}


def problem_of(classes: int = 3, batch: int = 8, resolution: int = 32, **settings: Any) -> Problem:
    model = ModelConfig(resolution=resolution, image_channels=1, classes=classes, latent_dim=5)
    batches = BatchConfig(replicas=1, real_per_replica=batch, **{"dequantize": False, **settings.pop("of_batch", {})})
    settings = {"generator": None, "discriminator": None, **settings}
    return problem(model, batch=batches, **settings)


def config_of(*, generator: dict[str, Any] | None = None, **settings: Any) -> StyleGANConfig:
    settings.setdefault("growth", GrowthConfig(first_resolution=8, stable_images=80, fade_images=80, repeats=1))
    own = {**WIDTHS, "mapping_layers": 2, "mapping_width": 6, **(generator or {})}
    discriminator = settings.pop("discriminator", StyleGANDiscriminatorConfig(**WIDTHS))
    return StyleGANConfig(generator=StyleGANGeneratorConfig(**own), discriminator=discriminator, **settings)


def method_of(classes: int = 3, generator: dict[str, Any] | None = None, **settings: Any) -> StyleGANMethod:
    return config_of(generator=generator, **settings).build(problem_of(classes))


def trained(method: StyleGANMethod, side: int = 32) -> nn.Module:
    """A network with noise, biases and a mean of w, grown to `side`."""
    torch.manual_seed(1)
    network = method.build("generator")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", ".noise")):
                parameter.normal_(std=0.3)
        for _ in range(30):
            network(torch.randn(8, 5), torch.randint(3, (8,)), Stage(side))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sampler() -> StyleSampler:
    method = method_of()
    found = method.sampler({"generator": trained(method)})
    assert isinstance(found, StyleSampler)
    return found


def drawn(method: StyleGANMethod, iteration: int, replica: int = 0, player: str = "generator") -> dict[str, Tensor]:
    turn = turn_of(method, player, iteration)
    real = {"data": {"image": torch.zeros(turn.made, 1, 32, 32), "class": torch.arange(turn.made) % 3}}
    return method.draw(turn, Keys(0, iteration, turn.number, replica), real)


def test_cutoffs_are_uniform_over_the_layers_that_act_and_one_for_a_batch() -> None:
    method = method_of(mixing=0.75)
    for first, side in ((0, 8), (70, 32)):
        assert method.table.at(first).stage.resolution == side
    counts = torch.zeros(9)
    for number in range(2000):
        cutoff = method.draw(turn_of(method, "generator", 70), Keys(0, number, 1, 0), {})["cutoff"]
        assert torch.equal(cutoff, cutoff[:1].expand(8))
        counts[cutoff[0]] += 1
    n = layers_at(32)
    assert not counts[0]
    assert counts[n].item() / 2000 == pytest.approx(0.25, abs=0.03)
    assert ((counts[1:n] / 2000 - 0.75 / (n - 1)).abs() < 0.03).all()
    at_8 = {int(method.draw(turn_of(method, "generator"), Keys(0, t, 1, 0), {})["cutoff"][0]) for t in range(200)}
    assert at_8 == {1, 2, 3, 4}


def test_draws_are_keyed_by_turn_and_replica() -> None:
    method = method_of()
    first, again, other = drawn(method, 3), drawn(method, 3), drawn(method, 3, replica=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mixed"], other["mixed"])
    assert not torch.equal(first["mixed"], drawn(method, 3, player="discriminator")["mixed"])
    assert not torch.equal(first["mixed"], first["latents"])
    assert drawn(method, 0, player="discriminator")["real_images"].shape == (8, 1, 8, 8)
    cutoffs = {int(drawn(method, 3, replica=r)["cutoff"][0]) for r in range(20)}
    assert len(cutoffs) > 1
    of_samples = drawn(method_of(mixing_of="sample"), 3)["cutoff"]
    assert len(set(of_samples.tolist())) > 1
    assert {"mixed", "cutoff"}.isdisjoint(drawn(method_of(mixing=0.0), 3))


def test_settings_say_what_they_need() -> None:
    assert differentiates_twice(config_of())
    assert resets_optimizers(config_of())
    lazy = config_of(penalty=R1Config(gamma=1.0, every=4)).build(problem_of())
    weights = [turn_of(lazy, "discriminator", t).terms for t in range(5)]
    assert weights == [{"penalty": 4.0}, {}, {}, {}, {"penalty": 4.0}]


@pytest.mark.parametrize(
    ("settings", "of_problem", "message"),
    [
        (
            {"generator": {"styles": False}},
            {},
            r"^objective\.mixing: is 0\.9, but objective\.generator\.styles is false",
        ),
        ({}, {"batch": 6}, r"^batch\.real_per_replica: a replica has 6 images at 8 px, which groups of 4"),
        ({}, {"resolution": 24}, r"^model\.resolution: is 24, .* power of two"),
        ({}, {"of_batch": {"dequantize": True}}, r"^batch\.dequantize: is true, but objective\.name stylegan rounds"),
        ({}, {"of_batch": {"synchronised_norm": True}}, r"^batch\.synchronised_norm: is true, but the networks of"),
        ({}, {"generator": ResNetGeneratorConfig()}, r"^generator\.name: is set, but the networks of objective\.name"),
        ({}, {"discriminator": ResNetDiscriminatorConfig()}, r"^discriminator\.name: is set, but"),
        (
            {"growth": GrowthConfig(first_resolution=64)},
            {},
            r"^objective\.growth\.first_resolution: is 64; give a power",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], of_problem: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**settings).check(problem_of(**of_problem))


def test_a_classifiers_loss_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"^classifier_loss: is set, but the images of objective\.name stylegan are small"
    ):
        config_of().build(problem_of(terms=(object(),)))


def test_truncation_by_0_gives_the_mean_image_and_by_1_the_samples(sampler: StyleSampler) -> None:
    z, y = sampler.draw(torch.Generator().manual_seed(0), 4), torch.tensor([0, 1, 2, 0])
    mean = sampler.network.w_average.value
    assert mean.abs().max() > 1e-4
    styles = sampler.truncated(0.0).styles(z[:, :-1], y)
    torch.testing.assert_close(styles, mean.expand_as(styles))
    noise = sampler.noise(z[:, -1])
    image_of_mean = sampler.network.synthesised(mean.expand(4, 8, -1), noise=noise)
    torch.testing.assert_close(sampler.truncated(0.0).sample(z, y), image_of_mean)
    assert torch.equal(sampler.truncated(1.0).sample(z, y), sampler.sample(z, y))
    halfway = sampler.truncated(0.5).styles(z[:, :-1], y)
    torch.testing.assert_close(halfway, (styles + sampler.styles(z[:, :-1], y)) / 2)
    mirrored = sampler.truncated(-1.0).styles(z[:, :-1], y)
    torch.testing.assert_close(mirrored, 2 * styles - sampler.styles(z[:, :-1], y))


def test_truncation_ends_at_its_layer() -> None:
    method = method_of(generator={"truncation_layers": 3})
    sampler = method.sampler({"generator": trained(method)})
    assert isinstance(sampler, StyleSampler)
    z, y = torch.randn(2, 5), torch.tensor([0, 1])
    whole, cut = sampler.styles(z, y), sampler.truncated(0.0).styles(z, y)
    assert torch.equal(cut[:, 3:], whole[:, 3:])
    torch.testing.assert_close(cut[:, :3], sampler.network.w_average.value.expand(2, 3, -1))


def test_a_sample_depends_on_its_latents_alone_and_has_its_own_noise(sampler: StyleSampler) -> None:
    z, y = sampler.draw(torch.Generator().manual_seed(0), 3), torch.tensor([0, 1, 2])
    together = samples_of(sampler, z, y)
    apart = torch.cat([samples_of(sampler, z[k : k + 1], y[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    other = torch.cat([z[:, :-1], z[:, -1:] + 1], 1)
    assert not torch.allclose(samples_of(sampler, other, y), together)
    assert together.shape == (3, 1, 32, 32)
    assert sampler.grown == {"resolution": 32.0, "fade": 1.0}


def test_a_network_that_has_not_grown_gives_large_images_of_its_level() -> None:
    method = method_of()
    sampler = method.sampler({"generator": trained(method, 8)})
    assert isinstance(sampler, StyleSampler)
    images = samples_of(sampler, sampler.draw(torch.Generator().manual_seed(0), 2), torch.tensor([0, 1]))
    assert torch.equal(images, images[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert sampler.grown["resolution"] == 8


def test_ways_go_over_the_sphere() -> None:
    a, b = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, torch.zeros(1)), a)
    torch.testing.assert_close(slerp(a, b, torch.ones(1)), b)
    torch.testing.assert_close(slerp(a, a, torch.tensor(0.3)), a)
    units = [F.normalize(z) for z in (a, b)]
    quarter, half = (slerp(*units, torch.tensor(share)) for share in (0.25, 0.5))
    torch.testing.assert_close(half, F.normalize(units[0] + units[1]))
    torch.testing.assert_close(quarter, F.normalize(units[0] + half))
    lengths = slerp(a, b, torch.tensor(0.25)).norm(dim=1)
    torch.testing.assert_close(lengths, 0.75 * a.norm(dim=1) + 0.25 * b.norm(dim=1))


def test_an_interpolation_keeps_its_noise(sampler: StyleSampler) -> None:
    ends = sampler.draw(torch.Generator().manual_seed(0), 4)
    ways = sampler.between(ends[:2], ends[2:], torch.linspace(0, 1, 5))
    assert ways.shape == (2, 5, 6)
    assert torch.equal(ways[..., -1], ends[:2, -1:].expand(2, 5))


def test_sheets(sampler: StyleSampler) -> None:
    assert isinstance(sampler, Sheets)
    source = torch.Generator().manual_seed(0)
    latents, y = torch.stack([sampler.draw(source, 3) for _ in range(2)]), torch.tensor([0, 2])
    w = sampler.mapped(latents[..., :-1].flatten(0, 1), y.repeat_interleave(3)).view(2, 3, -1)
    mean = sampler.network.w_average.value
    shapes = {"truncation": (6, len(PSIS)), "mixing": (1 + 2 * 2, 3), "mean": (1, 1), "lerp": (4, 5), "slerp": (4, 5)}
    assert set(shapes) == set(sampler.sheets)
    cells = {}
    for name, (rows, columns) in shapes.items():
        sheet = sampler.sheet(name, latents, y, 5)
        assert (len(sheet.rows), len(sheet.columns)) == (rows, columns)
        assert sheet.latents.shape == (rows * columns, 8, 6)
        cells[name] = sheet.latents.view(rows, columns, 8, 6)
        made = samples_of(sheet.sampler, sheet.latents, sheet.conditions)
        assert made.shape == (rows * columns, 1, 32, 32)
    torch.testing.assert_close(cells["truncation"][:, PSIS.index(0.0)], mean.expand(6, 8, -1))
    torch.testing.assert_close(cells["truncation"][4, 0], w[1, 1].expand(8, -1))
    torch.testing.assert_close(cells["mean"][0, 0], mean.expand(8, -1))
    mixing = cells["mixing"]
    torch.testing.assert_close(mixing[0, 0], mean.expand(8, -1))
    torch.testing.assert_close(mixing[0, 1:, 5], w[:, 0])
    torch.testing.assert_close(mixing[1, 0], w[0, 1].expand(8, -1))
    for layer in range(8):  # rows 1 and 2 take the coarse layers, rows 3 and 4 the middle ones
        coarse = layer < 4
        torch.testing.assert_close(mixing[2, 1, layer], w[0, 0] if coarse else w[1, 1])
        torch.testing.assert_close(mixing[4, 1, layer], w[1, 1] if coarse else w[0, 0])
    torch.testing.assert_close(cells["lerp"][3, 2, 0], (w[1, 1] + w[1, 2]) / 2)
    torch.testing.assert_close(cells["slerp"][3, 4, 0], w[1, 2])
    with pytest.raises(SettingError, match=r"^--count: is 1, and the sheet mixing needs two samples"):
        sampler.sheet("mixing", latents[:, :1], y, 5)


def test_without_styles_there_is_no_truncation_and_no_sheet() -> None:
    method = method_of(0, generator={"styles": False, "mapping_layers": 0}, mixing=0.0)
    found = method.sampler({"generator": trained(method)})
    assert isinstance(found, GrowingSampler)
    assert not isinstance(found, Truncating)
    assert not isinstance(found, Sheets)
    assert not isinstance(found, Interpolating)
