"""Copies of event files that grow as the originals do."""

import os
import subprocess
from pathlib import Path

from trainer.curves import copy_curves
from trainer.foundation.stores import Store

ROOT = Path(__file__).resolve().parents[3]


def test_only_what_is_new_is_written_and_the_file_stays_the_same(tmp_path: Path) -> None:
    source, copy = tmp_path / "runs", tmp_path / "copy"
    events = source / "a" / "tensorboard" / "events.out.tfevents.1"
    events.parent.mkdir(parents=True)
    events.write_bytes(b"first")
    (source / "a" / "log.txt").write_text("no curve")
    store = Store(str(source))
    assert copy_curves(store, copy) == 5
    with (copy / "a" / "tensorboard" / "events.out.tfevents.1").open("rb") as held:
        assert held.read() == b"first"
        events.write_bytes(b"first, second")
        assert copy_curves(store, copy) == 8
        assert held.read() == b", second"  # whoever holds the file open sees it grow
    assert copy_curves(store, copy) == 0
    assert [path.name for path in copy.rglob("*") if path.is_file()] == ["events.out.tfevents.1"]
    events.write_bytes(b"new")  # replaced by a shorter one: fetched anew
    assert copy_curves(store, copy) == 3
    assert (copy / "a" / "tensorboard" / "events.out.tfevents.1").read_bytes() == b"new"


def test_script_copies_from_a_url(tmp_path: Path) -> None:
    events = tmp_path / "runs" / "tensorboard" / "events.out.tfevents.1"
    events.parent.mkdir(parents=True)
    events.write_bytes(b"curve")
    environment = {**os.environ, "ONCE": "yes", "COPY": str(tmp_path / "copy")}
    command = ["cluster/tensorboard.sh", f"file://{tmp_path}/runs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "tensorboard" / "events.out.tfevents.1").read_bytes() == b"curve"
    missing = subprocess.run(["cluster/tensorboard.sh", "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "RUN: there is no folder" in missing.stderr
