"""The settings of speed in whole iterations: nothing but rounding changes, whatever is switched, and when."""

import json
from dataclasses import fields, replace
from itertools import cycle

import pytest
import torch

from tests.support.games import draw_of, method_of
from trainer.foundation.errors import SettingError
from trainer.foundation.settings import validate
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.models import ModelConfig, layers
from trainer.models.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from trainer.models.forms import placed_convolutions
from trainer.models.layers import Convolution, kept_kernels
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from trainer.models.traits import can_group, draws_inside
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import read_launch
from trainer.speed import apply
from trainer.speed import autotune as speed_module
from trainer.speed.apply import apply_speed, describe_host
from trainer.speed.autotune import Tuned, choose_forms
from trainer.speed.settings import PLAIN, SpeedConfig
from trainer.training.iteration import run_iteration

LAUNCH = read_launch()
MODEL = ModelConfig(resolution=32, image_channels=1, classes=3, latent_dim=4)
REPLICAS, STEPS, BATCH = 2, 3, 3
METHOD = method_of(
    model=MODEL,
    schedule=ScheduleConfig(discriminator_steps=STEPS),
    batch=BatchConfig(real_per_replica=BATCH, generated_per_replica=BATCH),
)
SWITCHES = {
    "low_resolution_shortcuts": True,
    "fused_spectral_norm": True,
    "fused_conditional_norm": True,
    "grouped_generation": True,
    "kept_kernels": True,
    "channels_last": True,
    "fused_adam": True,
}


def players(speed):
    torch.manual_seed(0)
    modules = {"generator": ResNetGeneratorConfig(channels=4).build(MODEL).double()}
    modules["discriminator"] = ResNetDiscriminatorConfig(channels=4).build(MODEL).double()
    apply_speed(speed, modules, 32, LAUNCH)
    # Without a learning rate's amplification: Adam divides a gradient that is truly 0 by itself.
    config = AdamConfig(learning_rate=1e-3, epsilon=1e-2)
    return {n: Player(n, {n: m}, config, LAUNCH, speed=speed) for n, m in modules.items()}


def generator_of(pair):
    return pair["generator"].modules["generator"]


def draws(iteration, turn, replica):
    random = torch.Generator().manual_seed(1000 * iteration + 10 * turn.number + replica)
    z = torch.randn(BATCH, 4, generator=random, dtype=torch.float64)
    y = torch.randint(3, (BATCH,), generator=random)
    real = torch.randn(BATCH, 1, 32, 32, generator=random, dtype=torch.float64)
    return draw_of(z, y, real, y.flip(0))


def iterate(pair, iteration, speed, method=METHOD):
    return run_iteration(
        method,
        pair,
        method.turns(iteration),
        lambda turn: [draws(iteration, turn, r) for r in range(REPLICAS)],
        {},
        launch=LAUNCH,
        replicas=REPLICAS,
        rate_factor=1.0,
        seed_layers=lambda turn, replica: None,
        speed=speed,
    )


def train(*speeds):
    """Iterations, each under its own settings: between two that differ the state goes over as through a checkpoint."""
    pair, before = None, None
    for iteration, speed in enumerate(speeds):
        if speed != before:
            states = [player.state() for player in pair.values()] if pair else None
            pair, before = players(speed), speed
            for player, state in zip(pair.values(), states or [], strict=False):
                player.load(state)
        scalars = iterate(pair, iteration, speed)
    return pair["generator"].state() | pair["discriminator"].state(), scalars


def differ(found, plain):
    """The largest difference in units of each tensor's largest number (of all tensors' for tiny ones)."""
    assert found.keys() == plain.keys()
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        for name, value in plain.items()
        if value.numel() and value.is_floating_point()
    )


@pytest.fixture(scope="module")
def reference():
    return train(PLAIN, PLAIN, PLAIN)


@pytest.mark.parametrize("name", [*SWITCHES, "all"])
def test_a_switch_changes_nothing_but_rounding(name, reference):
    fast = SpeedConfig() if name == "all" else replace(PLAIN, **{name: True})
    if name == "kept_kernels":
        fast = replace(fast, convolutions="phases")
    state, scalars = train(fast, fast, fast)
    assert differ(state, reference[0]) < 1e-10
    assert differ(scalars, reference[1]) < 1e-10


def test_settings_may_be_switched_in_the_middle_of_a_run(reference):
    state, _ = train(PLAIN, SpeedConfig(), PLAIN)
    assert differ(state, reference[0]) < 1e-10
    state, _ = train(SpeedConfig(), PLAIN, replace(SpeedConfig(), convolutions="matrix", grouped_generation=False))
    assert differ(state, reference[0]) < 1e-10


def test_the_images_of_all_steps_come_from_one_pass(monkeypatch):
    calls = []
    forward = Convolution.forward
    monkeypatch.setattr(Convolution, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    per_pass = len([m for m in generator_of(players(PLAIN)).modules() if isinstance(m, Convolution)])
    iterate(players(PLAIN), 0, PLAIN)
    assert calls == [BATCH] * per_pass * REPLICAS * (1 + STEPS)
    calls.clear()
    fast = replace(PLAIN, grouped_generation=True)
    iterate(players(fast), 0, fast)
    assert sorted(calls) == sorted([BATCH] * per_pass * REPLICAS + [BATCH * STEPS] * per_pass * REPLICAS)


def test_what_is_made_at_once_is_what_is_made_turn_by_turn():
    """`ahead` may use the draws as it likes: here other latents, and two results."""

    class Own:
        players, shown, changes = METHOD.players, METHOD.shown, ()
        turns = staticmethod(METHOD.turns)

        def ahead(self, turn, networks, draw):
            if turn.player == "generator":
                return {}
            G = networks["generator"]
            return {"other": G(draw["latents"] + 1, draw["labels"]), "fake_images": G(draw["latents"], draw["labels"])}

        def loss(self, turn, networks, draw, memory):
            if "other" in draw:
                made.append((draw["other"], draw["fake_images"]))
            return METHOD.loss(turn, networks, draw, memory)

    made, results = [], []
    for grouped in (True, False):
        fast = replace(PLAIN, grouped_generation=grouped)
        iterate(players(fast), 0, fast, Own())
        results.append(made[:])
        made.clear()
    assert len(results[0]) == REPLICAS * STEPS
    for one, other in zip(*results, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_kernels_are_kept_while_the_generator_is_constant_and_no_longer(monkeypatch):
    calls = []
    original = layers.expand
    monkeypatch.setattr(layers, "expand", lambda w, kind: calls.append(kind) or original(w, kind))
    kept = replace(PLAIN, convolutions="phases", kept_kernels=True)
    pair = players(kept)
    layers_expanded = sum(1 for item in placed_convolutions(generator_of(pair), 32) if "phases" in item.resampling)
    iterate(pair, 0, kept)
    # Once for each replica's generator step, and once for all discriminator steps.
    assert calls.count("phases") == layers_expanded * (REPLICAS + 1)
    # Nothing is left over that a sample taken later, of other weights, could be drawn with.
    assert all(layer._kept is None for layer in generator_of(pair).modules() if isinstance(layer, Convolution))
    calls.clear()
    iterate(pair, 1, kept)  # the generator has moved: made again
    assert calls.count("phases") == layers_expanded * (REPLICAS + 1)


def test_a_kernel_that_has_a_graph_is_not_kept():
    layer, x = Convolution(4, 2, 3, doubles=True), torch.randn(1, 4, 4, 4)
    layer.form = "phases"
    with kept_kernels(layer):
        layer(x)
        assert not layer._kept
        with torch.no_grad():
            layer(x)
            assert layer._kept
        layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_generators_that_draw_or_have_other_states_are_not_grouped():
    dcgan = ModelConfig(resolution=32, classes=3, latent_dim=8)
    assert can_group(ResNetGeneratorConfig(channels=2).build(MODEL))
    G = DCGANGeneratorConfig().build(dcgan)
    assert can_group(G)
    for layer in (torch.nn.Dropout(0.5), torch.nn.BatchNorm2d(3)):
        G.extra = layer
        assert not can_group(G)


def test_what_draws_in_the_order_of_memory_keeps_its_layout():
    dcgan = ModelConfig(resolution=32, classes=3, latent_dim=8)
    G, D = DCGANGeneratorConfig().build(dcgan), DCGANDiscriminatorConfig().build(dcgan)
    assert draws_inside(D)
    apply_speed(SpeedConfig(), {"generator": G, "discriminator": D}, 32, LAUNCH)
    with pytest.raises(SettingError, match=r"^speed\.channels_last: .* the discriminator has dropout or noise"):
        apply_speed(PLAIN, {"generator": G, "discriminator": D}, 32, LAUNCH)
    G.extra = type("Mystery", (torch.nn.Module,), {"forward": lambda self, x: x})()
    with pytest.raises(SettingError, match=r"the generator has layers that do not say whether they draw \(Mystery\)"):
        apply_speed(PLAIN, {"generator": G}, 32, LAUNCH)


def test_blocks_are_computed_again_only_where_that_changes_nothing():
    """A network offers it with the attribute `recompute`; what draws or has a state that moves may not be in its blocks."""
    again = SpeedConfig(recompute_blocks=True)
    dcgan = ModelConfig(resolution=32, classes=3, latent_dim=8)
    with pytest.raises(SettingError, match=r"^speed\.recompute_blocks: .* none of the networks \(a, b\)"):
        apply_speed(again, {name: DCGANGeneratorConfig().build(dcgan) for name in "ab"}, 32, LAUNCH)
    pair = {name: ResNetGeneratorConfig(channels=2).build(MODEL) for name in "ab"}
    apply_speed(again, pair, 32, LAUNCH)
    assert all(network.recompute for network in pair.values())
    for layer in (torch.nn.Dropout2d(0.5), layers.SpectralLinear(2, 2)):
        pair["b"].blocks[0].extra = layer
        with pytest.raises(SettingError, match=r"^speed\.recompute_blocks: .* blocks of the b "):
            apply_speed(again, pair, 32, LAUNCH)
    apply_speed(SpeedConfig(), pair, 32, LAUNCH)
    assert not any(network.recompute for network in pair.values())


def tuned(networks):
    return [Tuned(name, network, 32, 2) for name, network in zip(("generator", "discriminator"), networks, strict=True)]


def test_timings_are_kept_and_taken_up_again(tmp_path, monkeypatch):
    pair = [player.modules[name] for name, player in players(SpeedConfig()).items()]
    items = [item for network in pair for item in placed_convolutions(network, 32)]
    answers = cycle(["plain", "plain by matrix"])
    asked = []
    monkeypatch.setattr(speed_module, "fastest_form", lambda item, *_: asked.append(item.name) or next(answers))
    choose_forms(str(tmp_path), tuned(pair), LAUNCH)
    chosen = [(item.layer.form, item.layer.by_matrix) for item in items]
    assert len(asked) == len(items)
    assert {by_matrix for _, by_matrix in chosen} == {True, False}
    again = [player.modules[name] for name, player in players(SpeedConfig()).items()]
    choose_forms(str(tmp_path), tuned(again), LAUNCH)
    assert len(asked) == len(items), "timed a second time"
    assert [
        (item.layer.form, item.layer.by_matrix) for network in again for item in placed_convolutions(network, 32)
    ] == chosen
    # Other timings are needed, and kept next to the first.
    choose_forms(str(tmp_path), tuned(again), replace(LAUNCH, precision="bf16"))
    assert len(asked) == 2 * len(items)
    assert len(json.loads((tmp_path / "speed.json").read_text())) == 2


def test_timing_finds_a_form(monkeypatch):
    """A clock in which the second form is the fastest."""
    ticks = iter(range(10_000))
    item = placed_convolutions(generator_of(players(PLAIN)).float(), 32)[0]
    forms = []
    original = speed_module.set_form
    monkeypatch.setattr(speed_module, "set_form", lambda i, form: forms.append(form) or original(i, form))
    monkeypatch.setattr(
        speed_module, "_now", lambda launch: next(ticks) * (0.5 if forms[-1] == item.alternatives[1] else 1.0)
    )
    assert speed_module.fastest_form(item, 2, LAUNCH) == item.alternatives[1]
    assert item.layer.form == "plain", "the layer itself was touched"


def test_refusals():
    with pytest.raises(SettingError, match=r"^speed\.bf16_gradients: "):
        apply.check_speed(SpeedConfig(bf16_gradients=True), replace(LAUNCH, strategy="zero2"))


def test_a_setting_that_is_gone_is_taken_from_old_runs_and_refused_otherwise():
    """`speed.compile` compiled eight of 56 blocks and ran the rest as they are. Every checkpoint holds its default."""
    assert validate(SpeedConfig, {"compile": "none", "autotune": True}, {}) == SpeedConfig(autotune=True)
    with pytest.raises(SettingError, match=r"^speed\.compile: is 'blocks', but there is no such setting any more"):
        validate(SpeedConfig, {"compile": "blocks"}, {})
    assert "compile" not in {field.name for field in fields(SpeedConfig)}


def test_the_first_lines_say_what_decides_about_speed(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    text = describe_host(SpeedConfig(), LAUNCH)
    assert "threads 2, waiting passive;" in text
    assert text.endswith("speed: the defaults")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    text = describe_host(SpeedConfig(kept_kernels=False), LAUNCH)
    assert "OMP_WAIT_POLICY=passive" in text
    assert text.endswith("speed: kept_kernels False")


def test_nothing_in_an_iteration_waits_for_the_device(monkeypatch):
    """Every `.item()`, `.tolist()` or comparison of a tensor would stall a GPU: numbers are fetched by the reporter."""
    asked = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *a, name=name, **k: asked.append(name), raising=True)
    for settings in (PLAIN, replace(SpeedConfig(), fused_adam=True)):
        pair = players(replace(settings, fused_adam=True))
        asked.clear()
        iterate(pair, 0, settings)
        assert not asked
