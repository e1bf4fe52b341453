"""Super-resolution against an independent form in NumPy (derivatives by complex steps), and what is easy to get wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.games import problem
from tests.support.pair_arrays import judge, upscale
from tests.support.reference import relu, slope
from trainer.foundation.keys import Keys
from trainer.foundation.pixels import normalise
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.superresolution import SuperResolutionConfig, shrunk
from trainer.models import ModelConfig
from trainer.models.layers import BatchNorm2d
from trainer.models.upscaling import PairDiscriminatorConfig, UpscalerConfig
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import read_launch
from trainer.training.iteration import run_iteration

MODEL = ModelConfig(resolution=32, image_channels=2, classes=0)
GENERATOR = UpscalerConfig(channels=2, noise_channels=3)
COUNT = 3


def game(join="projection", scaled=True, **settings):
    batch = BatchConfig(real_per_replica=COUNT, generated_per_replica=COUNT)
    schedule = ScheduleConfig(discriminator_steps=2)
    discriminator = PairDiscriminatorConfig(channels=2, join=join, scaled=scaled)
    chosen = {"generator": GENERATOR, "discriminator": discriminator, "batch": batch, "schedule": schedule}
    return SuperResolutionConfig().build(problem(MODEL, **(chosen | settings)))


def lively(module, seed):
    random = torch.Generator().manual_seed(seed)
    for value in module.double().state_dict().values():
        value.copy_(0.5 * torch.randn(value.shape, generator=random, dtype=torch.float64))
    for name, value in module.named_buffers():
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return module


def arrays(module):
    return {name: value.detach().double().numpy().copy() for name, value in module.state_dict().items()}


def pair(seed):
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (COUNT, 2, 32, 32)), random.uniform(-1, 1, (COUNT, 2, 8, 8))


def planes(seed):
    random = np.random.default_rng(seed)
    return [random.normal(size=(COUNT, 3, side, side)) for side in (8, 16)]


# The networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (UpscalerConfig(), 5_330_825),
        (PairDiscriminatorConfig(), 29_390_340),
        (PairDiscriminatorConfig(join="concat"), 29_401_557),
    ],
)
def test_the_parameters_are_as_many_as_the_branchs(config, count):
    with torch.device("meta"):
        network = config.build(ModelConfig(resolution=128, classes=0))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("train", [True, False])
def test_the_generator_equals_the_independent_form(train):
    G = lively(GENERATOR.build(MODEL), 1).train(train)
    before, small, noise = arrays(G), pair(0)[1], planes(1)
    found = G(torch.from_numpy(small), [torch.from_numpy(plane) for plane in noise])
    expected, moved = upscale(before, small, noise, train)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-10)
    for name, value in moved.items():
        np.testing.assert_allclose(G.state_dict()[name].numpy(), value, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("join", ["projection", "concat"])
def test_the_discriminator_equals_the_independent_form(join, scaled):
    D = lively(PairDiscriminatorConfig(channels=2, join=join, scaled=scaled).build(MODEL), 2)
    before, (large, small) = arrays(D), pair(3)
    found = D(torch.from_numpy(large), torch.from_numpy(small))
    expected, moved = judge(before, large, small, scaled)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10)
    for name, value in moved.items():
        np.testing.assert_allclose(D.state_dict()[name].numpy(), value, atol=1e-10, err_msg=name)


def test_the_inner_product_is_with_the_small_image():
    """Linear in y where it is projected, with the official divisor: the rest of f does not see y."""
    D = lively(PairDiscriminatorConfig(channels=2).build(MODEL), 2).eval()
    large, small = map(torch.from_numpy, pair(3))
    nothing, once, twice = (D(large, factor * small) for factor in (0.0, 1.0, 2.0))
    torch.testing.assert_close(twice - once, once - nothing)
    plain = lively(PairDiscriminatorConfig(channels=2, scaled=False).build(MODEL), 2).eval()
    inner = (plain(large, small) - plain(large, 0 * small)) / (once - nothing)
    torch.testing.assert_close(inner, torch.full_like(inner, (2 * 8 * 8) ** 0.5))


def test_noise_joins_the_main_path_of_the_doubling_blocks_before_they_double():
    G = GENERATOR.build(MODEL)
    shapes = {number: block.conv1.in_channels for number, block in enumerate(G.blocks)}
    assert shapes == {0: 2, 1: 8, 2: 8, 3: 8, 4: 8 + 3, 5: 4, 6: 4 + 3, 7: 2}
    assert [plane.shape for plane in G.noise(torch.Generator(), 8, 8)] == [(1, 3, 8, 8), (1, 3, 16, 16)]
    assert [block.shortcut.in_channels for block in (G.blocks[4], G.blocks[6])] == [8, 4]
    assert [block.draws for block in G.blocks] == [False] * 4 + [True, False, True, False]
    assert not any(block.draws for block in UpscalerConfig(channels=2, noise_channels=0).build(MODEL).blocks)


# An iteration ---------------------------------------------------------------------------------------------------------


def drawn(generator, seed):
    """The planes that a pass draws after this seed."""
    torch.manual_seed(seed)
    return [torch.randn(COUNT, 3, side, side).double().numpy() for side in (8, 16)]


@pytest.mark.parametrize("join", ["projection", "concat"])
def test_a_whole_iteration_equals_the_independent_form(join):
    """Every loss; of every parameter the gradient along a random direction; both players' updates by Chainer's Adam."""
    method, launch, adam = game(join), read_launch(), AdamConfig()
    modules = {
        "generator": lively(method.build("generator"), 1),
        "discriminator": lively(method.build("discriminator"), 2),
    }
    players = {name: Player(name, {name: module}, adam, launch) for name, module in modules.items()}
    nets = {name: arrays(module) for name, module in modules.items()}
    second = {name: {} for name in modules}
    times = dict.fromkeys(modules, 0)
    random = np.random.default_rng(9)
    draws = {turn.number: pair(20 + turn.number) for turn in method.turns(0)}

    for turn in method.turns(0):  # one at a time, to look at each
        large, small = draws[turn.number]
        draw = {"small": torch.from_numpy(small), "large": torch.from_numpy(large)}
        scalars = run_iteration(
            method,
            players,
            [turn],
            lambda turn, draw=draw: [draw],
            {},
            launch=launch,
            replicas=1,
            rate_factor=0.7,
            seed_layers=lambda turn, replica: torch.manual_seed(100 + turn.number),
        )
        noise, mover = drawn(modules["generator"], 100 + turn.number), turn.player
        G, D = nets["generator"], nets["discriminator"]
        made, moved_of_generator = upscale(G, small, noise)

        def passes(d, images, small=small):  # real first, then generated: u moves twice
            real, moved = judge(d, images[0], small)
            fake, again = judge({**d, **moved}, images[1], small)
            return real, fake, again

        if mover == "generator":
            moved_of_discriminator = judge(D, made, small)[1]

            def loss(arrays, D=D, small=small, noise=noise):
                return -judge(D, upscale(arrays, small, noise)[0], small)[0].mean()

        else:
            moved_of_discriminator = passes(D, (large, made))[2]

            def loss(arrays, large=large, made=made, passes=passes):
                real, fake, _ = passes(arrays, (large, made))
                return relu(1 - real).mean() + relu(1 + fake).mean()

        assert scalars[f"{mover}/loss"].item() == pytest.approx(loss(nets[mover]), rel=1e-6)  # the log is float32
        times[mover] += 1
        for name, parameter in modules[mover].named_parameters() if turn.number < 2 else ():
            direction = random.normal(size=parameter.shape)
            along = slope(loss, nets[mover], {name: direction})
            gradient = parameter.grad.numpy()
            assert (gradient * direction).sum() == pytest.approx(along, rel=1e-9, abs=1e-9), name
        for name, parameter in modules[mover].named_parameters():
            gradient = parameter.grad.numpy()
            v = second[mover][name] = 0.9 * second[mover].get(name, 0.0) + 0.1 * gradient**2
            rate = 0.7 * 2e-4 * np.sqrt(1 - 0.9 ** times[mover])
            nets[mover][name] = nets[mover][name] - rate * gradient / (np.sqrt(v) + 1e-8)
            np.testing.assert_allclose(parameter.detach().numpy(), nets[mover][name], rtol=0, atol=1e-11, err_msg=name)
        nets["generator"] |= moved_of_generator
        nets["discriminator"] |= moved_of_discriminator
        for player, module in modules.items():
            for name, value in module.named_buffers():
                np.testing.assert_allclose(value.numpy(), nets[player][name], atol=1e-9, err_msg=f"{player} {name}")


def test_every_turn_reads_its_own_images_and_the_fake_has_the_reals_small_image():
    method = game()
    turns = method.turns(0)
    assert [(turn.player, turn.number, dict(turn.reads)) for turn in turns] == [
        ("generator", 0, {"data": COUNT}),
        ("discriminator", 1, {"data": COUNT}),
        ("discriminator", 2, {"data": COUNT}),
    ]
    real = {"data": {"image": torch.rand(COUNT, 2, 32, 32) * 2 - 1}}
    draw = method.draw(turns[1], Keys(0, 0, 1, 0), real)
    torch.testing.assert_close(draw["small"], shrunk(draw["large"]), atol=2 / 128, rtol=0)
    asked = []
    method.ahead(turns[1], {"generator": asked.append}, draw)
    assert asked[0] is draw["small"]
    assert "large" not in method.draw(turns[0], Keys(0, 0, 0, 0), real)
    # The noise of the small images is keyed, and another in each turn.
    again, other = (method.draw(turns[1], Keys(0, 0, turn, 0), real)["small"] for turn in (1, 2))
    assert torch.equal(again, draw["small"])
    assert not torch.equal(other, draw["small"])


# Small images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dequantized", [True, False])
def test_small_images_are_pillows_within_a_grey_level(dequantized):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    pixels[0, :, :24] = 255  # an edge
    noise = torch.Generator().manual_seed(1) if dequantized else None
    found = shrunk(normalise(torch.from_numpy(pixels), noise), torch.Generator() if dequantized else None)
    scale = 128.0 if dequantized else 127.5
    grey = ((found + 1) * scale).floor() if dequantized else ((found + 1) * scale).round()
    expected = [np.asarray(Image.fromarray(image).resize((12, 8), Image.Resampling.BILINEAR)) for image in pixels]
    difference = np.abs(grey.permute(0, 2, 3, 1).numpy() - np.stack(expected).astype(float))
    assert difference.max() <= 1
    assert difference.mean() < 0.15  # Pillow rounds after each of two passes
    # Without antialiasing it would be another image.
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), (8, 12), mode="bilinear"
    )
    assert np.abs(plain.permute(0, 2, 3, 1).numpy() - np.stack(expected)).mean() > 10


def test_samples_are_functions_of_their_keys():
    method = game()
    G = lively(method.build("generator"), 1).eval()
    sampler = method.sampler({"generator": G})
    keys = sampler.draw(torch.Generator().manual_seed(3), 4)
    small = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    made = sampler.sample(keys, small)
    assert made.shape == (4, 2, 32, 32)
    torch.testing.assert_close(sampler.sample(keys[2:3], small[2:3]), made[2:3])
    assert not torch.allclose(sampler.sample(keys.flip(0), small), made)
    assert sampler.remake(torch.rand(2, 5, 11, dtype=torch.float64), torch.Generator().manual_seed(1)).shape == (
        2,
        20,
        44,
    )
    assert not [layer for layer in G.modules() if isinstance(layer, BatchNorm2d) and layer.training]
