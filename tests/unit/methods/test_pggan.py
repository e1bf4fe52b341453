"""The game of growing networks: its turns, its units, its memory, and what it refuses."""

from pathlib import Path

import pytest
import torch

from tests.support.checkout import ROOT
from tests.support.games import problem
from trainer.config import Config, check_launch, load_config
from trainer.costs.counted import count
from trainer.costs.dry_run import describe
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.pggan import PGGANConfig, PGGANMethod
from trainer.methods.sampling import Growing, Truncating
from trainer.methods.schedule import BatchConfig
from trainer.methods.terms.penalty_terms import GradientPenaltyConfig, R1Config
from trainer.models import ModelConfig
from trainer.models.growing import Stage
from trainer.models.pggan import PGGANDiscriminatorConfig, PGGANGeneratorConfig
from trainer.plan import Assumptions, plan
from trainer.processes.launch import Launch, read_launch
from trainer.speed.settings import SpeedConfig


def settings(*overrides: str) -> Config:
    return load_config(str(ROOT / "configs/fashion32_pggan.yaml"), overrides)


def method_of(config: PGGANConfig, classes: int = 0, resolution: int = 16) -> PGGANMethod:
    model = ModelConfig(resolution=resolution, image_channels=1, classes=classes, latent_dim=6)
    batch = BatchConfig(replicas=1, real_per_replica=4, dequantize=False)
    return config.build(problem(model, generator=None, discriminator=None, batch=batch))


def test_an_iteration_is_a_discriminators_turn_and_a_generators_with_fresh_latents() -> None:
    method = settings().objective.build(settings().problem())
    turns = method.turns(700)
    assert [turn.player for turn in turns] == ["discriminator", "generator"]
    assert [turn.reads for turn in turns] == [{"data": 16}, {}]
    assert turns[0].form == turns[1].form == {"resolution": 8.0, "fade": 0.12}
    real = {"data": {"image": torch.zeros(16, 1, 32, 32), "class": torch.arange(16) % 10}}
    draws = [method.draw(turn, Keys(0, 700, turn.number, 0), real) for turn in turns]
    assert torch.equal(draws[0]["labels"], real["data"]["class"])  # the fakes have the reals' labels
    assert draws[0]["real_images"].shape == (16, 1, 8, 8)
    assert not torch.equal(draws[0]["latents"], draws[1]["latents"])


@pytest.mark.parametrize(("at", "factor"), [("full", 4.0), ("stage", 1.0)])
def test_gradients_are_those_of_full_size_images(at: str, factor: float) -> None:
    """At 4 of 16 px a gradient is 4 times as short: R1 is 4^2 times as small."""
    small = {"fmap_base": 32, "fmap_max": 8}
    config = PGGANConfig(
        generator=PGGANGeneratorConfig(**small),  # type: ignore[arg-type]
        discriminator=PGGANDiscriminatorConfig(**small),  # type: ignore[arg-type]
        penalty=R1Config(gamma=2.0),
        penalty_at=at,  # type: ignore[arg-type]
    )
    method = method_of(config)
    torch.manual_seed(0)
    networks = {name: method.build(name) for name in ("generator", "discriminator")}
    turn = method.turns(0)[0]
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    draw = method.draw(turn, Keys(0, 0, 0, 0), {"data": {"image": images}})
    draw |= method.ahead(turn, networks, draw)
    losses, _ = method.loss(turn, networks, draw, {})
    x = draw["real_images"].requires_grad_(True)
    (gradient,) = torch.autograd.grad(networks["discriminator"](x, draw["labels"], Stage(4)).logits.sum(), x)
    expected = 0.5 * gradient.square().sum((1, 2, 3)).mean() / factor**2
    torch.testing.assert_close(losses["r1"], expected)


def test_the_noise_follows_the_running_score_of_generated_images() -> None:
    small = {"fmap_base": 32, "fmap_max": 8}
    config = PGGANConfig(
        generator=PGGANGeneratorConfig(**small),  # type: ignore[arg-type]
        discriminator=PGGANDiscriminatorConfig(**small, noisy=True),  # type: ignore[arg-type]
        loss="inverted_least_squares",
    )
    method = method_of(config)
    assert method.draws
    networks = {name: method.build(name) for name in ("generator", "discriminator")}
    with torch.no_grad():
        networks["discriminator"].output.weight.zero_()
        networks["discriminator"].output.bias.fill_(3.0)
    memory = method.memory(0)
    assert memory == {"score": torch.zeros(())}
    of_discriminator, of_generator = method.turns(0)
    draw = method.draw(of_discriminator, Keys(0, 0, 0, 0), {"data": {"image": torch.zeros(4, 1, 16, 16)}})
    draw |= method.ahead(of_discriminator, networks, draw)
    for step in range(1, 9):  # the score 3 counts as 1
        _, memory = method.loss(of_discriminator, networks, draw, memory)
        assert memory["score"].item() == pytest.approx(1 - 0.9**step)
    assert method.loss(of_generator, networks, draw, memory)[1] is memory
    assert method_of(PGGANConfig()).memory(0) == {}


def test_it_is_sampled_by_class_at_the_level_that_it_has_reached() -> None:
    config = settings()
    method = config.objective.build(config.problem())
    generator = method.build("generator")
    sampler = method.sampler({"generator": generator})
    assert isinstance(sampler, Growing)
    assert not isinstance(sampler, Truncating)
    generator(torch.randn(2, 64), torch.zeros(2, dtype=torch.int64), Stage(8, 0.5))
    assert sampler.grown == {"resolution": 8.0, "fade": 0.5}
    generator.eval()
    assert sampler.sample(torch.randn(3, 64), torch.arange(3)).shape == (3, 1, 32, 32)


def test_an_image_at_4_px_costs_at_most_a_tenth() -> None:
    """Operations of both turns, counted, of one image: the plain forms and the forms of this machine."""
    config, device = settings(), torch.device("cpu")
    for speed in (SpeedConfig(), SpeedConfig(convolutions="plain")):
        costs = [sum(count(config, speed, device, iteration=t).turns.values()) for t in (0, 1252, 2500, 3752)]
        assert costs == sorted(costs)
        assert costs[0] < costs[-1] / 10
        print("operations next to 32 px, at 4, 8, 16 px:", [f"1/{costs[-1] / cost:.1f}" for cost in costs[:3]])


def test_the_dry_run_and_the_plan_show_the_segments() -> None:
    config = settings()
    text = describe(config, read_launch("cpu"))
    assert "# segments" in text
    assert "| 628 to 1,252 | 10,048 | 8 px fades in | 1 x 16 | x 1 | yes | 10,048 |" in text
    assert "3,752 to 6,252" in text
    planned = plan(config, 1, "h100", "bf16", Assumptions())
    rows = [line for line in planned.splitlines() if "fades in" in line]
    assert len(rows) == 3
    assert "in all" in planned


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--model.resolution", "48"], r"^model\.resolution: is 48, .*power of two"),
        (
            ["--batch.real_per_replica", "10"],
            r"^batch\.real_per_replica: a replica has 10 images at 4 px, which groups of 4",
        ),
        (["--objective.growth.batches", "{16: 6}"], r"^objective\.growth\.batches: a replica has 6 images at 16 px"),
        (["--batch.dequantize", "true"], r"^batch\.dequantize: is true"),
        (["--generator.name", "resnet"], r"^generator\.name: is set, but the networks of objective\.name pggan"),
    ],
)
def test_what_cannot_grow_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        settings(*overrides)


def test_zero_is_refused_in_a_sentence() -> None:
    launch = Launch(0, 2, 0, torch.device("cpu"), "fp32", "zero1")
    with pytest.raises(SettingError, match=r"^objective\.penalty: is on, but the launch asks for zero1"):
        check_launch(settings(), launch)
    with pytest.raises(SettingError, match=r"^objective\.name: pggan lets optimizers start anew, which zero1 cannot"):
        check_launch(settings("--objective.penalty", "{name: none}"), launch)


def test_a_target_other_than_1_keeps_the_penaltys_weight() -> None:
    """Divided by its square, as the official code does."""
    assert PGGANConfig().penalty == GradientPenaltyConfig(weight=10.0, target=1.0, drift=0.001)


def test_the_configurations_have_the_official_lengths() -> None:
    for name, images in (
        ("celebahq1024_pggan", 12_000_000),
        ("lsun256_pggan", 20_000_000),
        ("cifar10_pggan", 20_000_000),
    ):
        config = load_config(str(Path(ROOT) / f"configs/{name}.yaml"))
        method = config.objective.build(config.problem())
        assert method.table.iterations(images) == config.run.iterations
