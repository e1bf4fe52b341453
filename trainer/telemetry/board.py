"""What a run tells: TensorBoard, metrics.jsonl, log.txt, the status line, grids of samples."""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data_pipeline.storage.files import replace_file, written_aside
from trainer.foundation.lines import Lines, Trouble
from trainer.foundation.log import run_log, to_stdout
from trainer.foundation.output import attempt
from trainer.foundation.pictures import draw_grid
from trainer.telemetry.events import Events

logger = logging.getLogger("menagerie")


class Telemetry:
    """Writes the run's curves and pictures; exists in the main process only.

    `iteration` is where the run resumes: whatever an earlier attempt wrote beyond it is dropped, so that a resumed run's
    files are those of an undisturbed one.
    """

    def __init__(self, folder: Path, iteration: int, total: int) -> None:
        self.folder = folder
        self.total = total
        self._start_iteration = iteration
        self._start_time = time.monotonic()
        self._curves = _Curves(folder / "metrics.jsonl", iteration)
        self._events = Events(
            folder / "tensorboard", iteration + 1 if iteration else None, lambda board: board.add_custom_scalars(CURVES)
        )
        self._samples = Trouble(f"the grid of samples in {folder / 'samples'}")
        self.bar = tqdm(total=total, initial=iteration, unit="it", dynamic_ncols=True) if sys.stderr.isatty() else None
        self._logging = ExitStack()
        self._log = self._logging.enter_context(run_log(str(folder)))
        self._log.open_in(folder, self._beside_bar if self.bar else None)

    def settings(self, text: str, iteration: int) -> None:
        """The resolved settings, to config.yaml and TensorBoard."""
        try:
            replace_file(self.folder / "config.yaml", text.encode())
        except OSError as error:
            logger.warning("%s could not be written (%s); the training continues", self.folder / "config.yaml", error)
        self.text("settings", text, iteration)

    def text(self, name: str, text: str, iteration: int) -> None:
        """A text for TensorBoard's text page."""
        self._events.write(lambda board: board.add_text(name, f"```\n{text}\n```", iteration))

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Named scalars of `iteration`, to TensorBoard and metrics.jsonl."""
        when = time.time()
        self._events.write(
            *(partial(_add_scalar, name=name, value=value, at=(iteration, when)) for name, value in values.items())
        )
        self._curves.add({"iteration": iteration, **values})

    def status(self, iteration: int, values: Mapping[str, float], players: Sequence[str], note: str = "") -> None:
        """One status line with the players' losses and the first one's learning rate; `note` is put at its end."""
        done = max(iteration - self._start_iteration, 1)
        remaining = (time.monotonic() - self._start_time) / done * (self.total - iteration)
        line = (
            f"iteration {iteration:,}/{self.total:,} | images {values['progress/real_images']:,.0f} | "
            f"{values['speed/images_per_second']:.1f} images/s | wait {values['speed/data_wait_share']:.1%} | "
            f"{_losses(values, players)} | lr {values[f'learning_rate/{players[0]}']:.2e} | "
            f"left {_duration(remaining)}{note}"
        )
        self.say(line)

    def say(self, line: str) -> None:
        """A line for the terminal and log.txt."""
        logger.info("%s", line)

    def advance(self) -> None:
        """One iteration is done."""
        if self.bar is not None:
            attempt(self.bar.update, "stderr")

    def _beside_bar(self, line: str) -> None:
        """A line that does not tear the bar."""
        if self.bar is not None:
            attempt(self.bar.clear, "stderr")
            to_stdout(line)
            attempt(self.bar.refresh, "stderr")

    def grid(self, iteration: int, images: Tensor, names: Sequence[str]) -> None:
        """A grid of uint8 images [rows, columns, c, h, w], a row per class, to samples/ and TensorBoard."""
        picture = draw_grid(images, names)
        try:
            with written_aside(self.folder / "samples" / f"{iteration:08d}.png") as part:
                picture.save(part, format="PNG")
            self._samples.worked()
        except OSError as error:
            self._samples.failed(error)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        image = pixels.view(picture.height, picture.width, 3)
        self._events.write(lambda board: board.add_image("samples", image, iteration, dataformats="HWC"))

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close everything."""
        self._events.close()
        self._curves.close()
        if self.bar is not None:
            attempt(self.bar.close, "stderr")
        self._log.close_file()
        self._logging.close()


CURVES = {
    "Training": {
        "losses": ["Multiline", ["loss/discriminator", "loss/generator"]],
        "scores of D": ["Multiline", ["score/real", "score/fake"]],
        "learning rates": ["Multiline", ["learning_rate/generator", "learning_rate/discriminator"]],
    },
    "Speed": {
        "real images per second": ["Multiline", ["speed/images_per_second"]],
        "share of time waiting for data": ["Multiline", ["speed/data_wait_share"]],
    },
    "Fine-tuning with a classifier": {
        "accuracy by the guiding and by the independent classifier": [
            "Multiline",
            ["finetuning/guiding_accuracy", "finetuning/independent_accuracy"],
        ],
        "MS-SSIM within classes (higher: less varied)": ["Multiline", ["finetuning/ms_ssim"]],
        "classifier's loss": ["Multiline", ["generator/classifier_loss", "finetuning/guiding_loss"]],
    },
    "Quality": {"class accuracy of generated images": ["Multiline", ["quality/class_accuracy"]]},
}


def _losses(values: Mapping[str, float], players: Sequence[str]) -> str:
    """The players' losses, the last player's first, by initials where these tell the players apart."""
    initials = [player[0].upper() for player in players]
    short = dict(zip(players, initials if len(set(initials)) == len(players) else players, strict=True))
    return " ".join(f"{short[p]} {values[f'loss/{p}']:.3f}" for p in reversed(players) if f"loss/{p}" in values)


def _add_scalar(board: SummaryWriter, name: str, value: float, at: tuple[int, float]) -> None:
    iteration, when = at
    board.add_scalar(name, value, iteration, walltime=when)


class _Curves:
    """metrics.jsonl: a record for each point. What an earlier attempt wrote beyond `iteration` is dropped first."""

    def __init__(self, path: Path, iteration: int) -> None:
        self._lines, self._iteration, self._dropped = Lines(path), iteration, False
        self._trouble = Trouble(str(path))
        self._write("")

    def add(self, record: Mapping[str, float]) -> None:
        self._write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._write("")

    def _write(self, line: str) -> None:
        try:
            if not self._dropped:
                _drop_records_from(self._lines.path, self._iteration)
                self._dropped = True
        except OSError as error:
            self._lines.keep(line)
            self._trouble.failed(error)
            return
        try:
            self._lines.add(line)
            self._trouble.worked()
        except OSError as error:
            self._trouble.failed(error)


def _drop_records_from(path: Path, iteration: int) -> None:
    """Leave out what was recorded beyond `iteration`, and lines that a killed attempt tore. Lines of others stay."""
    if not path.exists():
        return
    kept, others = [], 0
    content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            if line.endswith(b"\n"):
                kept.append(line)
                others += 1
            continue  # without its end it is the last line of a killed attempt
        at = record.get("iteration") if isinstance(record, dict) else None
        others += not isinstance(at, int)
        if not isinstance(at, int) or at <= iteration:
            kept.append(line.rstrip(b"\r\n") + b"\n")
    if others:
        logger.warning("%s: %d lines are not ours; they stay, and nothing reads them", path, others)
    if b"".join(kept) != content:
        replace_file(path, b"".join(kept))


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}:{minute:02d}:{second:02d}" if days else f"{hour}:{minute:02d}:{second:02d}"
