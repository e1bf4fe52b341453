"""Where measurements go: the run's measurements.jsonl, its TensorBoard at the right iteration, pictures, scores of commits."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.retention import SCORES, record_scores
from trainer.metrics.health import Warned
from trainer.metrics.records import Measurement, append_records
from trainer.telemetry.mirror import RunFolder

BOARD = "tensorboard/evaluation"
"""A separate folder: TensorBoard follows one file per folder, and the training writes the one above."""
PICTURES = "evaluation"


def publish(
    run: str,
    iteration: int,
    measurements: Sequence[Measurement],
    pictures: Mapping[str, Image.Image],
    small_print: Mapping[str, Any],
    warnings: Mapping[str, Warned | None],
) -> None:
    """Write it all, also where the run lives in object storage.

    warnings: by name; None for one that could have been given, and was not.
    """
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
        for name, warning in warnings.items():
            board.add_scalar(f"health/{name}", float(warning is not None), iteration)
            if warning is not None:
                board.add_text(f"health/{name}", warning.text, iteration)
        board.close()
    _note_scores(run, iteration, measurements)


def _note_scores(run: str, iteration: int, measurements: Iterable[Measurement]) -> None:
    """Next to the commit, for `checkpoint.keep_best`; together with what was noted before."""
    store = CheckpointStore(run)
    for commit in store.commits():
        if commit.iteration == iteration:
            earlier = commit.info.get("scores") or {}
            with suppress(FileNotFoundError, ValueError):
                earlier = {**earlier, **json.loads(store.store.get(f"{commit.folder}/{SCORES}"))}
            new = {m.measure: m.value for m in measurements if m.value == m.value}
            record_scores(store, iteration, {**earlier, **new})
            return
