"""Resuming with other settings, and guards against numbers that are none."""

import pytest
import torch

from trainer.checkpoint.guards import check_finite, first_non_finite
from trainer.checkpoint.resume import check_data, check_settings, differences
from trainer.foundation.errors import NonFinite, SettingError

BEFORE = {
    "run": {"seed": 1, "log_every": 100},
    "model": {"resolution": 32, "betas": [0.0, 0.9]},
    "objective": {"name": "hinge"},
}


def changed(**sections: object) -> dict[str, object]:
    return {**BEFORE, **sections}


def test_differences_are_named_by_dotted_setting() -> None:
    after = {
        "run": {"seed": 2, "log_every": 100},
        "model": {"resolution": 32, "betas": (0.0, 0.9), "classes": 10},
        "ema": {"decay": 0.9},
    }
    assert [str(change) for change in differences(BEFORE, after)] == [
        "ema.decay: not set -> 0.9",
        "model.classes: not set -> 10",
        "objective.name: 'hinge' -> not set",
        "run.seed: 1 -> 2",
    ]
    assert differences(BEFORE, BEFORE) == []
    assert [str(change) for change in differences({"a": {"b": 1}}, {"a": None})] == ["a: {'b': 1} -> None"]


def test_science_is_refused_unless_named() -> None:
    after = changed(run={"seed": 2, "log_every": 5}, model={"resolution": 64, "betas": [0.0, 0.9]})
    with pytest.raises(SettingError) as refusal:
        check_settings(BEFORE, after, harmless=["run.log_every"])
    text = str(refusal.value)
    assert text.startswith("model.resolution: ")
    assert "model.resolution: 32 -> 64; run.seed: 1 -> 2" in text
    assert "run.allow_changed: [model.resolution, run.seed]" in text
    assert "log_every" not in text
    with pytest.raises(SettingError, match=r"^run.seed"):
        check_settings(BEFORE, after, harmless=["run.log_every"], allowed=["model.resolution"])
    told = check_settings(BEFORE, after, harmless=["run.log_every"], allowed=["model.resolution", "run.seed"])
    assert [change.setting for change in told] == ["model.resolution", "run.log_every", "run.seed"]


def test_whole_sections_can_be_harmless_but_names_are_not_prefixes() -> None:
    after = changed(run={"seed": 1, "log_every": 1})
    assert len(check_settings(BEFORE, after, harmless=["run"])) == 1
    with pytest.raises(SettingError, match=r"^run\.log_every"):
        check_settings(BEFORE, after, harmless=["run.log", "ru"])


def test_other_data_is_refused() -> None:
    check_data(None, "a" * 64, "shards")
    check_data("a" * 64, "a" * 64, "shards")
    with pytest.raises(SettingError, match=r"^data.shards: shards has the fingerprint b{12}\.\.\., .*a{12}"):
        check_data("a" * 64, "b" * 64, "shards")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_tensor_is_named(value: float) -> None:
    state = {"b": torch.zeros(3), "a": torch.ones(2), "step": torch.tensor(3), "none": torch.zeros(0)}
    assert first_non_finite(state) is None
    check_finite(state, 5, None)
    state["b"][1] = value
    assert first_non_finite(state) == "b"
    with pytest.raises(NonFinite, match=r"^b: 1 of 3 numbers are NaN or infinite at iteration 7; .* of iteration 5"):
        check_finite(state, 7, 5)
