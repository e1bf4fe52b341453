"""How far this process is: the training thread notes where it is, the watch compares.

A process may live and yet not advance: it waits for a disk, for a lock, or for another process. Then all others wait for
it in their next collective. Of processes that stand still, the one that is least advanced keeps the others.
"""

import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

BOUND_SECONDS = 30.0
"""Standing still for so long, and for 5 of the longest of the last iterations, is not slowness."""
BOUND_ITERATIONS = 5
START_SECONDS = 300.0
"""The least bound up to the end of the first iteration, which opens data, compiles, and fills caches."""
WINDOW = 20
"""Iterations that are looked back at."""
ALLOWED: Mapping[str, float] = {
    "start": 1800.0,
    "first iteration": 1800.0,
    "log": 600.0,
    "samples": 600.0,
    "evaluation": 3600.0,
    "save": 600.0,
    "final save": 3600.0,
    "end": 600.0,
}
"""Seconds that sections may take beyond the bound; any other none. A process is named at the bound in any case."""
WAITING = ("agreement", "heartbeat", "reduction", "save", "final save", "evaluation")
"""Sections in which a process may wait for others: no work of its own."""


class Place(NamedTuple):
    """Where the training thread is. Places compare in the order of the training."""

    iteration: int
    number: int
    """Of the section in its iteration."""
    section: str


class Progress:
    """The place of this process's training thread. Only that thread writes."""

    def __init__(self) -> None:
        self.place = Place(-1, 0, "start")
        self.changes = 0
        """How often the place has changed: what the watch looks at."""
        self._thread = threading.get_ident()
        self._since = self._begun = time.monotonic()
        self._busy = 0.0
        self._iterations: deque[float] = deque(maxlen=WINDOW)
        self._own: deque[float] = deque(maxlen=WINDOW)
        self._completed = 0

    def begin(self, iteration: int) -> None:
        """An iteration begins."""
        self.enter("iteration")
        if self.place.iteration >= 0:
            self._completed += 1
            if self._completed > 1:  # the first one compiles, fills caches, and says nothing of the others
                self._iterations.append(self._since - self._begun)
                self._own.append(self._busy)
        self._thread, self._begun, self._busy = threading.get_ident(), self._since, 0.0
        self.place = Place(iteration, 0, "iteration")

    def enter(self, section: str) -> None:
        """The next section of the iteration begins."""
        now = time.monotonic()
        if self.place.section not in WAITING:
            self._busy += now - self._since
        self._since = now
        self.place = Place(self.place.iteration, self.place.number + 1, section)
        self.changes += 1

    def bound(self, stall_seconds: float | None) -> float:
        """Seconds at one place from which on it is said to stand still."""
        least = START_SECONDS if self._completed < 1 else 0.0
        own = BOUND_SECONDS + BOUND_ITERATIONS * max(self._iterations, default=0.0)
        return max(least, own if stall_seconds is None else stall_seconds)

    def allowed(self, more: Mapping[str, float]) -> float:
        """Seconds beyond the bound after which the run ends; `more` adds to the table."""
        first = ALLOWED["first iteration"] if self._completed < 1 else 0.0
        return max(first, ALLOWED.get(self.place.section, 0.0), more.get(self.place.section, 0.0))

    def own_seconds(self) -> float:
        """Of a usual iteration, those in which the process did not wait for others; 0 while that is not known."""
        return statistics.median(self._own) if len(self._own) == WINDOW else 0.0

    def stack(self, frames: int = 3) -> str:
        """What the training thread does: the innermost calls, outermost first."""
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return "its training thread has ended"
        calls = traceback.extract_stack(frame)[-frames:]
        return " > ".join(f"{call.name} ({'/'.join(call.filename.split('/')[-2:])}:{call.lineno})" for call in calls)


progress = Progress()
"""Of this process."""


class Report(NamedTuple):
    """What a process tells of its progress once a second."""

    place: Place
    stuck: float
    """Seconds at this place, in which the process was alive."""
    bound: float
    allowed: float
    own: float
    """`Progress.own_seconds`, for an equal share of the work."""
    stack: str = ""
    """Where it is at its bound."""


class Clock:
    """Counts how long a process stands at one place. Time in which the process itself was stopped does not count."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.stuck = progress, 0.0
        self._changes, self._looked = -1, time.monotonic()

    def report(self, stall_seconds: float | None, more: Mapping[str, float], weight: float) -> Report:
        """Once a second. `weight`: the process's share of the work (replicas that it holds)."""
        now = time.monotonic()
        changes = self.progress.changes
        self.stuck = self.stuck + min(now - self._looked, 2.0) if changes == self._changes else 0.0
        self._changes, self._looked = changes, now
        bound = self.progress.bound(stall_seconds)
        return Report(
            self.progress.place,
            self.stuck,
            bound,
            self.progress.allowed(more),
            self.progress.own_seconds() / weight,
            self.progress.stack() if self.stuck > bound else "",
        )


class Stall(NamedTuple):
    """Processes that keep all others."""

    ranks: tuple[int, ...]
    ends: bool
    """Whether they have stood still for longer than is allowed."""


def stalled(reports: Mapping[int, Report]) -> Stall | None:
    """The least advanced of the processes, if they have stood still beyond their bound."""
    least = min(report.place[:2] for report in reports.values())
    ranks = tuple(sorted(rank for rank, report in reports.items() if report.place[:2] == least))
    if not all(reports[rank].stuck > reports[rank].bound for rank in ranks):
        return None
    return Stall(ranks, all(reports[rank].stuck > reports[rank].bound + reports[rank].allowed for rank in ranks))


def said(report: Report) -> str:
    """For people: where a process stands, and for how long."""
    where = f"in {report.place.section}" + (f" of iteration {report.place.iteration:,}" if report.place[0] >= 0 else "")
    return f"has not advanced for {report.stuck:.0f} s: it is {where}, at {report.stack or 'an unknown place'}"


SLOW = 1.6
"""A process that takes so many times as long as the others is a straggler."""


def straggler(reports: Mapping[int, Report]) -> int | None:
    """The rank of a process whose own work takes much longer than that of every other one, if there is one."""
    if len(reports) < 2 or any(not report.own for report in reports.values()):
        return None
    slowest = max(reports, key=lambda rank: reports[rank].own)
    others = [report.own for rank, report in reports.items() if rank != slowest]
    return slowest if reports[slowest].own > SLOW * statistics.median(others) else None
