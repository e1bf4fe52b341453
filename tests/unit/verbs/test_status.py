"""What batch scripts read of a run, without torch."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trainer.checkpoint.format import MANIFEST, Attempt
from trainer.checkpoint.names import committed
from trainer.foundation.errors import SettingError
from trainer.processes.preemption import write_marker
from trainer.status import read_status

CONFIG = "run: {dir: DIR, iterations: 10}\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "experiment.yaml"
    path.write_text(CONFIG.replace("DIR", str(tmp_path / "run")))
    return str(path)


def commit(run: Path, iteration: int, *, manifest: bool = True) -> None:
    folder = run / "checkpoints" / Attempt(iteration, 1, "0123abcd").folder
    folder.mkdir(parents=True)
    (folder / (MANIFEST if manifest else "state-00001-of-00001.safetensors")).write_text("{}")


def test_only_commits_count(config: str, tmp_path: Path) -> None:
    assert read_status(config, []) == (str(tmp_path / "run"), 0, "none", True)
    commit(tmp_path / "run", 20)
    commit(tmp_path / "run", 123_456_789)
    commit(tmp_path / "run", 200_000_000, manifest=False)
    assert read_status(config, []).iteration == 123_456_789
    assert committed(str(tmp_path / "run")) == {20, 123_456_789}
    assert read_status(config, ["--run.dir", str(tmp_path / "other")]).iteration == 0


@pytest.mark.parametrize(("reason", "stop"), [("SIGTERM", "requeue"), ("SIGINT", "person"), ("file STOP", "person")])
def test_marker_counts_for_its_own_start_only(config: str, tmp_path: Path, reason: str, stop: str) -> None:
    (tmp_path / "run").mkdir()
    before = datetime.now(UTC).timestamp()
    write_marker(str(tmp_path / "run"), iteration=3, reason=reason)
    assert read_status(config, [], since=before).stop == stop
    assert read_status(config, [], since=before + 60).stop == "none"


def test_waits_for_the_checkpoint_that_it_starts_from(config: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    words = ["--run.initialize_from", f"{base}@400"]
    commit(base, 300)
    assert not read_status(config, words).ready
    assert read_status(config, ["--run.initialize_from", str(base)]).ready
    commit(base, 400)
    assert read_status(config, words).ready
    assert not read_status(config, ["--run.initialize_from", f"{tmp_path}/nowhere"]).ready
    commit(tmp_path / "run", 401)  # its own checkpoint is newer; the base may be gone by now
    assert read_status(config, ["--run.initialize_from", f"{tmp_path}/nowhere"]).ready
    with pytest.raises(SettingError, match=r"run\.initialize_from: "):
        read_status(config, ["--run.dir", str(tmp_path / "other"), "--run.initialize_from", f"{base}@last"])


def test_command_is_one_line_and_needs_no_torch(config: str, tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from trainer.status import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "--since", "0", config, "--run.seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'run'}\t0\tnone\tready\n", done.stderr
