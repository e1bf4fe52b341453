"""Which process stands still, from when on that is said, and when it ends the run: the judgement alone."""

import threading
import time

import pytest

from trainer.processes.progress import ALLOWED, Clock, Place, Progress, Report, said, stalled, straggler


def report(iteration: int, number: int, stuck: float, section: str = "data", **changes: float) -> Report:
    return Report(
        Place(iteration, number, section), stuck, 30.0, changes.get("allowed", 0.0), changes.get("own", 0.0), "there"
    )


def test_the_least_advanced_process_is_to_blame() -> None:
    """The others wait for it: they stand still for as long, further on."""
    hangs, waits = report(7, 3, 31), report(7, 6, 31, "reduction")
    found = stalled({0: waits, 1: hangs, 2: waits})
    assert found is not None
    assert (found.ranks, found.ends) == ((1,), True)
    assert stalled({0: waits, 1: report(7, 3, 29), 2: waits}) is None  # slow, not yet stuck
    assert stalled({0: report(8, 1, 0), 1: hangs}) is not None
    both = stalled({0: waits, 1: waits})
    assert both is not None  # nobody is behind: the network between them
    assert both.ranks == (0, 1)


def test_a_section_that_may_take_long_is_named_first_and_ends_later() -> None:
    for stuck, expected in ((29, None), (31, False), (329, False), (331, True)):
        found = stalled({0: report(4, 2, stuck, allowed=300.0), 1: report(4, 5, 400, "reduction")})
        assert (found.ends if found else None) == expected, stuck


def test_the_bound_follows_the_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress()
    assert progress.allowed({}) == ALLOWED["start"]
    for iteration in range(4):
        progress.begin(iteration)
        progress.enter("data")
        now += 100.0 if iteration == 0 else 2.0  # the first one compiles
        progress.enter("reduction")
        now += 1.0
    progress.begin(4)
    assert progress.bound(None) == 30 + 5 * 3
    assert progress.bound(7.0) == 7
    assert progress.allowed({"data": 300}) == 0
    progress.enter("data")
    assert progress.allowed({"data": 300}) == 300
    assert progress.own_seconds() == 0  # too few
    for iteration in range(5, 30):
        progress.begin(iteration)
        now += 2.0
        progress.enter("reduction")
        now += 50.0
    assert progress.own_seconds() == 2  # without its waiting


def test_time_in_which_the_process_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z and fg, a suspended laptop: nothing hung."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress()
    clock = Clock(progress)
    for seconds in (1.0, 1.0, 1.0, 5000.0, 1.0):
        now += seconds
        found = clock.report(None, {}, 1.0)
    assert found.stuck == pytest.approx(5.0)
    progress.enter("data")
    assert clock.report(None, {}, 1.0).stuck == 0


def test_the_stack_is_that_of_the_training_thread() -> None:
    progress, ended = Progress(), threading.Event()

    def trains() -> None:
        progress.begin(3)
        ended.wait(20)

    thread = threading.Thread(target=trains)
    thread.start()
    while progress.place.iteration != 3:
        time.sleep(0.001)
    text = progress.stack()
    ended.set()
    thread.join()
    assert "trains (processes/test_progress.py:" in text
    assert "wait (" in text
    assert said(report(1200, 3, 31.4)) == "has not advanced for 31 s: it is in data of iteration 1,200, at there"


def test_a_straggler_is_slower_than_every_other() -> None:
    def slow(*own: float) -> int | None:
        return straggler({rank: report(9, 1, 0, own=seconds) for rank, seconds in enumerate(own)})

    assert slow(1.0, 2.0) == 1
    assert slow(1.0, 1.1, 0.9, 2.1) == 3
    assert slow(2.0, 1.0) == 0
    assert slow(1.0, 1.5) is None
    assert slow(1.0) is None
    assert slow(1.0, 0.0) is None  # not known yet
