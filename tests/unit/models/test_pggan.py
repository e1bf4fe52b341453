"""The networks of progressive growing: sizes, moments at the start, fading, and what does not act."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.models import ModelConfig
from trainer.models.growing import Stage, enlarged
from trainer.models.layers import downsample
from trainer.models.pggan import (
    PGGANDiscriminator,
    PGGANDiscriminatorConfig,
    PGGANGenerator,
    PGGANGeneratorConfig,
    Widths,
)
from trainer.models.traits import couples_samples, draws_inside, moves_state, silent_layers

OFFICIAL = {  # resolution: parameters of G and D, all RGB layers, colour, no classes
    4: (6_556_163, 6_561_793),
    8: (11_277_318, 11_283_457),
    16: (15_998_473, 16_005_121),
    32: (20_719_628, 20_726_785),
    64: (22_490_383, 22_498_049),
    128: (22_933_394, 22_941_313),
    256: (23_044_309, 23_052_353),
    512: (23_072_120, 23_080_225),
    1024: (23_079_115, 23_087_249),
}
OTHERS = {  # resolution, classes, latents, widths: parameters
    (32, 0, 128, 4096, 128): (1_296_908, 1_298_689),
    (32, 10, 512, 8192, 512): (20_801_548, 20_731_915),
    (32, 0, 64, 256, 64): (211_580, 212_433),
    (64, 0, 64, 256, 64): (213_351, 214_217),
    (32, 0, 64, 512, 64): (278_636, 279_521),
}


def networks(resolution: int, classes: int = 0, latents: int = 8, channels: int = 3, **widths: Any) -> Any:
    model = ModelConfig(resolution=resolution, classes=classes, latent_dim=latents, image_channels=channels)
    pair = (PGGANGeneratorConfig(**widths).build(model), PGGANDiscriminatorConfig(**widths).build(model))
    return tuple(network.double() for network in pair)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("resolution", OFFICIAL)
def test_parameters_at_every_resolution(resolution: int) -> None:
    with torch.device("meta"):
        found = networks(resolution, latents=512)
    assert tuple(map(parameters, found)) == OFFICIAL[resolution]


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_parameters_of_other_forms(case: tuple[int, int, int, int, int]) -> None:
    resolution, classes, latents, base, most = case
    with torch.device("meta"):
        found = networks(resolution, classes, latents, fmap_base=base, fmap_max=most)
    assert tuple(map(parameters, found)) == OTHERS[case]


def test_channels_halve_with_every_doubling() -> None:
    assert [Widths().at(side) for side in (2, 4, 32, 64, 128, 1024)] == [512, 512, 512, 256, 128, 16]
    assert [Widths(fmap_base=256, fmap_max=64).at(side) for side in (4, 8, 16, 32)] == [64, 64, 32, 16]


def small(resolution: int, classes: int = 0) -> tuple[PGGANGenerator, PGGANDiscriminator]:
    torch.manual_seed(0)
    generator, discriminator = networks(resolution, classes, fmap_base=64, fmap_max=16)
    return generator, discriminator


def draw(n: int = 8) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=source, dtype=torch.float64), torch.arange(n) % 3


def test_images_have_unit_second_moment_at_every_level() -> None:
    moments: dict[int, list[float]] = {side: [] for side in (4, 8, 16, 32)}
    for seed in range(4):
        torch.manual_seed(seed)
        generator, _ = networks(32, latents=64, fmap_base=256, fmap_max=64)
        z = torch.randn(32, 64, dtype=torch.float64)
        with torch.no_grad():
            for side, found in moments.items():
                found.append(generator(z, z[:, 0].long(), Stage(side)).square().mean().item())
    for found in moments.values():
        assert sum(found) / len(found) == pytest.approx(1.0, abs=0.1 * 3)
        assert max(found) < 2


def test_a_complete_level_is_the_smaller_network() -> None:
    """The upper levels are not there: same weights, same images, same scores; difference 0."""
    (large, large_d), (little, little_d) = small(32), small(16)
    little.load_state_dict({k: v for k, v in large.state_dict().items() if "32" not in k})
    little_d.load_state_dict({k: v for k, v in large_d.state_dict().items() if "32" not in k})
    z, y = draw()
    images = large(z, y, Stage(16))
    assert torch.equal(images, little(z, y, Stage(16)))
    assert torch.equal(large_d(images, y, Stage(16)).logits, little_d(images, y, Stage(16)).logits)


def test_a_fade_begins_and_ends_without_a_jump_and_is_linear() -> None:
    generator, discriminator = small(16)
    z, y = draw()
    with torch.no_grad():
        before = enlarged(generator(z, y, Stage(8)), 16)
        torch.testing.assert_close(generator(z, y, Stage(16, 0.0)), before, rtol=0, atol=1e-12)
        torch.testing.assert_close(generator(z, y, Stage(16, 1e-6)), before, rtol=0, atol=5e-5)
        whole = generator(z, y, Stage(16))
        torch.testing.assert_close(
            generator(z, y, Stage(16, 0.25)), before + 0.25 * (whole - before), rtol=0, atol=1e-12
        )
        x = torch.randn(8, 3, 16, 16, dtype=torch.float64)
        score = discriminator(downsample(x), y, Stage(8)).logits
        torch.testing.assert_close(discriminator(x, y, Stage(16, 0.0)).logits, score, rtol=0, atol=1e-12)
        near = discriminator(x, y, Stage(16, 1 - 1e-9)).logits
        torch.testing.assert_close(near, discriminator(x, y, Stage(16)).logits, rtol=0, atol=1e-6)


def test_only_the_acting_levels_have_gradients() -> None:
    generator, discriminator = small(32, 3)
    z, y = draw()
    for stage, rgb, blocks in (
        (Stage(4), {"4"}, set()),
        (Stage(16, 0.5), {"8", "16"}, {"8", "16"}),
        (Stage(16), {"16"}, {"8", "16"}),
        (Stage(32), {"32"}, {"8", "16", "32"}),
    ):
        generator.zero_grad()
        discriminator.zero_grad()
        output = discriminator(generator(z, y, stage), y, stage)
        (output.logits.sum() + output.class_logits.sum()).backward()
        for network, name in ((generator, "to_rgb"), (discriminator, "from_rgb")):
            moved = {key for key, parameter in network.named_parameters() if parameter.grad is not None}
            assert {key.split(".")[1] for key in moved if key.startswith(name)} == rgb
            assert {key.split(".")[1] for key in moved if key.startswith("blocks")} == blocks
            fixed = {key for key, _ in network.named_parameters() if not key.startswith((name, "blocks"))}
            assert fixed <= moved


def test_sampled_without_a_stage_it_gives_full_images_of_the_level_reached() -> None:
    generator, _ = small(16)
    z, y = draw(2)
    for stage in (Stage(4), Stage(8, 0.5)):
        small_images = generator(z, y, stage)
        whole = generator.eval()(z, y)
        generator.train()
        assert torch.equal(whole, enlarged(small_images, 16))
    assert generator.state_dict()["reached.fade"].item() == 0.5


def test_classes_are_part_of_the_input_and_their_weights_mix() -> None:
    generator, discriminator = small(8, 3)
    z, y = draw(3)
    with torch.no_grad():
        images = generator(z, y, Stage(8))
        code = torch.nn.functional.one_hot(y, 3).double()
        assert torch.equal(generator(z, code, Stage(8)), images)
        assert not torch.allclose(generator(z, y.roll(1), Stage(8)), images)
    output = discriminator(images, y, Stage(8))
    assert output.logits.shape == (3,)
    assert output.class_logits.shape == (3, 3)
    torch.manual_seed(0)
    alone = PGGANGeneratorConfig(fmap_base=64, fmap_max=16, latent_norm="latents").build(
        ModelConfig(resolution=8, classes=3, latent_dim=8)
    )
    first = alone.double()._input(z, y)
    torch.testing.assert_close(first[:, :8].square().mean(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(first[:, 8:], code)


def test_the_networks_say_what_they_do() -> None:
    generator, discriminator = small(8, 3)
    for network in (generator, discriminator):
        assert silent_layers(network) == []
        assert not draws_inside(network)
    assert [type(layer).__name__ for layer in generator.modules() if moves_state(layer)] == ["Reached"]
    assert not any(moves_state(layer) for layer in discriminator.modules())
    assert couples_samples(discriminator)


def test_noise_multiplies_the_inputs_of_the_layers() -> None:
    model = ModelConfig(resolution=8, classes=0, latent_dim=8)
    discriminator = PGGANDiscriminatorConfig(fmap_base=64, fmap_max=16, noisy=True).build(model).double()
    assert discriminator.draws
    assert not PGGANDiscriminatorConfig(fmap_base=64, fmap_max=16).build(model).draws
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    plain = discriminator(x, y, Stage(8)).logits
    none = discriminator(x, y, Stage(8), torch.zeros((), dtype=torch.float64)).logits
    torch.testing.assert_close(none, plain)
    torch.manual_seed(0)
    noisy = discriminator(x, y, Stage(8), torch.tensor(0.1, dtype=torch.float64)).logits
    assert not torch.allclose(noisy, plain)


def test_the_penalty_is_that_of_finite_differences() -> None:
    """The gradient along a direction, and the penalty's derivative by a weight, by central differences."""
    from trainer.methods.terms.penalties import gradient_penalty, input_gradient

    _, discriminator = small(8)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(4, dtype=torch.int64)
    stage, h = Stage(8, 0.4), 1e-6

    def scores(at: Tensor) -> Tensor:
        logits: Tensor = discriminator(at, y, stage).logits
        return logits

    direction = torch.randn_like(x)
    direction[1:] = 0  # the deviation couples samples; the gradient is that of the sum
    slope = (scores(x + h * direction).sum() - scores(x - h * direction).sum()) / (2 * h)
    analytic = (input_gradient(scores(x), x) * direction).sum()
    torch.testing.assert_close(slope, analytic, rtol=1e-6, atol=1e-8)
    weight = discriminator.blocks["8"].conv1.weight
    real, fake, mix = x.detach(), torch.randn_like(x), torch.rand(4, dtype=torch.float64)
    (derivative,) = torch.autograd.grad(gradient_penalty(scores, real, fake, mix, 2.0), weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 2, 0, 1] += sign * h
        values.append(gradient_penalty(scores, real, fake, mix, 2.0).detach())
        with torch.no_grad():
            weight[1, 2, 0, 1] -= sign * h
    torch.testing.assert_close((values[0] - values[1]) / (2 * h), derivative[1, 2, 0, 1], rtol=1e-5, atol=1e-7)
