"""Kills small writers of checkpoints and looks at what they leave. Run as a program; prints one JSON object.

    crash_writer.py random URL KILLS SEED     KILLS writers one after another on one run, each killed at a random moment
    crash_writer.py steps URL EVERY           a writer killed at each EVERY-th named step of the protocol, fresh runs
    crash_writer.py rivals URL ROUNDS         two writers started at once on one run

All that touches a store happens in forked children: they have torch imported already, so that a writer starts in
milliseconds. After every kill a further child restores the run as a training would and compares it with what is known:
the state of an iteration is a function of the iteration, and a writer reports each commit through a pipe once it is
durable.
"""

import importlib
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from trainer.checkpoint.commits import CheckpointConfig, CheckpointStore, state_hash
from trainer.checkpoint.format import InvalidCommit
from trainer.checkpoint.lease import LeaseLost
from trainer.checkpoint.saver import Saver

CONFIG = CheckpointConfig(file_megabytes=1, keep_last=2, restart_limit=0)
Report = Callable[[str], None]


def make_state(iteration: int) -> dict[str, torch.Tensor]:
    """Three files' worth of state that only the iteration determines."""
    source = torch.Generator().manual_seed(iteration)
    state = {f"layer{number}/weight": torch.randn(200_000, generator=source) for number in range(3)}
    return {**state, "adam/step": torch.tensor(float(iteration))}


def write(url: str, report: Report, saves: int, kill_at: int = -1) -> None:
    """Take the run up where it is and save iteration after iteration; ends with SIGKILL at the `kill_at`-th step."""
    count = 0

    def reached(step: str) -> None:
        nonlocal count
        report(f"step {step}")
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    checkpoints = CheckpointStore(url, CONFIG, reached=reached)
    checkpoints.acquire()
    restored = checkpoints.restore(set_aside=True)
    start = restored.commit.iteration if restored else 0
    report(f"resumed {start}")
    with Saver(checkpoints, durable_iteration=start) as saver:
        try:
            for iteration in range(start + 1, start + saves + 1):
                saver.save(iteration, make_state(iteration))
                saver.wait()
                report(f"durable {iteration}")
        except LeaseLost as error:
            report(f"fenced {error}")
            return
    report("done")


def inspect(url: str, report: Report) -> None:
    """Restore as a training would, and read every commit back."""
    checkpoints = CheckpointStore(url, CONFIG)
    torn = 0
    for commit in checkpoints.commits():
        try:
            checkpoints.verify(commit)
        except InvalidCommit as error:
            torn += 1
            report(f"torn {commit.folder}: {error}")
    restored = checkpoints.restore()
    if restored is not None and state_hash(restored.tensors) != state_hash(make_state(restored.commit.iteration)):
        report("torn state is not that of its iteration")
    report(f"found {restored.commit.iteration if restored else 0}")


def fork(task: Callable[[Report], None]) -> tuple[int, int]:
    """Run `task` in a child process; returns its pid and the descriptor of what it reports, line by line."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status = 1
        try:
            task(lambda line: (os.write(writer, f"{line}\n".encode()), None)[1])
            status = 0
        except BaseException:
            os.write(writer, f"error {traceback.format_exc()!r}\n".encode())
        finally:
            os._exit(status)
    os.close(writer)
    return pid, reader


def collect(pid: int, reader: int) -> list[str]:
    """Wait for a child; all that it reported."""
    with os.fdopen(reader, "rb") as stream:
        lines = stream.read().decode().splitlines()
    os.waitpid(pid, 0)
    return lines


def numbers(lines: list[str], word: str) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(f"{word} ")]


def check(url: str, acknowledged: int, failures: list[str]) -> int:
    """Restore after a kill; what is wrong is added to `failures`. Returns the iteration that a resume finds."""
    lines = collect(*fork(lambda report: inspect(url, report)))
    failures += [line for line in lines if line.startswith(("torn", "error"))]
    found = (numbers(lines, "found") or [-1])[0]
    if found < acknowledged:
        failures.append(f"lost: found iteration {found}, {acknowledged} was durable")
    return found


def kill_at_random(url: str, kills: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    acknowledged, span = 0, 0.2
    failures: list[str] = []
    steps: Counter[str] = Counter()
    for _ in range(kills):
        pid, reader = fork(lambda report: write(url, report, saves=1000))
        head = b""
        while b"resumed" not in head:  # it is at work now
            piece = os.read(reader, 65536)
            if not piece:
                break
            head += piece
        begun = time.monotonic()
        time.sleep(chance.uniform(0.0, span))
        os.kill(pid, signal.SIGKILL)
        lived = time.monotonic() - begun
        lines = head.decode().splitlines() + collect(pid, reader)
        failures += [line for line in lines if line.startswith("error")]
        resumed = numbers(lines, "resumed")
        if resumed and resumed[0] < acknowledged:
            failures.append(f"lost: resumed at {resumed[0]}, {acknowledged} was durable")
        durable = numbers(lines, "durable")
        acknowledged = max([acknowledged, *durable])
        reached = [line for line in lines if line.startswith("step ")]
        steps[reached[-1].partition(" ")[2].rstrip("0123456789") if reached else "before the first step"] += 1
        # Two to three saves a life, whatever the store's speed.
        span = 0.7 * span + 0.3 * min(2.5 * lived / max(len(durable), 0.5), 5.0)
        acknowledged = max(acknowledged, check(url, acknowledged, failures))
    return {"kills": kills, "iterations": acknowledged, "failures": failures, "last_steps": dict(steps.most_common())}


def kill_at_steps(url: str, every: int) -> dict[str, Any]:
    saves = 4
    lines = collect(*fork(lambda report: write(f"{url}/undisturbed", report, saves)))
    steps = [line for line in lines if line.startswith("step ")]
    failures = [line for line in lines if line.startswith("error")]
    killed = 0
    for number in range(0, len(steps), every):
        run = f"{url}/step{number}"
        pid, reader = fork(lambda report, run=run, number=number: write(run, report, saves, kill_at=number))  # type: ignore[misc]
        lines = collect(pid, reader)
        failures += [line for line in lines if line.startswith("error")]
        reached = [line for line in lines if line.startswith("step ")]
        killed += "done" not in lines
        # A manifest that was written counts, whether or not the writer lived to say so.
        manifests = sum(line == "step after manifest" for line in reached)
        acknowledged = max([manifests, *numbers(lines, "durable")])
        check(run, acknowledged, failures)
        # The next start goes on, and leaves nothing of the dead one behind.
        lines = collect(*fork(lambda report, run=run: write(run, report, saves)))  # type: ignore[misc]
        if "done" not in lines:
            failures.append(f"after a kill at {reached[-1]}: {lines[-1:]}")
        check(run, acknowledged + saves, failures)
    return {"steps": len(steps), "killed": killed, "failures": failures, "names": sorted({s[5:] for s in steps})}


def set_rivals(url: str, rounds: int) -> dict[str, Any]:
    failures: list[str] = []
    fenced_messages: list[str] = []
    for number in range(rounds):
        run = f"{url}/round{number}"
        children = [fork(lambda report, run=run: write(run, report, saves=100_000)) for _ in range(2)]  # type: ignore[misc]
        heard = [b"", b""]
        fenced: set[int] = set()
        after: Counter[int] = Counter()
        deadline = time.monotonic() + 120
        # One of them is fenced off; the other one then commits five times more.
        while time.monotonic() < deadline and not (fenced and max(after.values(), default=0) >= 5):
            for index, (_, reader) in enumerate(children):
                os.set_blocking(reader, False)
                try:
                    piece = os.read(reader, 65536)
                except BlockingIOError:
                    continue
                heard[index] += piece
                if b"fenced" in heard[index]:
                    fenced.add(index)
                elif fenced:
                    after[index] += piece.count(b"durable")
            time.sleep(0.01)
        for pid, _ in children:
            os.kill(pid, signal.SIGKILL)
        texts = []
        for index, (pid, reader) in enumerate(children):
            os.set_blocking(reader, True)
            texts.append(heard[index].decode().splitlines() + collect(pid, reader))
        fenced_messages += [line for text in texts for line in text if line.startswith("fenced")]
        if len(fenced) != 1:
            failures.append(f"round {number}: {len(fenced)} of 2 writers were fenced off")
            continue
        (loser,) = fenced
        failures += [line for text in texts for line in text if line.startswith("error")]
        check(run, max([0, *numbers(texts[1 - loser], "durable")]), failures)
    return {"rounds": rounds, "failures": failures, "messages": fenced_messages[:1]}


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("menagerie").setLevel(logging.ERROR)
    mode, url, *rest = sys.argv[1:]
    if url.startswith("s3:"):
        importlib.import_module("s3fs")  # once, before the forks; no connection is made
    begun = time.monotonic()
    if mode == "random":
        result = kill_at_random(url, int(rest[0]), int(rest[1]))
    elif mode == "steps":
        result = kill_at_steps(url, int(rest[0]))
    else:
        result = set_rivals(url, int(rest[0]))
    print(json.dumps({**result, "seconds": round(time.monotonic() - begun, 1)}))


if __name__ == "__main__":
    main()
