"""Which experiments a replica of which can be cut into parts, and what a method sees of its part."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tests.support.games import turn_of
from trainer.config import Config, load_config
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.adversarial import AdversarialConfig, AdversarialMethod
from trainer.processes.launch import Launch
from trainer.training.draws import Draws
from trainer.training.loop import open_source
from trainer.training.sharing import check_sharing

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SilentConfig(AdversarialConfig):
    """A game that does not say whether its loss is a mean."""

    def build(self, problem: Any) -> AdversarialMethod:
        method = AdversarialMethod(self, problem, ())
        del method.means_over_samples
        return method


class Remembering(AdversarialMethod):
    def memory(self, replica: int) -> dict[str, torch.Tensor]:
        return {"mean": torch.zeros(3)}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class RememberingConfig(AdversarialConfig):
    """A game with memory."""

    def build(self, problem: Any) -> AdversarialMethod:
        return Remembering(self, problem, ())


def launch(world_size: int, rank: int = 0) -> Launch:
    return Launch(rank, world_size, 0, CPU, "fp32", "ddp" if world_size > 1 else "single")


def experiment(tiny: Any, sections: dict[str, Any]) -> Config:
    path = tiny()
    tree = yaml.safe_load(path.read_text())
    for section, values in sections.items():
        tree[section] = values if section == "discriminator" else {**tree[section], **values}
    path.write_text(yaml.safe_dump(tree))
    return load_config(str(path))


def check(config: Config, world_size: int) -> None:
    method = config.objective.build(config.problem())
    with torch.device("meta"):
        networks = {name: method.build(name) for names in method.players.values() for name in names}
    check_sharing(config, method, networks, launch(world_size))


DCGAN = {"name": "dcgan", "dropout": 0.0}
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "uneven": (
        {"batch": {"generated_per_replica": 7}},
        4,
        "the 7 samples of a turn of the generator .* into 2 equal parts",
    ),
    "fewer samples than parts": ({}, 16, "cannot be cut into 8 equal parts"),
    "deterministic": ({"run": {"deterministic": True}}, 4, "run.deterministic is true"),
    "a penalty draws": ({"objective": {"penalty": {"name": "gradient"}}}, 4, "draws random numbers inside its pass"),
    "dropout": (
        {"discriminator": {**DCGAN, "dropout": 0.5}, "objective": {"name": "acgan"}},
        4,
        "a layer of the discriminator draws random numbers",
    ),
    "second derivatives of a norm": (
        {"discriminator": DCGAN, "objective": {"name": "acgan", "penalty": {"name": "r1"}}},
        4,
        "objective.penalty differentiates twice through the batch norm of the discriminator",
    ),
    "a loss that says nothing": (
        {"objective": {"name": "tests.unit.training.test_sharing:SilentConfig"}},
        4,
        "the loss of .*SilentConfig is no mean over samples",
    ),
    "memory": (
        {"objective": {"name": "tests.unit.training.test_sharing:RememberingConfig"}},
        4,
        "RememberingConfig remembers something",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_reason(tiny: Any, case: str) -> None:
    sections, processes, reason = REFUSED[case]
    config = experiment(tiny, sections)
    check(config, 2)  # whole replicas are always possible
    with pytest.raises(
        SettingError, match=rf"^batch.replicas: is 2, but the launch .*: .*{reason}.*; launch at most 2"
    ):
        check(config, processes)


@pytest.mark.parametrize("words", [[], ["--objective.penalty.name", "r1"], ["--batch.synchronised_norm", "true"]])
def test_what_can_be_cut_is_not_refused(tiny: Any, words: list[str]) -> None:
    check(load_config(str(tiny()), words), 4)


def test_a_method_that_mixes_samples_meets_numbers_that_are_not_finite(tiny: Any, tmp_path: Path) -> None:
    """The other parts' images are not read; whatever is made of them must not look like data."""
    config = load_config(str(tiny()))
    method = config.objective.build(config.problem())
    turn = turn_of(method, "discriminator")
    seen: dict[str, torch.Tensor] = {}

    def draw(turn: Any, keys: Keys, real: Any) -> dict[str, torch.Tensor]:
        seen.update(real["data"])
        return {"mixed": real["data"]["image"].flip(0)}

    method.draw = draw  # type: ignore[method-assign]
    here = launch(4, rank=1)
    with open_source(config, method, "data", here, 0) as source:
        draws = Draws(method, {"data": source}, 0, 0, 0, here.held_replicas(2), CPU, True, here.part(2), here.parts(2))
        (found,) = draws.of(turn)
    assert seen["class"].shape == (4,)
    assert seen["image"][:2].isnan().all()
    assert seen["image"][2:].isfinite().all()
    assert found["mixed"].isnan().all()
