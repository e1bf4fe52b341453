"""Worker processes that an interrupt ends at once, and without a word."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from data_pipeline.errors import DataError

T = TypeVar("T")


class _Process(SpawnProcess):
    """Is deaf to Ctrl-C from its first moment on: it inherits the mask. A process that hears it while it starts up
    says so with a traceback."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Process


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


@contextlib.contextmanager
def worker_pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Freshly started (never forked) processes; leaving the block ends them, whatever they are at."""
    pool = ProcessPoolExecutor(jobs, mp_context=_Context(), initializer=_ignore_interrupts)
    try:
        yield pool
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def in_any_order(
    pool: ProcessPoolExecutor, function: Callable[..., T], calls: Iterable[tuple[Any, ...]], ahead: int
) -> Iterator[tuple[int, T]]:
    """(place in `calls`, result) as they are finished; at most `ahead` calls are on their way. Raises DataError where a
    worker process died, and what the function raises."""
    waiting = iter(enumerate(calls))
    running: dict[Future[T], int] = {}
    try:
        while True:
            for place, arguments in waiting:
                running[pool.submit(function, *arguments)] = place
                if len(running) >= ahead:
                    break
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()
    except BrokenProcessPool:
        raise DataError(
            "--jobs: a worker process died, as one that needs too much memory does; run the same command again with fewer"
        ) from None
