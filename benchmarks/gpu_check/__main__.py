"""`make gpu`, or `python -m benchmarks.gpu_check [PART_OR_SECTION ...]`: what only a GPU can answer.

Prints a line for each answer, `GPU <name>: PASS|FAIL|FIGURE <figures>`, and appends it to OUT/gpu.jsonl with card,
versions and commit. Part a takes at most 270 s, part b at most 215 s. `--device cpu` is the small form of the same code.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from benchmarks.gpu_check import runs, steps
from benchmarks.gpu_check.runner import (
    ROOT,
    Check,
    Section,
    answered,
    chosen,
    note_done,
    put_in_place,
    run_sections,
)
from trainer.foundation.arithmetic import hardware

SECTIONS = (  # most important first
    Section("ceilings", "a", 20, steps.ceilings),
    Section("correctness", "a", 25, steps.correctness),
    Section("gradients", "a", 10, steps.gradients),
    Section("waits", "a", 25, steps.waits),
    Section("speed", "a", 110, steps.speed),
    Section("determinism", "a", 50, steps.determinism),
    Section("strategies", "a", 30, steps.strategies),
    Section("runs", "b", 105, runs.runs),
    Section("loader", "b", 30, runs.loader),
    Section("quality", "b", 80, runs.quality),
)


def main(arguments: list[str]) -> int:
    """Run what is asked for; returns 1 if an answer was FAIL, 2 without a GPU, else 0."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", help="a, b, or names of sections (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the small form")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu_check")
    parser.add_argument("--data", type=Path, default=ROOT / "data/fashion32", help="Fashion-MNIST's shards and judge")
    parser.add_argument("--resume", action="store_true", help="leave out what was answered here, at this commit")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("make gpu: PyTorch sees no GPU; DEVICE=cpu runs the small form of the same code", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    given.out.mkdir(parents=True, exist_ok=True)
    small = device.type == "cpu"
    check = Check(device, small, given.out, given.data)
    sections = chosen(SECTIONS, given.parts)
    if given.resume:
        done = answered(given.out, device)
        sections = [section for section in sections if section.name not in done]
    if small:  # a busy CPU is no card: the times are for hangs alone
        sections = [section._replace(seconds=240.0) for section in sections]
    about = hardware(device)
    check.say("machine", "FIGURE", ", ".join(f"{key} {value}" for key, value in about.items()))

    def noted(section: Section) -> Section:
        def run(check: Check) -> None:
            section.run(check)
            note_done(given.out, device, section.name)

        return section._replace(run=run)

    def go_on(names: list[str]) -> None:
        if not names:
            os._exit(1)
        options = ["--device", given.device, "--out", str(given.out), "--data", str(given.data)]
        put_in_place([*names, *options])

    return run_sections(check, [noted(section) for section in sections], go_on)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
