"""The settings of each split, and the table of them all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import class_splits
from trainer.checkpoint.format import MANIFEST, Attempt
from trainer.config import load_config


def test_every_class_is_in_one_split(tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tiny("study", run={"iterations": 5}))]
    selections, classes = [], 0
    for number in (1, 2):
        assert class_splits.main(["settings", str(number), "2", *words]) == 0
        config = load_config(words[0], capsys.readouterr().out.splitlines())
        selections.append(config.data.classes)
        classes += config.model.classes
        assert config.run.dir.endswith(f"/study/split-00{number}-of-002")
    assert selections == ["split 1 of 2", "split 2 of 2"]
    assert classes == 3


def test_table_tells_values_and_what_is_missing(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tiny("study", run={"iterations": 5}))
    runs = [tmp_path / "study" / f"split-00{number}-of-003" for number in (1, 2, 3)]
    for run, iteration, value in zip(runs, (5, 5, 4), (0.25, 0.75, None), strict=True):
        folder = run / "checkpoints" / Attempt(iteration, 1, "0123abcd").folder
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("{}")
        records = [{"measure": "ms_ssim", "value": 9.0}, {"measure": "ms_ssim", "value": value}]
        (run / "measurements.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records[: 2 if value else 0])
        )
    assert class_splits.main(["table", "3", config]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["split", "classes", "iteration", "ms_ssim"]
    assert [line.split("|")[4].strip() for line in lines[2:]] == ["0.25", "0.75", "-", "0.5 +- 0.35"]
    assert "4 (not complete)" in lines[4]
    assert lines[5].startswith("| 2 of 3 | 3 classes |")
    assert (tmp_path / "study" / "splits.md").read_text().splitlines() == lines
    assert len(json.loads((tmp_path / "study" / "splits.json").read_text())) == 3
    (runs[2] / "checkpoints" / Attempt(5, 1, "0123abcd").folder).mkdir()
    (runs[2] / "checkpoints" / Attempt(5, 1, "0123abcd").folder / MANIFEST).write_text("{}")
    assert class_splits.main(["table", "3", config]) == 0


def test_own_selection_is_refused(tiny: Callable[..., Path]) -> None:
    from trainer.foundation.errors import SettingError

    with pytest.raises(SettingError, match=r"data\.classes: "):
        class_splits.main(["settings", "1", "2", str(tiny("study")), "--data.classes", "[1, 2]"])
