"""Where measurements go: the run's measurements.jsonl, its TensorBoard at the right iteration, pictures, scores of commits."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.retention import SCORES, record_scores
from trainer.metrics.health import CollapseWatch, Warned
from trainer.metrics.records import Measurement, append_records, read_records
from trainer.telemetry.mirror import RunFolder

BOARD = "tensorboard/evaluation"
"""A folder of its own: TensorBoard follows one file per folder, and the training writes the one above."""
PICTURES = "evaluation"


def publish(
    run: str,
    iteration: int,
    measurements: Sequence[Measurement],
    pictures: Mapping[str, Image.Image],
    small_print: Mapping[str, Any],
    warning: Warned | None = None,
) -> None:
    """Write it all, also where the run lives in object storage."""
    append_records(run, [measurement.record(small_print) for measurement in measurements])
    with RunFolder(run) as folder:
        board = SummaryWriter(str(folder.path / BOARD))
        for measurement in measurements:
            board.add_scalar(f"measures/{measurement.measure}", measurement.value, iteration)
            deviation = measurement.details.get("deviation")
            if deviation is not None:
                board.add_scalar(f"measures/{measurement.measure} (deviation)", deviation, iteration)
            text = json.dumps(measurement.record(small_print), indent=2)
            board.add_text(f"measures/{measurement.measure}", f"```\n{text}\n```", iteration)
        for name, picture in pictures.items():
            target = folder.path / PICTURES / f"{iteration:08d}" / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            board.add_image(
                f"evaluation/{name}", pixels.view(picture.height, picture.width, 3), iteration, dataformats="HWC"
            )
        if any(measurement.measure == "ms_ssim" for measurement in measurements):
            board.add_scalar("health/collapse", float(warning is not None), iteration)
        if warning is not None:
            board.add_text(f"health/{warning.name}", warning.text, iteration)
        board.close()
    _note_scores(run, iteration, measurements)


def _note_scores(run: str, iteration: int, measurements: Iterable[Measurement]) -> None:
    """Beside the commit, for `checkpoint.keep_best`; together with what was noted before."""
    store = CheckpointStore(run)
    for commit in store.commits():
        if commit.iteration == iteration:
            earlier = commit.info.get("scores") or {}
            with suppress(FileNotFoundError, ValueError):
                earlier = {**earlier, **json.loads(store.store.get(f"{commit.folder}/{SCORES}"))}
            new = {m.measure: m.value for m in measurements if m.value == m.value}
            record_scores(store, iteration, {**earlier, **new})
            return


def collapse_warning(
    run: str, iteration: int, generated: Tensor, real: Tensor, names: Sequence[str], pairs: int
) -> Warned | None:
    """What MS-SSIM per class says, in the light of the run's earlier measurements of it with as many pairs."""
    watch = CollapseWatch(names, real)
    earlier: dict[int, Tensor] = {}
    for record in read_records(run):
        values = record.get("per_class") or {}
        fits = record.get("measure") == "ms_ssim" and record.get("pairs_per_class") == pairs
        if fits and len(values) == len(generated) and record.get("iteration", iteration) < iteration:
            numbers = [float("nan") if value is None else float(value) for value in values.values()]
            earlier[record["iteration"]] = torch.tensor(numbers, dtype=torch.float64)
    for past in sorted(earlier):
        watch.look(earlier[past])
    return watch.look(generated)
