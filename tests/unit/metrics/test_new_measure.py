"""A measure is one class and its place in the list: the command, the record, TensorBoard and the report then know it."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from trainer import evaluate
from trainer.foundation.errors import SettingError
from trainer.metrics import measures
from trainer.metrics.health import Warned
from trainer.metrics.over_real import over_real_images
from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement, by_name, read_records
from trainer.report import __main__ as report
from trainer.report.data import differences
from trainer.trained.sampling import chunks_of


class Brightness(Measure):
    """Of all samples and of all real images, class by class."""

    name, meaning = "brightness", "mean grey of the images"
    needs = Needs(classes=True)
    titles: ClassVar[dict[str, str]] = {"mean_brightness": "brightness of <images>"}
    outcomes = frozenset({"per_class", "darkest"})
    column = "brightness"
    alarm = "night"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.greys: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.numbers: list[int] = []
        self.real = 0.0

    @property
    def columns(self) -> int:
        return 2

    def compute(self, samples: Tensor, conditions: Tensor) -> Tensor:
        assert samples.dtype == torch.uint8
        return torch.stack([samples.float().mean((1, 2, 3)), conditions.float()], 1)

    def add(self, seen: Seen) -> None:
        assert seen.features.shape == (len(seen.numbers), 0)
        assert torch.equal(seen.own[:, 1], seen.conditions.double())
        self.numbers += seen.numbers
        self.greys.append(seen.own[:, 0])
        self.labels.append(seen.conditions)

    def work(self) -> None:
        setting = self.setting
        rows = over_real_images(
            setting.launch,
            setting.data,
            chunks_of(setting.manifest.samples),
            1,
            lambda chunk: chunk.images.float().mean((1, 2, 3))[:, None],
        )
        self.real = float(torch.cat([part.values for part in rows]).mean())

    def result(self) -> list[Measurement]:
        assert self.numbers == list(range(self.setting.plan.samples))
        greys, labels = torch.cat(self.greys), torch.cat(self.labels)
        per_class = [float(greys[labels == label].mean()) for label in range(3)]
        more: dict[str, Any] = {
            "samples": len(greys),
            "per_class": by_name(self.setting.manifest.class_names, per_class),
            "real_images": self.real,
            "darkest": float(greys.min()),
        }
        return [Measurement("mean_brightness", float(greys.mean()), more, better="higher")]

    def pictures(self) -> dict[str, Image.Image]:
        return {"lamp": Image.new("RGB", (8, 8), "white")}

    def warning(self, iteration: int, earlier: Any) -> Warned | None:
        seen = [record for record in earlier if record["measure"] == "mean_brightness"]
        return Warned("night", f"{len(seen)} earlier") if seen else None

    @classmethod
    def note(cls, details: Any) -> str:
        return f"darkest {details['darkest']:.0f}"


def test_a_measure_is_one_class(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(measures, "MEASURES", [*measures.MEASURES, Brightness])
    words = [str(run), "--measures", "brightness", "--samples", "120"]
    assert evaluate.main([*words, "--iteration", "2"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert evaluate.main(words) == 0
    printed = capsys.readouterr().out
    assert "mean_brightness" in printed
    assert "darkest" in printed
    assert "WARNING night: 1 earlier" in printed
    first, second = read_records(str(run))
    assert list(second["per_class"]) == ["0", "1", "2"]
    assert second["value"] == pytest.approx(sum(second["per_class"].values()) / 3)
    assert 60 < second["real_images"] < 120
    assert second["warning"] == "night: 1 earlier"
    assert differences([first, second]) == []
    assert (run / "evaluation" / "00000004" / "lamp.png").exists()
    board = EventAccumulator(str(run / "tensorboard" / "evaluation")).Reload()
    assert [(point.step, point.value) for point in board.Scalars("health/night")] == [(2, 0.0), (4, 1.0)]
    page = tmp_path / "report.html"
    assert report.main([str(run), "--out", str(page)]) == 0
    text = page.read_text()
    for words_of_it in ("brightness of &lt;images&gt;", "<th>brightness<br>", "darkest", "lamp"):
        assert words_of_it in text
    with pytest.raises(
        SettingError, match=r"--measures: there is no measure 'brightnes'; there are is, .*, brightness, and all"
    ):
        evaluate.main([str(run), "--measures", "brightnes"])


def test_a_measurement_of_an_unknown_measure_is_reported_by_its_name(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(measures, "MEASURES", [Brightness])
        assert evaluate.main([str(run), "--measures", "brightness", "--samples", "60"]) == 0
    page = tmp_path / "report.html"
    assert report.main([str(run), "--out", str(page)]) == 0
    assert "<th>mean_brightness</th>" in page.read_text()


def test_every_measure_says_what_it_is() -> None:
    names = [measure.name for measure in measures.MEASURES]
    assert len(set(names)) == len(names)
    for measure in measures.MEASURES:
        assert measure.meaning
        assert measure.__doc__
    titles = [title for measure in measures.MEASURES for title in measure.titles]
    assert len(set(titles)) == len(titles)
