"""A complete new method, written in this file alone: it trains, resumes, is sampled and exported by the ordinary commands.

It has what no method of the product has: two networks in one player, vectors from two sources, a memory for each replica,
a network that grows at iteration 5, batches that change with it, a penalty in every 4th update, SGD, and a sampler with
conditions of its own. No file outside this one knows it; the settings name it as `package.module:ClassName`.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from data_pipeline.make_shards.vectors import write_vectors
from tests.support.resuming import in_a_killed_copy
from trainer import export, sample
from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.format import state_hash
from trainer.config import load_config
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.foundation.keys import Keys
from trainer.methods.problem import Problem
from trainer.methods.protocol import NO_NAMES, ClassNames, Networks, Shards, Tensors, Turn
from trainer.processes.launch import Launch, read_launch
from trainer.trained.pretrained import Generator, open_generator
from trainer.training import loop
from trainer.training.loop import train

GROWS_AT, EVERY, ITERATIONS = 5, 4, 10

# The method ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class TranslationConfig:
    """Vectors of the source `data` are translated to those of the source `plane`, and back."""

    cycle: float = 2.0
    """Weight of the way there and back."""
    second_derivatives: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        """Any problem will do."""

    def build(self, problem: Problem) -> "Translation":
        """The game."""
        return Translation(self)


class Critic(nn.Module):
    """Scores [B] of points [B, 2]. Its second layer fades in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, points: Tensor, fade: float) -> Tensor:
        """`fade`: 0 leaves the second layer out; it has no gradient then."""
        h = torch.tanh(self.first(points))
        if fade:
            h = h + fade * torch.tanh(self.second(h))
        return self.last(h).squeeze(1)


class Translation:
    """Two translators in one player against one critic. The critic remembers its mean score of each replica."""

    players: Mapping[str, tuple[str, ...]] = {"translators": ("there", "back"), "critic": ("critic",)}
    shown = "translators"
    changes = (GROWS_AT,)

    def __init__(self, config: TranslationConfig) -> None:
        self.config = config

    def build(self, network: str) -> nn.Module:
        if network == "critic":
            return Critic()
        sizes = (4, 2) if network == "there" else (2, 3)
        return nn.Sequential(nn.Linear(sizes[0], 8), nn.Tanh(), nn.Linear(8, sizes[1]))

    def check(self, sources: Mapping[str, Shards]) -> None:
        for name, length in (("data", 3), ("plane", 2)):
            if sources[name].manifest.vector_length != length:
                raise SettingError(f"sources: {name} must hold vectors of {length} numbers; give others")

    def turns(self, iteration: int) -> list[Turn]:
        n = 4 if iteration < GROWS_AT else 6
        form = {"fade": 0.0 if iteration < GROWS_AT else min(1.0, 0.5 * (iteration - GROWS_AT + 1))}
        reads = {"data": n, "plane": n}
        of_critic = [
            Turn("critic", k, reads, n, {"penalty": float(EVERY)} if (2 * iteration + k) % EVERY == 0 else {}, form)
            for k in (0, 1)
        ]
        return [*of_critic, Turn("translators", 2, reads, n, {"cycle": self.config.cycle}, form)]

    def draw(self, turn: Turn, keys: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        noise = torch.randn(turn.made, 1, generator=keys.generator("noise"))
        return {"noise": noise, "space": real["data"]["vector"], "plane": real["plane"]["vector"]}

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> dict[str, Tensor]:
        if turn.player != "critic":
            return {}
        return {"made": networks["there"](torch.cat([draw["space"], draw["noise"].to(draw["space"])], 1))}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        fade = turn.form["fade"]
        if turn.player == "critic":
            points = draw["plane"].detach().requires_grad_("penalty" in turn.terms)
            real, made = networks["critic"](points, fade), networks["critic"](draw["made"], fade)
            mean = memory["mean"].lerp(real.mean().detach(), 0.5)
            loss = (1 - real).relu().mean() + (1 + made).relu().mean() + 0.01 * (real.mean() - mean).square()
            if "penalty" in turn.terms:
                (gradient,) = torch.autograd.grad(real.sum(), points, create_graph=True)
                loss = loss + turn.terms["penalty"] * gradient.square().sum(1).mean()
            return {"loss": loss, "real_score": real.mean().detach()}, {"mean": mean, "updates": memory["updates"] + 1}
        there, back = networks["there"], networks["back"]
        made = there(torch.cat([draw["space"], draw["noise"]], 1))
        cycle = (back(made) - draw["space"]).abs().mean() + (
            there(torch.cat([back(draw["plane"]), draw["noise"]], 1)) - draw["plane"]
        ).abs().mean()
        loss = -networks["critic"](made, fade).mean() + turn.terms["cycle"] * cycle
        return {"loss": loss, "cycle": cycle.detach()}, memory

    def memory(self, replica: int) -> dict[str, Tensor]:
        return {"mean": torch.zeros(()), "updates": torch.tensor(replica)}

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> "PlaneSampler":
        return PlaneSampler(networks, Heights())


class Heights:
    """Conditions that no other method has: the height of the points that are translated."""

    def parse(self, text: str) -> Tensor:
        try:
            return torch.tensor([float(text.removesuffix("m"))])
        except ValueError:
            raise SettingError(f"classes: {text!r} is no height; give one such as 1.5m") from None

    def evenly(self, count: int) -> Tensor:
        return torch.linspace(-1, 1, min(count, 3))[:, None]

    def in_turn(self, numbers: range) -> Tensor:
        return self.evenly(3)[torch.tensor(list(numbers)) % 3]

    def caption(self, condition: Tensor) -> str:
        return f"{condition.item():.1f}m"


@plain_dataclass
class PlaneSampler:
    """Points of a height, translated."""

    networks: Mapping[str, nn.Module]
    conditions: Heights
    output: str = "vector"

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        return torch.randn(count, 3, generator=source)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        made: Tensor = self.networks["there"](torch.cat([latents[:, :2], conditions, latents[:, 2:]], 1))
        return made


# What is shown of it ------------------------------------------------------------------------------------------------

State = dict[str, Tensor]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """`write(folder, section={...})` writes the settings of a run whose folder is folder/run."""
    shards = tmp_path_factory.mktemp("vectors")
    random = np.random.default_rng(0)
    write_vectors(shards / "space", random.normal(size=(50, 3)).astype(np.float32), np.arange(50) % 2, ("near", "far"))
    write_vectors(shards / "plane", random.normal(size=(37, 2)).astype(np.float32))

    def written(folder: Path, **sections: dict[str, Any]) -> Path:
        tree: dict[str, Any] = {
            "run": {"dir": str(folder / "run"), "seed": 5, "iterations": ITERATIONS, "deterministic": True},
            "data": {"shards": str(shards / "space")},
            "sources": {"plane": {"shards": str(shards / "plane")}},
            "batch": {"replicas": 3},
            "model": {"classes": 2, "latent_dim": 3},
            "objective": {"name": f"{__name__}:TranslationConfig", "cycle": 1.5},
            "optimizer": {
                "players": {
                    "translators": {
                        "name": "sgd",
                        "learning_rate": 0.05,
                        "momentum": 0.5,
                        "final_momentum": 0.8,
                        "momentum_steps": 7,
                    },
                    "critic": {"name": "adam", "learning_rate": 0.01, "beta1": 0.5},
                }
            },
            "ema": {"decay": 0.7},
        }
        tree["run"] |= {"checkpoint_every": 1, "log_every": 1, "sample_every": 4, "heartbeat_every": 2}
        for section, values in sections.items():
            tree[section] |= values
        folder.mkdir(exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
        return folder / "settings.yaml"

    return written


def state_of(folder: Path) -> State:
    restored = CheckpointStore(str(folder / "run")).restore()
    assert restored is not None
    assert restored.commit.iteration == ITERATIONS
    return restored.tensors


@pytest.fixture(scope="module")
def straight(write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(load_config(str(write(folder))), read_launch())
    return folder


def test_the_state_holds_all_that_the_method_has(straight: Path) -> None:
    state = state_of(straight)
    assert {"translators/there/0.weight", "translators/back/0.weight", "critic/first.weight"} <= state.keys()
    assert {"translators.sgd/momentum_buffer/there/0.weight", "ema/there/0.weight", "ema/back/2.bias"} <= state.keys()
    # The second layer joined at iteration 5 of 10, two critic's updates each.
    assert int(state["critic.adam/step"]) == 2 * ITERATIONS
    assert int(state["critic.adam/step/second.weight"]) == 2 * (ITERATIONS - GROWS_AT)
    # A row of memory for each replica: it began at the replica's number.
    assert state["memory/updates"].tolist() == [20, 21, 22]
    assert len(set(state["memory/mean"].tolist())) == 3
    records = [json.loads(line) for line in (straight / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == list(range(1, ITERATIONS + 1))
    assert {"loss/critic", "loss/translators", "translators/cycle", "learning_rate/critic"} <= records[0].keys()
    # Three replicas, three turns, two sources; 4 samples each before iteration 5, then 6.
    assert records[-1]["progress/real_images"] == 3 * 3 * 2 * (5 * 4 + 5 * 6)


@pytest.mark.parametrize("iteration", range(1, ITERATIONS + 1))
def test_killed_at_any_iteration_it_resumes_with_equal_bits(
    iteration: int, write: Write, straight: Path, tmp_path: Path
) -> None:
    config = load_config(str(write(tmp_path)))
    in_a_killed_copy(lambda: killed_in(iteration, lambda: train(config, read_launch())))
    assert train(config, read_launch())
    expected, found = state_of(straight), state_of(tmp_path)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def killed_in(iteration: int, work: Callable[[], object]) -> None:
    """Do the work; SIGKILL strikes in the middle of an iteration, or in the last save."""
    calls, run_iteration = 0, loop.run_iteration

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        scalars = run_iteration(*arguments, **named)
        if calls == iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        return scalars

    loop.run_iteration = counting
    work()


@pytest.mark.parametrize("processes", [2, 3])
def test_it_is_the_same_experiment_on_more_processes(
    processes: int,
    write: Write,
    straight: Path,
    tmp_path: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command(write(tmp_path), processes=processes)
    assert done.returncode == 0, done.stderr
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))


def test_reduced_by_the_strategy_it_differs_by_rounding(
    write: Write, straight: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """DDP's own sums, instead of those in the order of the replicas."""
    done = command(write(tmp_path, run={"deterministic": False}), processes=2)
    assert done.returncode == 0, done.stderr
    for name, tensor in state_of(straight).items():
        torch.testing.assert_close(state_of(tmp_path)[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_tensor_that_nobody_takes_up_is_an_error(write: Write, straight: Path, tmp_path: Path) -> None:
    config = load_config(str(write(tmp_path)))
    state = loop.State(config, Translation(TranslationConfig()), read_launch())
    state.load(state_of(straight))
    with pytest.raises(
        CheckpointError, match=r"^checkpoint: it holds the tensor memory_of_another/pool, which nothing"
    ):
        state.load({**state_of(straight), "memory_of_another/pool": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"^memory: the checkpoint has a tensor pool that this model lacks"):
        state.load({**state_of(straight), "memory/pool": torch.zeros(3, 2)})


def test_zero_refuses_a_player_of_two_networks(write: Write, tmp_path: Path) -> None:
    config = load_config(str(write(tmp_path, run={"deterministic": False})))
    launch = Launch(0, 1, 0, torch.device("cpu"), "fp32", "zero1")
    with pytest.raises(SettingError, match=r"^optimizer: the player translators has 2 networks, .* zero1"):
        loop.State(config, Translation(TranslationConfig()), launch)


def test_it_is_sampled_and_exported_by_the_ordinary_commands(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(straight / "run")
    assert sample.main([run, "--classes", "1.5m, -2", "--count", "2", "--out", str(tmp_path / "samples")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["1.5m", "1.5m", "-2.0m", "-2.0m"]
    (found,) = (tmp_path / "samples").rglob("samples.npy")
    made = np.load(found).reshape(4, 2)
    assert export.main([run, str(tmp_path / "export")]) == 0
    again = Generator.from_pretrained(str(tmp_path / "export")).sample(["1.5m", "-2"], count=2)
    np.testing.assert_array_equal(again.numpy(), made)
    plain = open_generator(run, average=False).sample(["1.5m", "-2"], count=2)
    assert not torch.equal(plain, again)
    with pytest.raises(SettingError, match=r"'tall' is no height"):
        sample.main([run, "--classes", "tall"])


def test_the_other_commands_take_it(
    write: Write, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command(write(tmp_path), "--run.dry_run", "true")
    assert done.returncode == 0, done.stderr
    assert "there: " in done.stdout
    assert "2 of the critic, 1 of the translators" in done.stdout


def test_sources_that_do_not_fit_are_refused(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["data"], tree["sources"]["plane"] = tree["sources"]["plane"], tree["data"]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingError, match=r"^sources: data must hold vectors of 3 numbers"):
        train(load_config(str(path)), read_launch())
    del tree["sources"]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingError, match=r"^sources\.plane: is missing, but .*TranslationConfig reads it"):
        train(load_config(str(path)), read_launch())
    assert not (tmp_path / "run").exists()
