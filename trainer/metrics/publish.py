"""Where measurements go: the run's measurements.jsonl, its TensorBoard at the right iteration, pictures, scores of commits."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from PIL import Image

from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.retention import SCORES, record_scores
from trainer.metrics.health import Warned
from trainer.metrics.measures import other_names
from trainer.metrics.records import Measurement, append_records
from trainer.telemetry.events import Events
from trainer.telemetry.mirror import RunFolder

logger = logging.getLogger("menagerie.metrics")

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
        board = Events(folder.path / BOARD)
        for measurement in measurements:
            name, text = f"measures/{measurement.measure}", json.dumps(measurement.record(small_print), indent=2)
            deviation = measurement.details.get("deviation")
            board.write(
                partial(_add, "add_scalar", name, measurement.value, iteration),
                partial(_add, "add_text", name, f"```\n{text}\n```", iteration),
            )
            if deviation is not None:
                board.write(partial(_add, "add_scalar", f"{name} (deviation)", deviation, iteration))
        for name, picture in pictures.items():
            target = folder.path / PICTURES / f"{iteration:08d}" / f"{name}.png"
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                picture.save(target)
            except OSError as error:
                logger.warning("%s could not be written: %s", target, error)
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            image = pixels.view(picture.height, picture.width, 3)
            board.write(partial(_add, "add_image", f"evaluation/{name}", image, iteration, dataformats="HWC"))
        for name, warning in warnings.items():
            board.write(partial(_add, "add_scalar", f"health/{name}", float(warning is not None), iteration))
            if warning is not None:
                board.write(partial(_add, "add_text", f"health/{name}", warning.text, iteration))
        board.close()
    _note_scores(run, iteration, measurements)


def _add(what: str, *values: Any, **options: Any) -> None:
    """Called with the board last: `add_scalar(*values)` of it, and so on."""
    *given, board = values
    getattr(board, what)(*given, **options)


def _note_scores(run: str, iteration: int, measurements: Iterable[Measurement]) -> None:
    """Next to the commit, for `checkpoint.keep_best`; together with what was noted before."""
    store = CheckpointStore(run)
    for commit in store.commits():
        if commit.iteration == iteration:
            earlier = commit.info.get("scores") or {}
            with suppress(FileNotFoundError, ValueError):
                earlier = {**earlier, **json.loads(store.store.get(f"{commit.folder}/{SCORES}"))}
            new = {m.measure: m.value for m in measurements if m.value == m.value}
            new |= {other: new[name] for name, other in other_names().items() if name in new}
            record_scores(store, iteration, {**earlier, **new})
            return
