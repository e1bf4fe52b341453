"""Sections one after another, each within its time; one line an answer, on the screen and in a file.

The file gpu.jsonl has one JSON object a line, written as soon as the answer is known, so a run that is cut off has
answered. A section that takes longer than its time fails by name and the next one begins: first an exception is raised in
it; if it does not come out of a call into the GPU for another while, the process puts itself in place of itself and goes on
with the sections that are left.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple

import torch

from trainer.foundation.arithmetic import hardware, set_arithmetic

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds after its time in which a section may still come out of a call."""
Verdict = Literal["PASS", "FAIL", "FIGURE"]


class OutOfTime(Exception):
    """Raised in a section when its time is over."""


@dataclass
class Check:
    """What a section is given: where it runs, and how it answers."""

    device: torch.device
    small: bool
    """The form for CI: a few seconds a section on a CPU, by the same code."""
    out: Path
    data: Path
    """Shards of Fashion-MNIST with the judge's weights (data/fashion32); need not be there."""
    began: float = field(default_factory=time.monotonic)
    answers: list[tuple[str, Verdict, str]] = field(default_factory=list)

    def say(self, name: str, verdict: Verdict, figures: str) -> None:
        """One answer: printed, and appended to the file."""
        self.answers.append((name, verdict, figures))
        print(f"GPU {name}: {verdict} {figures}", flush=True)
        entry = {
            "name": name,
            "verdict": verdict,
            "figures": figures,
            "seconds": round(time.monotonic() - self.began, 1),
        }
        with (self.out / "gpu.jsonl").open("a") as file:
            file.write(json.dumps({**entry, **hardware(self.device), "commit": commit()}) + "\n")

    def judge(self, name: str, good: bool, figures: str) -> None:
        """An answer that is right or wrong."""
        self.say(name, "PASS" if good else "FAIL", figures)

    def detail(self, text: str) -> None:
        """More than a line: to details.txt."""
        with (self.out / "details.txt").open("a") as file:
            file.write(text + "\n")

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Section(NamedTuple):
    """A question, or several of one kind."""

    name: str
    part: str
    """`a` or `b`: parts that fit one call of ten minutes each, with room."""
    seconds: float
    """Its time on a GPU."""
    run: Callable[[Check], None]


def chosen(sections: Sequence[Section], words: Sequence[str]) -> list[Section]:
    """Those of the named parts or of these names, in their order. Raises SystemExit for a word that is neither."""
    known = {word for section in sections for word in (section.name, section.part)}
    for word in words:
        if word not in known:
            raise SystemExit(f"PARTS: {word!r} is not known; give some of {', '.join(sorted(known))}")
    return [section for section in sections if not words or {section.name, section.part} & set(words)]


def run_sections(check: Check, sections: Sequence[Section], go_on: Callable[[Sequence[str]], None]) -> int:
    """Run them; `go_on(names)` replaces the process where one hangs. Returns 1 if an answer was FAIL, else 0."""
    for number, section in enumerate(sections):
        check.began = time.monotonic()
        rest = [later.name for later in sections[number + 1 :]]
        set_arithmetic()  # a section that sets its own leaves nothing to the next one
        try:
            with at_most(check, section, lambda names=rest: go_on(names)):  # type: ignore[misc]
                section.run(check)
        except OutOfTime:
            check.say(section.name, "FAIL", f"out of time after {section.seconds:.0f} s")
        except Exception as error:
            check.detail(f"{section.name}\n{traceback.format_exc()}")
            first = (str(error).splitlines() or [""])[0]
            check.say(section.name, "FAIL", f"{type(error).__name__}: {first[:160]} (details.txt)")
        if check.device.type == "cuda":
            torch.cuda.empty_cache()
    return int(any(verdict == "FAIL" for _, verdict, _ in check.answers))


@contextmanager
def at_most(check: Check, section: Section, go_on: Callable[[], None]) -> Iterator[None]:
    """Raise `OutOfTime` in the main thread after the section's time; call `go_on` if that does not help."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime

    def hung() -> None:
        check.say(section.name, "FAIL", f"out of time after {section.seconds:.0f} s, and hung")
        go_on()

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, section.seconds)
    watch = threading.Timer(section.seconds + PATIENCE, hung)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        watch.cancel()


def answered(out: Path, device: torch.device) -> set[str]:
    """The names of sections that an earlier call finished here, on this card, at this commit: for --resume."""
    path, found = out / "done.jsonl", set()
    if path.exists():
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["where"] == where(device):
                found.add(entry["name"])
    return found


def note_done(out: Path, device: torch.device, name: str) -> None:
    """Remember that a section was run to its end."""
    with (out / "done.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, "where": where(device)}) + "\n")


def where(device: torch.device) -> str:
    """Card, versions and commit, as one text."""
    return json.dumps({**hardware(device), "commit": commit()}, sort_keys=True)


def commit() -> str:
    """The checkout's commit, or MENAGERIE_COMMIT where there is no git (a tree that was carried to another machine)."""
    if "MENAGERIE_COMMIT" in os.environ:
        return os.environ["MENAGERIE_COMMIT"]
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = "unknown"
    os.environ["MENAGERIE_COMMIT"] = found
    return found


def put_in_place(words: Sequence[str]) -> None:
    """Start this program again in place of this process, with other words."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu_check", *words])
