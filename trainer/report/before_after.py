"""The report's section on a fine-tuning stage: what the classifier's loss bought and what it cost, before and after."""

from collections.abc import Sequence
from html import escape

from trainer.methods.terms.guidance import only_the_guiding_is_pleased
from trainer.report.data import RunData

FIGURES = {
    "finetuning/guiding_accuracy": "accuracy by the guiding classifier",
    "finetuning/independent_accuracy": "accuracy by the independent classifier",
    "finetuning/guiding_loss": "loss of the guiding classifier",
    "finetuning/ms_ssim": "MS-SSIM within classes (higher: less varied)",
}


def stage_figures(run: RunData) -> dict[str, tuple[float, float]]:
    """First and last value of each figure that the stage's watch wrote, by name; empty for a run without a stage."""
    return {name: (run.curves[name][0][1], run.curves[name][-1][1]) for name in FIGURES if run.curves.get(name)}


def stage_warning(figures: dict[str, tuple[float, float]]) -> str | None:
    """What a reader must know before the table: nobody independent watched, or only the guiding classifier is pleased."""
    guiding, independent = (figures.get(f"finetuning/{role}_accuracy") for role in ("guiding", "independent"))
    if guiding is None:
        return None
    if independent is None:
        return (
            "no independent classifier watched (classifier_loss.independent), so nothing tells whom the images please"
        )
    return only_the_guiding_is_pleased((guiding[0], independent[0]), (guiding[1], independent[1]))


def stage_section(runs: Sequence[RunData]) -> str:
    """HTML: a table and, where there is cause, a warning for each run with a stage; nothing without one."""
    parts = []
    for run in runs:
        figures = stage_figures(run)
        if not figures:
            continue
        points = run.curves["finetuning/ms_ssim"]
        first, last = (f"{points[place][0]:,.0f}" for place in (0, -1))
        warning = stage_warning(figures)
        rows = "".join(
            f'<tr><td>{FIGURES[name]}</td><td class="number">{_text(name, before)}</td>'
            f'<td class="number">{_text(name, after)}</td></tr>'
            for name, (before, after) in figures.items()
        )
        parts.append(
            f"<h3>{escape(run.name)}</h3>"
            + (f'<p class="bad">{escape(warning)}</p>' if warning else "")
            + f"<table><tr><th></th><th>before ({first})</th><th>after ({last})</th></tr>{rows}</table>"
        )
    return "\n".join(["<h2>Fine-tuning with a classifier's loss</h2>", *parts]) if parts else ""


def _text(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith("accuracy") else f"{value:.3f}"
