"""The report of a fine-tuning stage: before, after, and whom it pleased."""

from trainer.report.before_after import stage_section, stage_warning
from trainer.report.data import RunData


def run(guiding: tuple[float, float], independent: tuple[float, float] | None) -> RunData:
    series = {
        "finetuning/guiding_accuracy": guiding,
        "finetuning/ms_ssim": (0.2, 0.4),
        "finetuning/guiding_loss": (2.0, 0.1),
    }
    if independent:
        series["finetuning/independent_accuracy"] = independent
    curves = {name: [(400_000.0, first), (425_000.0, 0.5), (450_000.0, last)] for name, (first, last) in series.items()}
    return RunData("tuned", "runs/tuned", [], curves)


def test_before_and_after() -> None:
    page = stage_section([RunData("base", "runs/base", []), run((0.5, 0.9), (0.5, 0.8))])
    assert "before (400,000)" in page
    assert "after (450,000)" in page
    for cell in ("50.0%", "90.0%", "80.0%", "0.200", "0.400", "2.000", "0.100"):
        assert f">{cell}<" in page
    assert "base" not in page
    assert "bad" not in page
    assert stage_section([RunData("base", "runs/base", [])]) == ""


def test_warnings() -> None:
    pleased = stage_section([run((0.5, 0.9), (0.5, 0.52))])
    assert "only the guiding classifier is pleased" in pleased
    assert "no independent classifier watched" in stage_section([run((0.5, 0.9), None)])
    assert stage_warning({}) is None
