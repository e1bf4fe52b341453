"""The processes of one launch watch each other: if one is lost or stands still, all end soon, and say which one it was.

A collective whose partner is gone waits: for good under NCCL, for its time limit under gloo. So every process has a thread
that tells the launch's key-value store once a second that it lives, and where its training is (progress.py). Process 0
looks after all others, they look after process 0 and after the verdict that it, or a process that fails by itself, leaves in
the store. A single process looks after itself.
"""

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch.distributed as dist

import trainer
from trainer.foundation.errors import TrainerError
from trainer.foundation.log import note_error, to_stderr
from trainer.processes.launch import Launch
from trainer.processes.progress import Clock, Place, Report, progress, said, stalled, straggler

BEAT_SECONDS = 1.0
SILENT_SECONDS = 40.0
"""Silence after which a process counts as lost, though nobody has lost its connection."""
SILENT_AFTER_LOSS_SECONDS = 6.0
"""The same after a collective has failed: then the silence only has to tell which process it was."""
VERDICT_SECONDS = 20.0
"""How long a process whose collective failed waits for the name of the lost one; launchers kill 30 s after SIGTERM."""
STORE_SECONDS = 50.0
"""How long a process continues without the store: its machine may be lost, or the run may just be stopping in good order."""
LEFT = "left"
MOST_NAMED = 3
STRAGGLER_EVERY = 200
"""Iterations between two lines about a straggler."""

logger = logging.getLogger("menagerie")


class Pace(NamedTuple):
    """What the watch of the progress goes by."""

    stall_seconds: float | None
    """`run.stall_seconds`."""
    allowed: Mapping[str, float]
    """Seconds that sections may take beyond their bound, beside progress.ALLOWED."""
    weight: float
    """Replicas that this process holds; below 1 its part of one."""


class LostProcess(TrainerError):
    """Another process of the launch has failed or is gone."""


class Watch:
    """A context manager round everything that uses collectives."""

    def __init__(self, launch: Launch, pace: Pace | None = None) -> None:
        """`pace`: how long the training may stand still; None: progress is not watched, and a single process not at all."""
        self.launch, self.pace = launch, pace
        self._clock = Clock(progress)
        self._named: tuple[int, int] | None = None
        self._slow_named = -STRAGGLER_EVERY
        self._ending = threading.Event()
        self._verdict: str | None = None
        self._known = threading.Event()
        self._collective_failed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.launch.world_size == 1 and self.pace is not None:
            self._thread = threading.Thread(target=self._watch_alone, args=[self.pace], name="watch", daemon=True)
            self._thread.start()
        if self.launch.world_size > 1:
            self._launcher = os.getppid()
            self._before = signal.signal(signal.SIGTERM, self._terminate)
            self._store = self._connect()
            self._store.set(self._key("who", self.launch.rank), json.dumps(_identity()))
            self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        if self.launch.world_size == 1:
            self._ending.set()
            self._thread.join(timeout=5 * BEAT_SECONDS)
            return
        if error is None:
            signal.signal(signal.SIGTERM, self._before)
        if isinstance(error, RuntimeError) and _is_broken_collective(error):
            # What broke it is more telling than gloo's or NCCL's words. It is told within seconds, or not at all.
            self._collective_failed.set()
            self._known.wait(VERDICT_SECONDS)
        self._ending.set()
        self._thread.join(timeout=5 * BEAT_SECONDS)
        if self._collective_failed.is_set() and self._verdict:
            raise LostProcess(self._verdict) from None
        with contextlib.suppress(Exception):  # the store may have gone with its process
            ordinary = error is None or (isinstance(error, SystemExit) and not error.code)
            if not ordinary and not isinstance(error, LostProcess):
                self._announce(f"process {self._name(self.launch.rank)} failed: {error}")
            self._store.set(self._key("beat", self.launch.rank), LEFT)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM where the loop does not take it. A launcher sends it as soon as one of its processes has died, and it
        must not cut off this one's sentence about that; without a failure it ends the process as ever."""
        if sys.exc_info()[1] is None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _connect(self) -> Any:
        """An own connection: the process group's is busy while a collective is set up."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10)
        )

    def _key(self, kind: str, rank: int | None = None) -> str:
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"menagerie/{start}/{kind}" + ("" if rank is None else f"/{rank}")

    def _watch(self) -> None:
        watched = range(1, self.launch.world_size) if self.launch.is_main else range(1)
        heard = {rank: ("", time.monotonic()) for rank in watched}
        beat, store_lost = 0, None
        while not self._ending.wait(BEAT_SECONDS):
            beat += 1
            try:
                own = self._clock.report(*self.pace) if self.pace else None
                self._store.set(self._key("beat", self.launch.rank), json.dumps([beat, own]))
                verdict = self._read_verdict() or self._judge(heard)
                if own and self.launch.is_main and not verdict:
                    verdict = self._look_at_progress({0: own, **_reports(heard)})
                store_lost = None
            except Exception:
                verdict = None
                store_lost = store_lost or time.monotonic()
                if os.getppid() != self._launcher:
                    return  # the launcher went, and the store with it; the run stops in good order (die_with_launcher)
                if time.monotonic() - store_lost > STORE_SECONDS:
                    where = os.environ["MASTER_ADDR"]
                    verdict = f"the store of the launch at {where} has not answered for {STORE_SECONDS:.0f} s"
            if verdict:
                self._give_up(verdict)
                return

    def _read_verdict(self) -> str | None:
        key = self._key("failed")
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _judge(self, heard: dict[int, tuple[str, float]]) -> str | None:
        """Look after the others; the verdict on the first one that is lost."""
        now = time.monotonic()
        limit = SILENT_AFTER_LOSS_SECONDS if self._collective_failed.is_set() else SILENT_SECONDS
        for rank, (last, when) in heard.items():
            key = self._key("beat", rank)
            beat = self._store.get(key).decode() if self._store.check([key]) else ""
            if beat != last:
                heard[rank] = (beat, now)
            elif beat != LEFT and ((dead := self._is_dead(rank)) or now - when > limit):
                verdict = f"process {self._name(rank)} is gone (killed, or its machine is lost)"
                if not dead and not self._collective_failed.is_set():
                    verdict = (
                        f"process {self._name(rank)} has not answered for {now - when:.0f} s (it is stopped, a lock is held in "
                        "it, or its machine is lost)"
                    )
                self._announce(verdict)
                return verdict
        return None

    def _look_at_progress(self, reports: Mapping[int, Report]) -> str | None:
        """In process 0: name processes that stand still, or are slow, in the log; the verdict once that is too long."""
        if len(reports) == self.launch.world_size and (slow := straggler(reports)) is not None:
            self._name_straggler(slow, reports)
        stall = stalled(reports) if len(reports) == self.launch.world_size else None
        if stall is None:
            return None
        told = "; ".join(f"process {self._name(rank)} {said(reports[rank])}" for rank in stall.ranks[:MOST_NAMED])
        if stall.ends:
            self._announce(told)
            return told
        place = reports[stall.ranks[0]].place[:2]
        if self._named != place:
            self._named = place
            logger.warning("%s; the others wait for it", told)
        return None

    def _name_straggler(self, slow: int, reports: Mapping[int, Report]) -> None:
        iteration = reports[slow].place.iteration
        if iteration >= self._slow_named + STRAGGLER_EVERY:
            self._slow_named = iteration
            others = statistics.median(report.own for rank, report in reports.items() if rank != slow)
            logger.warning(
                "straggler: process %s takes %.3g s of its own for the work of a replica, the others %.3g s; all wait for it",
                self._name(slow),
                reports[slow].own,
                others,
            )

    def _watch_alone(self, pace: Pace) -> None:
        """A single process: the verdict on itself."""
        named = None
        while not self._ending.wait(BEAT_SECONDS):
            report = self._clock.report(*pace)
            # Should a lock be held so that this thread cannot run, the interpreter's own timer ends the process.
            limit = report.bound + report.allowed + SILENT_SECONDS
            faulthandler.dump_traceback_later(limit, exit=True)
            stall = stalled({0: report})
            if stall and stall.ends:
                self._give_up(f"this process {said(report)}")
                break
            if stall and named != report.place[:2]:
                named = report.place[:2]
                logger.warning("this process %s", said(report))
        faulthandler.cancel_dump_traceback_later()

    def _is_dead(self, rank: int) -> bool:
        """Whether a process of this machine has ended; False where that cannot be seen."""
        key = self._key("who", rank)
        if not self._store.check([key]):
            return False
        who = json.loads(self._store.get(key))
        if who["place"] != _identity()["place"]:
            return False
        try:
            with open(f"/proc/{who['pid']}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
        except FileNotFoundError:
            return True

    def _name(self, rank: int) -> str:
        key = self._key("who", rank)
        if not self._store.check([key]):
            return str(rank)
        who = json.loads(self._store.get(key))
        return f"{rank} (pid {who['pid']} on {who['host']})"

    def _announce(self, verdict: str) -> None:
        """The first verdict stays: what follows from it is not the cause."""
        self._store.compare_set(self._key("failed"), "", verdict)

    def _give_up(self, verdict: str) -> None:
        """End this process: from its main thread if that comes back from its collective, else from here."""
        alone = "" if self.launch.world_size == 1 else "; this process cannot continue without it"
        self._verdict = f"{verdict}{alone}. The same command resumes from the last checkpoint"
        self._known.set()
        if not self._ending.wait(SILENT_AFTER_LOSS_SECONDS):
            # In threads: the one that hangs may hold the log, or the stream.
            for tell, text in ((to_stderr, f"error: {self._verdict}"), (note_error, self._verdict)):
                telling = threading.Thread(target=tell, args=[text], daemon=True)
                telling.start()
                telling.join(timeout=BEAT_SECONDS)
            os._exit(LostProcess.exit_status)


def _reports(heard: Mapping[int, tuple[str, float]]) -> dict[int, Report]:
    """What the processes told of their progress, where they did."""
    reports = {}
    for rank, (beat, _) in heard.items():
        told = json.loads(beat)[1] if beat.startswith("[") else None
        if told is not None:
            reports[rank] = Report(Place(*told[0]), *told[1:])
    return reports


def die_with_launcher() -> None:
    """Where a launcher started this process: ask for SIGTERM when the launcher dies (Linux), so that the run stops in good
    order. Without it SIGKILL or SIGUSR1 to the launcher leaves processes that train on, unseen.

    Raises `TrainerError` if the launcher ended while this process was starting: then nobody would send the signal.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        prctl = getattr(ctypes.CDLL(None), "prctl", None)
        if prctl is not None:
            set_parent_death_signal = 1  # linux/prctl.h
            prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != trainer.PARENT:
            raise TrainerError(
                f"launch: the launcher (pid {trainer.PARENT}) ended while this process was starting: launch again"
            )


def _identity() -> dict[str, str | int]:
    """Who this process is, and in which space its number counts."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        place = f"unknown/{socket.gethostname()}/{os.getpid()}"
    return {"pid": os.getpid(), "host": socket.gethostname(), "place": place}


def _is_broken_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
