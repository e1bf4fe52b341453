"""StyleGAN's losses, gradients, steps, resets and averages against the official form in float64, across a whole fade."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.games import problem
from tests.support.styled_form import StyledForm
from trainer.foundation.keys import Keys
from trainer.methods.growth import GrowthConfig
from trainer.methods.protocol import Turn
from trainer.methods.schedule import BatchConfig
from trainer.methods.stylegan import StyleGANConfig, StyleGANMethod
from trainer.methods.terms.penalty_terms import GradientPenaltyConfig, R1Config
from trainer.models import ModelConfig
from trainer.models.stylegan import StyleGANGeneratorConfig, layers_at
from trainer.models.stylegan_discriminator import StyleGANDiscriminatorConfig
from trainer.players.ema import Ema, EmaConfig
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import read_launch
from trainer.training.iteration import run_iteration

STABLE, FADE, BATCH, RATE, HALF_LIFE, SIDE = 16, 24, 8, 3e-3, 40, 16
F_ROW = {
    "styles": True,
    "constant_input": True,
    "noise": True,
    "pixel_norm": False,
    "instance_norm": True,
    "blur": True,
}
VARIANTS: dict[str, tuple[int, str, dict[str, bool]]] = {  # classes, loss, row of Table 1
    "F with classes": (3, "non_saturating", F_ROW),
    "E's loss of CelebA-HQ": (0, "wasserstein", F_ROW),
    "C": (0, "non_saturating", F_ROW | {"constant_input": False, "noise": False}),
    "B with classes": (
        2,
        "non_saturating",
        dict.fromkeys(F_ROW, False) | {"pixel_norm": True, "blur": True},
    ),
}


def method_of(classes: int, loss: str, row: dict[str, bool]) -> StyleGANMethod:
    widths: dict[str, Any] = {"fmap_base": 24, "fmap_max": 8}
    mapping = {"mapping_layers": 2 if row["styles"] else 0, "mapping_width": 5}
    config = StyleGANConfig(
        growth=GrowthConfig(first_resolution=8, stable_images=STABLE, fade_images=FADE, repeats=1),
        generator=StyleGANGeneratorConfig(**widths, **mapping, **row),  # type: ignore[arg-type]
        discriminator=StyleGANDiscriminatorConfig(**widths, blur=row["blur"]),
        loss=loss,
        penalty=R1Config(gamma=3.0) if loss == "non_saturating" else GradientPenaltyConfig(drift=0.001),
        mixing=0.7 if row["styles"] else 0.0,
    )
    model = ModelConfig(resolution=SIDE, image_channels=2, classes=classes, latent_dim=6)
    batch = BatchConfig(replicas=1, real_per_replica=BATCH, dequantize=False)
    return config.build(problem(model, generator=None, discriminator=None, batch=batch))


def noise_of(seed: int, side: int) -> list[Tensor]:
    """What the layers draw in a pass after this seed; zeros for those that do not act."""
    torch.manual_seed(seed)
    sides = [2 ** (2 + layer // 2) for layer in range(layers_at(SIDE))]
    acting = layers_at(side)
    return [
        torch.randn(BATCH, 1, s, s, dtype=torch.float64)
        if layer < acting
        else torch.zeros(BATCH, 1, s, s, dtype=torch.float64)
        for layer, s in enumerate(sides)
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_iterations_across_a_whole_fade_are_those_of_the_official_form(variant: str) -> None:
    """From before the fade of 16 px to behind it: two resets. Layers that do not act keep their bits."""
    classes, loss, row = VARIANTS[variant]
    method = method_of(classes, loss, row)
    torch.manual_seed(1)
    modules = {name: method.build(name).double() for name in ("generator", "discriminator")}
    with torch.no_grad():  # else noise has no effect, and the norm leaves of the constant's gradient the rounding alone
        for name, parameter in (item for module in modules.values() for item in module.named_parameters()):
            if "bias" in name or name.endswith("noise"):
                parameter.normal_(std=10.0 if name.startswith("mapping") else 0.1)
            if name == "constant":
                parameter.normal_()
    states = {name: dict(module.state_dict()) for name, module in modules.items()}
    form = StyledForm(states["generator"], states["discriminator"], SIDE, group=4, first=8, **row)
    adam = AdamConfig(learning_rate=RATE, beta1=0.0, beta2=0.99)
    launch = read_launch("cpu")
    players = {name: Player(name, {name: modules[name]}, adam, launch) for name in modules}
    ema = Ema(players["generator"].modules, EmaConfig(half_life=HALF_LIFE, warm_up=False, taken="before"))
    asleep = {name: value.clone() for name, value in modules["generator"].state_dict().items() if "16" in name}
    random = np.random.default_rng(0)
    cutoffs_seen = set()
    for iteration in range(7):
        pixels = random.integers(0, 256, (BATCH, 2, SIDE, SIDE), dtype=np.uint8)
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
            {0: {}},
            launch=launch,
            replicas=1,
            rate_factor=1.0,
            seed_layers=lambda turn, replica, t=iteration: torch.manual_seed(1000 * t + turn.number),  # type: ignore[misc]
        )
        side = method.table.at(iteration).stage.resolution
        none = noise_of(0, 0) if not row["noise"] else None
        of_generator = none or noise_of(1000 * iteration + 1, side)
        of_discriminator = none or noise_of(1000 * iteration, side)
        mix = 1.0 - torch.rand(BATCH, dtype=torch.float64) if loss == "wasserstein" else None  # behind the noise
        cutoffs = [int(drawn[k]["cutoff"][0]) if "cutoff" in drawn[k] else 99 for k in (0, 1)]
        cutoffs_seen |= set(cutoffs)
        expected = form.styled_iteration(
            stable=STABLE,
            fade=FADE,
            pixels=pixels,
            labels=[drawn[0]["labels"], drawn[1]["labels"]],
            latents=[(drawn[k]["latents"], drawn[k].get("mixed", drawn[k]["latents"])) for k in (0, 1)],
            cutoffs=cutoffs,
            noise=[of_discriminator, of_generator],
            mix=mix,
            gamma=3.0,
            rate=RATE,
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
        found_mean = modules["generator"].state_dict()["w_average.value"]
        torch.testing.assert_close(found_mean, form.w_average, rtol=0, atol=1e-9)
        if side < SIDE:
            current = modules["generator"].state_dict()
            assert all(torch.equal(current[key], value) for key, value in asleep.items())
            assert players["generator"].steps["blocks.16.conv1.weight"] == 0
    assert [t for t in range(7) if method.table.at(t).forgets] == [3, 5]
    assert not row["styles"] or len(cutoffs_seen) > 2
