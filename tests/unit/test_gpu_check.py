"""`make gpu DEVICE=cpu`: the check for GPUs by the same code, small, so that it is whole when there is a GPU at last."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import runner
from benchmarks.gpu_check.__main__ import SECTIONS
from benchmarks.gpu_check.runner import Check, Section, chosen, run_sections
from tests.support.checkout import ROOT

LIMITS = {"a": 270, "b": 215}
"""Seconds of the two parts."""


def check_in(folder: Path) -> Check:
    return Check(torch.device("cpu"), True, folder, folder)


def small_form(out: Path, *words: str) -> list[dict[str, str]]:
    """What `make gpu DEVICE=cpu PARTS=words` answers."""
    command = ["make", "--no-print-directory", "gpu", "DEVICE=cpu", f"PARTS={' '.join(words)}", f"OUT={out}"]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command.append(f"PYTHON={sys.executable}")
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=280)
    answers = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    assert [f"GPU {a['name']}: {a['verdict']} {a['figures']}" for a in answers] == [
        line for line in done.stdout.splitlines() if line.startswith("GPU ")
    ]
    assert done.returncode == 0, done.stdout + done.stderr
    return answers


def test_the_steps_of_the_small_form_pass(tmp_path: Path) -> None:
    answers = small_form(tmp_path, "a", "loader")
    assert {"float64 defaults", "gradients bf16", "operations", "bits bf16", "strategy ddp", "loader"} <= {
        answer["name"] for answer in answers
    }
    assert not [answer for answer in answers if answer["verdict"] == "FAIL"]
    assert all(answer["torch"] == torch.__version__ and answer["commit"] for answer in answers)


@pytest.mark.slow
def test_the_runs_of_the_small_form_pass(tmp_path: Path) -> None:
    answers = small_form(tmp_path, "runs", "quality")
    assert {"killed and resumed bf16", "quality"} <= {answer["name"] for answer in answers}


def test_the_parts_fit_their_calls() -> None:
    for part, limit in LIMITS.items():
        assert sum(section.seconds for section in SECTIONS if section.part == part) <= limit
    assert [section.name for section in chosen(SECTIONS, ["b"])] == ["runs", "loader", "quality"]
    assert chosen(SECTIONS, []) == list(SECTIONS)
    with pytest.raises(SystemExit, match="PARTS: 'c' is not known"):
        chosen(SECTIONS, ["c"])


def test_a_section_out_of_time_fails_by_name_and_the_next_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(check: Check) -> None:
        time.sleep(30)

    def broken(check: Check) -> None:
        raise ValueError("two\nlines")

    sections = [
        Section("slow", "a", 0.2, slow),
        Section("broken", "a", 9, broken),
        Section("next", "a", 9, lambda check: check.judge("next", True, "1 s")),
    ]
    assert run_sections(check_in(tmp_path), sections, lambda names: None) == 1
    assert capsys.readouterr().out.splitlines() == [
        "GPU slow: FAIL out of time after 0 s",
        "GPU broken: FAIL ValueError: two (details.txt)",
        "GPU next: PASS 1 s",
    ]
    assert "Traceback" in (tmp_path / "details.txt").read_text()


def test_a_section_that_hangs_in_a_call_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process goes on in place of itself with the sections that are left."""
    monkeypatch.setattr(runner, "PATIENCE", 0.2)
    went_on: list[list[str]] = []

    def hangs(check: Check) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as if no line of Python were reached
        while not went_on:
            time.sleep(0.01)

    check = check_in(tmp_path)
    sections = [Section("hangs", "a", 0.1, hangs), Section("left", "a", 9, lambda check: None)]
    run_sections(check, sections, lambda names: went_on.append(list(names)))
    assert went_on == [["left"]]
    assert check.answers == [("hangs", "FAIL", "out of time after 0 s, and hung")]


def test_what_was_answered_on_this_card_at_this_commit_need_not_be_asked_again(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert runner.answered(tmp_path, cpu) == set()
    runner.note_done(tmp_path, cpu, "speed")
    assert runner.answered(tmp_path, cpu) == {"speed"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MENAGERIE_COMMIT", "another")
        assert runner.answered(tmp_path, cpu) == set()


def test_without_a_gpu_the_command_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu_check.__main__ import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "DEVICE=cpu" in capsys.readouterr().err
