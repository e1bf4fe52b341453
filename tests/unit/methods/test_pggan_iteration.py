"""Losses, gradients, steps, resets and the average against the official form in float64, across the edges of a fade."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.games import problem
from tests.support.grown_form import OfficialForm
from trainer.foundation.keys import Keys
from trainer.methods.growth import GrowthConfig
from trainer.methods.pggan import PGGANConfig, PGGANMethod
from trainer.methods.protocol import Turn
from trainer.methods.schedule import BatchConfig
from trainer.methods.terms.penalty_terms import GradientPenaltyConfig, NoPenaltyConfig
from trainer.models import ModelConfig
from trainer.models.pggan import PGGANDiscriminatorConfig, PGGANGeneratorConfig
from trainer.players.ema import Ema, EmaConfig
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import read_launch
from trainer.training.iteration import run_iteration

STABLE, FADE, BATCH, RATE, HALF_LIFE = 16, 24, 8, 3e-3, 40
FACTORS = {8: 1.5, 16: 0.5}
VARIANTS: dict[str, tuple[int, str, float, bool]] = {  # classes, loss, target, convolution before activation and mean
    "classes": (3, "wasserstein", 1.0, False),
    "another target": (0, "wasserstein", 7.0, True),
    "least squares": (3, "inverted_least_squares", 1.0, True),
}


def method_of(classes: int, loss: str, target: float, unfused: bool) -> PGGANMethod:
    widths: dict[str, Any] = {"fmap_base": 24, "fmap_max": 8}
    penalty = GradientPenaltyConfig(target=target, drift=0.001) if loss == "wasserstein" else NoPenaltyConfig()
    config = PGGANConfig(
        growth=GrowthConfig(stable_images=STABLE, fade_images=FADE, repeats=1, rates=FACTORS),
        generator=PGGANGeneratorConfig(**widths),
        discriminator=PGGANDiscriminatorConfig(
            **widths, group=4, pool="after_activation" if unfused else "before_activation"
        ),
        loss=loss,
        penalty=penalty,
    )
    model = ModelConfig(resolution=16, image_channels=2, classes=classes, latent_dim=6)
    batch = BatchConfig(replicas=1, real_per_replica=BATCH, dequantize=False)
    return config.build(problem(model, generator=None, discriminator=None, batch=batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_iterations_across_a_whole_fade_are_those_of_the_official_form(variant: str) -> None:
    """From before the first fade to behind the second one: four resets. Layers that do not act keep their bits."""
    classes, loss, target, unfused = VARIANTS[variant]
    method = method_of(classes, loss, target, unfused)
    torch.manual_seed(1)
    modules = {name: method.build(name).double() for name in ("generator", "discriminator")}
    with torch.no_grad():
        for name, parameter in (item for module in modules.values() for item in module.named_parameters()):
            if "bias" in name:
                parameter.normal_(std=0.1)
    form = OfficialForm(
        dict(modules["generator"].state_dict()),
        dict(modules["discriminator"].state_dict()),
        16,
        unfused=unfused,
        group=4,
    )
    adam = AdamConfig(learning_rate=RATE, beta1=0.0, beta2=0.99)
    launch = read_launch("cpu")
    players = {name: Player(name, {name: modules[name]}, adam, launch) for name in modules}
    ema = Ema(players["generator"].modules, EmaConfig(half_life=HALF_LIFE, warm_up=False, taken="before"))
    asleep = {name: value.clone() for name, value in modules["generator"].state_dict().items() if "16" in name}
    random = np.random.default_rng(0)
    memory: dict[int, dict[str, Tensor]] = {0: {}}
    for iteration in range(12):
        pixels = random.integers(0, 256, (BATCH, 2, 16, 16), dtype=np.uint8)
        of_data = torch.from_numpy(random.integers(0, max(classes, 1), BATCH))
        turns, drawn = method.turns(iteration), {}
        for turn in turns:
            real = {"data": {"image": torch.from_numpy(pixels).double() / 127.5 - 1.0, "class": of_data}}
            found = method.draw(turn, Keys(0, iteration, turn.number, 0), real)
            drawn[turn.number] = {k: v.double() if v.is_floating_point() else v for k, v in found.items()}

        def draws(turn: Turn, drawn: dict[int, dict[str, Tensor]] = drawn) -> list[dict[str, Tensor]]:
            return [drawn[turn.number]]

        ema.update(players["generator"].modules, iteration, BATCH)
        scalars = run_iteration(
            method,
            players,
            turns,
            draws,
            memory,
            launch=launch,
            replicas=1,
            rate_factor=1.0,
            seed_layers=lambda turn, replica, t=iteration: torch.manual_seed(1000 * t + turn.number),  # type: ignore[misc]
        )
        torch.manual_seed(1000 * iteration)
        mix = 1.0 - torch.rand(BATCH, dtype=torch.float64)
        expected = form.iterate(
            stable=STABLE,
            fade=FADE,
            pixels=pixels,
            labels=torch.stack([drawn[0]["labels"], drawn[1]["labels"]]),
            latents=[drawn[0]["latents"], drawn[1]["latents"]],
            codes=torch.stack([F.one_hot(drawn[n]["labels"], max(classes, 1)).double()[:, :classes] for n in (0, 1)]),
            mix=mix,
            loss=loss,
            target=target,
            rate=RATE * FACTORS.get(16 >> math.floor(form.lod(STABLE, FADE)), 1.0),
            half_life=HALF_LIFE,
        )
        for name, value in expected.items():
            assert scalars[f"{name}/loss"].item() == pytest.approx(value, rel=1e-5), iteration  # logged in float32
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                difference = (parameter - form.nets[name][key]).abs().max().item()
                assert difference < 1e-9, (iteration, name, key, difference)
        for key, parameter in ema.modules["generator"].named_parameters():
            torch.testing.assert_close(parameter, form.average[key], rtol=0, atol=1e-9)
        if method.table.at(iteration).stage.resolution < 16:
            current = modules["generator"].state_dict()
            assert all(torch.equal(current[key], value) for key, value in asleep.items())
            steps = players["generator"].steps
            assert steps["blocks.16.conv1.weight"] == 0
            assert steps["first.weight"] > 0
    resets = [t for t in range(12) if method.table.at(t).forgets]
    assert resets == [3, 5, 8, 10]
