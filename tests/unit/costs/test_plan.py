"""The cost plan: counted operations against the known ones, and the arithmetic of the table."""

from pathlib import Path

import pytest
import torch

from trainer import plan
from trainer.config import load_config
from trainer.costs.counted import Cost, count, turns_of
from trainer.foundation.errors import SettingError
from trainer.speed.settings import PLAIN

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GIVEN = plan.Assumptions()
PLAYERS = ("generator", "discriminator")


def test_counted_operations_are_the_derived_ones():
    """330 GFLOP for one image of each batch: reference/performance.md's figure with D frozen, derived from the shapes."""
    one = ["--batch.real_per_replica", "1", "--batch.generated_per_replica", "1"]
    config = load_config(str(CONFIGS / "imagenet128_projection.yaml"), one)
    cost = count(config, PLAIN, torch.device("cpu"))
    assert cost.iteration(turns_of(config)) == pytest.approx(330e9, rel=0.005)
    assert cost.parameters == {"generator": 41_996_931, "discriminator": 30_041_857}
    assert cost.activations > 4 * sum(cost.parameters.values()) / 2


def test_a_reduction_costs_nothing_alone_and_the_slowest_link_among_many():
    seconds = [plan.reduction_seconds(25_000_000, n, (100e9, 10e9), GIVEN) for n in (1, 2, 8, 16)]
    assert seconds[0] == 0
    assert seconds[1] == pytest.approx(1e8 / 100e9 + GIVEN.latency * (2 + 3))
    assert seconds[2] == pytest.approx(2 * 7 / 8 * 1e8 / 100e9 + GIVEN.latency * (14 + 3))
    assert seconds[3] == pytest.approx(2 * 15 / 16 * 1e8 / 10e9 + GIVEN.latency * (30 + 3))


def test_rows_deal_the_replicas_and_share_them_beyond():
    config = load_config(str(CONFIGS / "imagenet128_projection.yaml"))  # 4 replicas, 16 real images, 5 steps
    cost = Cost(dict.fromkeys(PLAYERS, 1e12), dict.fromkeys(PLAYERS, 1), 1)
    step = plan.Step({"generator": 2.0, "discriminator": 1.0})
    rows = {n: plan.row(config, cost, step, n, 1e12, GIVEN) for n in (1, 3, 4, 8, 32)}
    assert [rows[n].seconds for n in rows] == pytest.approx([28.0, 14.0, 7.0, 3.5, 0.875])
    assert [rows[n].held for n in rows] == [4, 2, 1, 1 / 2, 1 / 8]
    assert rows[8].images == pytest.approx(5 * 4 * 16 / 3.5)
    assert rows[4].waiting == 0
    slow = plan.row(config, Cost(dict.fromkeys(PLAYERS, 1), dict.fromkeys(PLAYERS, 10**9), 1), step, 4, 1e9, GIVEN)
    assert 0 < slow.waiting < 1


def test_what_cannot_be_planned_is_refused(capsys):
    path = str(CONFIGS / "fashion32_projection.yaml")
    for words, message in [
        (["--device", "abacus"], r"^--device: 'abacus' is not known; give measured"),
        (
            ["--device", "h100", "--processes", "3"],
            r"^--processes: 3 processes cannot share 2 replicas evenly; give at most 2",
        ),
        (
            ["--device", "h100", "--processes", "48"],
            r"^--processes: the .* samples .* cannot be cut into 24 equal parts",
        ),
    ]:
        with pytest.raises(SettingError, match=message):
            plan.main([path, *words])
    for option, value in (("--processes", "0"), ("--efficiency", "2")):
        with pytest.raises(SystemExit) as ended:
            plan.main([path, "--device", "h100", option, value])
        assert ended.value.code == 2
        assert f"argument {option}: is {value}; give" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["h100", "measured"])
def test_the_plan_says_what_is_assumed(device, capsys):
    small = ["--generator.channels", "4", "--discriminator.channels", "4", "--precision", "fp32"]
    plan.main([str(CONFIGS / "fashion32_projection.yaml"), "--processes", "16", "--device", device, *small])
    text = capsys.readouterr().out
    assert ("measured here" if device == "measured" else "not measured") in text
    assert "assumed" in text
    assert all(f"| {n} |" in text for n in (1, 2, 4, 8, 32))
    assert "| 1024 |" not in text  # 512 parts of a replica's 16 images
    assert "| **16** |" in text
