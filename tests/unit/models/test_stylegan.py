"""StyleGAN's networks: parameters as published, initial values, noise, the mean of w, mixing, stages, rows of Table 1."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.models import ModelConfig, replica_passes
from trainer.models.growing import Stage
from trainer.models.pggan import PGGANDiscriminatorConfig, PGGANGeneratorConfig
from trainer.models.stylegan import StyleAverage, StyleGANGenerator, StyleGANGeneratorConfig, blur, layers_at
from trainer.models.stylegan_discriminator import StyleGANDiscriminatorConfig
from trainer.models.traits import can_group, can_repeat, draws_inside, silent_layers

SMALL = {"fmap_base": 32, "fmap_max": 12}
MODEL = ModelConfig(resolution=16, image_channels=2, classes=3, latent_dim=6)
PUBLISHED = {  # generator without mapping, generator, discriminator, stored noise
    8: (9_194_502, 11_295_750, 11_283_457, 160),
    16: (14_967_305, 17_068_553, 16_005_121, 672),
    32: (20_740_108, 22_841_356, 20_726_785, 2_720),
    64: (23_036_687, 25_137_935, 22_498_049, 10_912),
    128: (23_742_610, 25_843_858, 22_941_313, 43_680),
    256: (23_984_981, 26_086_229, 23_052_353, 174_752),
    512: (24_078_520, 26_179_768, 23_080_225, 699_040),
    1024: (24_118_379, 26_219_627, 23_087_249, 2_796_192),
}


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small(model: ModelConfig = MODEL, **settings: object) -> StyleGANGenerator:
    torch.manual_seed(3)
    settings = {"mapping_layers": 2, "mapping_width": 7, **settings}
    return StyleGANGeneratorConfig(**SMALL, **settings).build(model).double()  # type: ignore[arg-type]


def inputs(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, dtype=torch.float64), torch.arange(n) % 3


@pytest.mark.parametrize("resolution", PUBLISHED)
def test_parameters_are_the_official_codes(resolution: int) -> None:
    with torch.device("meta"):
        model = ModelConfig(resolution=resolution, classes=0, latent_dim=512)
        g, d = StyleGANGeneratorConfig().build(model), StyleGANDiscriminatorConfig().build(model)
    stored = sum(b.numel() for name, b in g.named_buffers() if name.endswith("stored"))
    assert (parameters(g) - parameters(g.mapping), parameters(g), parameters(d), stored) == PUBLISHED[resolution]
    assert g.layers == layers_at(resolution) == 2 * int(math.log2(resolution)) - 2 == len(g.endings)


def test_parameters_with_classes_and_of_layers() -> None:
    with torch.device("meta"):
        model = ModelConfig(resolution=128, classes=10, latent_dim=512)
        g, d = StyleGANGeneratorConfig().build(model), StyleGANDiscriminatorConfig().build(model)
    assert parameters(g) == 25_843_858 + 10 * 512 + 512 * 512
    assert parameters(d) == 22_941_313 + 9 * 513
    assert parameters(g.first) + g.constant.numel() == 534_528
    widest, narrower = g.blocks["32"], g.blocks["64"]
    assert parameters(widest.conv1) + parameters(widest.ending1) == 2_885_632
    assert parameters(narrower.conv1) + parameters(narrower.ending1) == 1_442_816
    assert parameters(narrower.conv2) + parameters(narrower.ending2) == 852_992


def test_initial_values() -> None:
    g = small(mapping_layers=3, mapping_width=256)
    assert torch.equal(g.constant, torch.ones(1, 12, 4, 4, dtype=torch.float64))
    weights = torch.cat([layer.weight.flatten() for layer in g.mapping.layers[1:]])
    assert weights.std().item() == pytest.approx(100, rel=0.02)  # rate 0.01
    assert not any(p.any() for name, p in g.named_parameters() if name.endswith(("bias", ".noise")))
    assert not g.w_average.value.any()
    styles = torch.cat([ending.style.weight.flatten() for ending in g.endings])
    assert styles.std().item() == pytest.approx(1, rel=0.03)


def test_noise_has_no_effect_at_the_start_and_then_it_has() -> None:
    g, (z, y) = small(), inputs()
    first, second = g(z, y, Stage(16)), g(z, y, Stage(16))
    assert torch.equal(first, second)
    with torch.no_grad():
        g.blocks["16"].ending2.noise.fill_(0.5)
    torch.manual_seed(0)
    first, second = g(z, y, Stage(16)), g(z, y, Stage(16))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(g(z, y, Stage(16)), first)
    g.eval()
    assert torch.equal(g(z, y, Stage(16)), g(z, y, Stage(16)))
    whole = g.synthesised(torch.randn(2, 6, 7, dtype=torch.float64), Stage(16))
    own = [ending.stored for ending in g.endings]
    again = g.synthesised(torch.randn(2, 6, 7, dtype=torch.float64), Stage(16), own)
    assert whole.shape == again.shape == (2, 2, 16, 16)


def test_every_layer_and_sample_has_a_map_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, randn = [], torch.randn
    g, (z, y) = small(), inputs()
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(randn(*a, **k)) or drawn[-1])
    g(z, y, Stage(8))
    assert [tuple(noise.shape) for noise in drawn] == [(4, 1, 4, 4)] * 2 + [(4, 1, 8, 8)] * 2
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_a_layers_output_has_mean_0_and_variance_1_for_a_style_of_0() -> None:
    ending = small().endings[3]
    x = torch.randn(5, 8, 8, 8, dtype=torch.float64) * 3 + 2
    out = ending(x, torch.zeros(5, 7, dtype=torch.float64))
    torch.testing.assert_close(out.mean((2, 3)), torch.zeros(5, 8, dtype=torch.float64))
    torch.testing.assert_close(out.var((2, 3), unbiased=False), torch.ones(5, 8, dtype=torch.float64))


def test_the_equalised_mapping_keeps_unit_variance() -> None:
    g = small(mapping_layers=1, mapping_width=4000, latent_norm="separate")
    z, y = inputs(64)
    before = F.linear(torch.cat([z, z], 1) * 0 + 1.0, g.mapping.layers[0].weight * g.mapping.layers[0].scale)
    assert before.square().mean().item() == pytest.approx(2.0, rel=0.05)  # gain sqrt(2)
    assert torch.isfinite(g.mapping(z, y)).all()


def test_the_mean_of_w_follows_every_training_pass_of_replica_0() -> None:
    average = StyleAverage(3, 0.995).double()
    batches = torch.randn(3, 8, 3, dtype=torch.float64)
    expected = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        average(batch)
        expected = batch.mean(0) + 0.995 * (expected - batch.mean(0))
    torch.testing.assert_close(average.value, expected)
    with replica_passes(average) as start_replica:
        start_replica(1)
        average(batches[0])
        torch.testing.assert_close(average.value, expected)
        start_replica(0)
        average(batches[0])
        assert not torch.equal(average.value, expected)
    kept = average.value.clone()
    average.eval()(batches[1])
    assert torch.equal(average.value, kept)


def test_mixing_takes_the_second_w_from_the_cutoff_on() -> None:
    g, (z, y) = small(), inputs()
    other = torch.randn_like(z)
    g.eval()
    whole, second = g(z, y, Stage(16)), g(other, y, Stage(16))
    n = g.layers
    mixed = g(z, y, Stage(16), other, torch.tensor([n, 0, 2, n - 1]))
    torch.testing.assert_close(mixed[0], whole[0])
    torch.testing.assert_close(mixed[1], second[1])
    for row in (2, 3):
        assert (mixed[row] - whole[row]).abs().max() > 1e-6
        assert (mixed[row] - second[row]).abs().max() > 1e-6
    styles = torch.stack([g.mapping(z, y), g.mapping(other, y)])
    by_hand = torch.stack([styles[0 if layer < 2 else 1, 2] for layer in range(n)])
    torch.testing.assert_close(g.synthesised(by_hand[None], Stage(16))[0], mixed[2])


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_fade_begins_and_ends_where_the_stages_next_to_it_are(network: str) -> None:
    g, (z, y) = small().eval(), inputs()
    d = StyleGANDiscriminatorConfig(**SMALL).build(MODEL).double()
    images = torch.randn(4, 2, 16, 16, dtype=torch.float64)

    def at(side: int, fade: float) -> torch.Tensor:
        if network == "generator":
            made = g(z, y, Stage(side, fade))
            return F.interpolate(made, (16, 16), mode="nearest")
        return d(F.avg_pool2d(images, 16 // side), y, Stage(side, fade)).logits

    torch.testing.assert_close(at(16, 0.0), at(8, 1.0))
    torch.testing.assert_close(at(16, 1e-9), at(8, 1.0), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(at(16, 1 - 1e-9), at(16, 1.0), atol=1e-7, rtol=1e-6)
    assert (at(16, 1.0) - at(8, 1.0)).abs().max() > 1e-3


def test_levels_that_do_not_act_have_no_gradient() -> None:
    g, (z, y) = small(), inputs()
    d = StyleGANDiscriminatorConfig(**SMALL).build(MODEL).double()
    d(g(z, y, Stage(8)), y, Stage(8)).logits.sum().backward()
    asleep = {name for net in (g, d) for name, p in net.named_parameters() if p.grad is None}
    parts = ("blocks.16.", *(f"{part}.{side}." for part in ("to_rgb", "from_rgb") for side in (4, 16)))
    assert asleep == {name for net in (g, d) for name, _ in net.named_parameters() if name.startswith(parts)}


def test_a_label_has_its_own_logit() -> None:
    d = StyleGANDiscriminatorConfig(**SMALL).build(MODEL).double()
    images = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        d.output.weight.zero_()
        d.output.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert d(images, torch.tensor([2, 0, 1]), Stage(16)).logits.tolist() == [3.0, 1.0, 2.0]


def test_a_class_may_be_a_mixture() -> None:
    g, (z, y) = small().eval(), inputs()
    torch.testing.assert_close(g(z, F.one_hot(y, 3).double(), Stage(16)), g(z, y, Stage(16)))
    halves = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).expand(4, 3)
    assert torch.isfinite(g(z, halves, Stage(16))).all()


def test_the_blur_is_bilinear_doubling_of_ones() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16
    padded = F.pad(x, [1] * 4)
    by_hand = sum(kernel[u, v] * padded[:, :, u : u + 8, v : v + 8] for u in range(3) for v in range(3))
    torch.testing.assert_close(blur(x), by_hand)


def test_without_the_additions_the_networks_are_those_of_progressive_growing() -> None:
    """Row A of Table 1: the same images and logits from the same numbers."""
    model = ModelConfig(resolution=16, image_channels=2, classes=0, latent_dim=6)
    off = dict.fromkeys(("styles", "constant_input", "noise", "instance_norm", "blur"), False)
    g = small(model, mapping_layers=0, pixel_norm=True, **off)
    older = PGGANGeneratorConfig(**SMALL).build(model).double()
    names = {"dense_bias": "first.bias", "first.weight": "conv.weight", "first.bias": "second.bias"}
    own = g.state_dict()
    with torch.no_grad():
        for name, value in older.state_dict().items():
            new = names.get(name, name)
            if name.endswith((".conv1.bias", ".conv2.bias")):
                new = name.replace("conv1", "ending1").replace("conv2", "ending2")
            value.copy_(own[new].normal_() if name.endswith("bias") else own[new])
    d = StyleGANDiscriminatorConfig(**SMALL, blur=False).build(model).double()
    other = PGGANDiscriminatorConfig(**SMALL).build(model).double()
    other.load_state_dict(d.state_dict())
    z, y = torch.randn(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    for stage in (Stage(4), Stage(8, 0.3), Stage(16, 0.6), Stage(16)):
        images = older(z, y, stage)
        torch.testing.assert_close(g(z, y, stage), images)
        torch.testing.assert_close(d(images, y, stage).logits, other(images, y, stage).logits)


def test_layers_say_what_they_do() -> None:
    g, d = small(), StyleGANDiscriminatorConfig(**SMALL).build(MODEL)
    assert silent_layers(g) == silent_layers(d) == []
    assert draws_inside(g)
    assert not draws_inside(small(noise=False))
    assert not draws_inside(d)
    assert not can_group(g)
    assert not can_repeat(g)
