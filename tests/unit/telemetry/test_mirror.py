"""The scratch folder of a run in object storage."""

import json
from pathlib import Path

import pytest

from trainer.foundation.stores import Store
from trainer.telemetry.mirror import RunFolder


def test_local_run_is_its_own_folder(tmp_path: Path) -> None:
    with RunFolder(str(tmp_path / "run")) as folder:
        assert folder.path == tmp_path / "run"
        folder.path.mkdir()
        (folder.path / "log.txt").write_text("x")
    assert (tmp_path / "run" / "log.txt").read_text() == "x"


def test_remote_run_goes_on_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"memory://{tmp_path}")
    with RunFolder(store.url) as folder:
        (folder.path / "samples").mkdir()
        (folder.path / "samples" / "1.png").write_bytes(b"picture")
        (folder.path / "metrics.jsonl").write_text(json.dumps({"iteration": 1}) + "\n")
        (folder.path / ".part").write_text("unfinished")
        folder.push()
        assert store.find().keys() == {"metrics.jsonl", "samples/1.png"}
        writes: list[str] = []
        put = folder._store.put

        def watched(name: str, data: bytes) -> None:
            writes.append(name)
            put(name, data)

        monkeypatch.setattr(folder._store, "put", watched)
        with (folder.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"iteration": 2}) + "\n")
        folder.push()
        assert writes == ["metrics.jsonl"]
    assert not folder.path.exists()
    with RunFolder(store.url) as again:
        assert (again.path / "metrics.jsonl").read_text().count("\n") == 2
        assert not (again.path / "samples").exists()
        again._store.put = None  # type: ignore[method-assign, assignment]


def test_failing_upload_is_told_and_made_up_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(f"memory://{tmp_path}")
    with RunFolder(store.url) as folder:
        (folder.path / "log.txt").write_text("x")
        put = folder._store.put

        def refuse(name: str, data: bytes) -> None:
            raise ConnectionError("gone")

        folder._store.put = refuse  # type: ignore[method-assign, assignment]
        folder.push()
        assert "log.txt could not be uploaded: gone" in caplog.text
        folder._store.put = put  # type: ignore[method-assign]
        folder.push()
        assert store.get("log.txt") == b"x"
