"""Retention: what the rules keep, and that nothing is deleted before the newest commit was read back."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.__main__ import main
from trainer.checkpoint.commits import CheckpointConfig, CheckpointStore
from trainer.checkpoint.format import Commit
from trainer.checkpoint.retention import Cleaning, clean, expendable, read_scores, record_scores


def commit(iteration: int, writer: int = 1) -> Commit:
    folder = f"iteration-{iteration:08d}-writer-{writer:05d}-00000000"
    return Commit(folder, iteration, writer, "run", f"2026-01-01T00:00:{iteration:02d}", 0.0, "", ())


def kept(commits: list[Commit], **rules: object) -> list[tuple[int, int]]:
    gone = {item.folder for item in expendable(commits, **rules)}  # type: ignore[arg-type]
    return [(item.writer, item.iteration) for item in commits if item.folder not in gone]


@pytest.mark.parametrize(
    ("rules", "iterations"),
    [
        ({"keep_last": 2}, [40, 50]),
        ({"keep_last": 0}, [50]),
        ({"keep_last": 9}, [10, 20, 30, 40, 50]),
        ({"keep_last": 1, "keep_every": 20}, [20, 40, 50]),
        ({"keep_last": 1, "scores": {commit(10).folder: 7.0, commit(30).folder: 3.0}}, [30, 50]),
        ({"keep_last": 1, "scores": {commit(10).folder: 7.0, commit(30).folder: 3.0}, "better": "higher"}, [10, 50]),
    ],
)
def test_rules(rules: dict[str, object], iterations: list[int]) -> None:
    assert [iteration for _, iteration in kept([commit(n) for n in (10, 20, 30, 40, 50)], **rules)] == iterations


def test_commits_of_a_fenced_writer_are_older_than_those_of_its_successor() -> None:
    commits = [commit(10), commit(20), commit(30), commit(20, 2), commit(25, 2)]
    assert kept(commits, keep_last=3) == [(1, 10), (2, 20), (2, 25)]
    assert kept(commits, keep_last=1, keep_every=30) == [(2, 25)]  # 30 was left behind by writer 2
    assert kept(commits, keep_last=1, scores={commit(30).folder: 0.0}) == [(2, 25)]


def save(store: CheckpointStore, *iterations: int) -> None:
    for iteration in iterations:
        store.save(iteration, {"weight": torch.full((100,), float(iteration))})


def iterations_in(store: CheckpointStore) -> list[int]:
    return sorted(item.iteration for item in store.commits())


def test_clean_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), CheckpointConfig(keep_last=2, keep_best="frechet_distance"))
    save(store, 1, 2, 3, 4)
    record_scores(store, 1, {"frechet_distance": 9.0})
    record_scores(store, 2, {"frechet_distance": 5.0, "other": 1.0})
    record_scores(store, 3, {"frechet_distance": float("nan")})
    record_scores(store, 77, {"frechet_distance": 0.0})
    cleaning = clean(store)
    assert iterations_in(store) == [2, 3, 4]
    assert [name[:18] for name in cleaning.checkpoints] == ["iteration-00000001"]
    assert not (tmp_path / "checkpoints" / cleaning.checkpoints[0]).exists()
    assert clean(store) == Cleaning([], [])


def test_scores_in_the_manifest_count_until_others_are_recorded(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), CheckpointConfig(keep_last=1, keep_best="accuracy", keep_best_is="higher"))
    for iteration, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        store.save(iteration, {"weight": torch.ones(1)}, {"scores": {"accuracy": accuracy}})
    assert sorted(read_scores(store, store.commits(), "accuracy").values()) == [0.5, 0.7, 0.9]
    record_scores(store, 2, {"accuracy": 0.1})
    clean(store)
    assert iterations_in(store) == [3]


def test_manifest_goes_first(tmp_path: Path) -> None:
    steps: list[str] = []
    store = CheckpointStore(str(tmp_path), CheckpointConfig(keep_last=1), reached=steps.append)
    save(store, 1, 2)
    steps.clear()
    clean(store)
    assert steps[:4] == ["before read back", "before retention", "before delete of manifest.json", steps[3]]
    assert "before delete of state-00001-of-00001.safetensors" in steps[3:]


def test_nothing_is_deleted_while_the_newest_does_not_read_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path), CheckpointConfig(keep_last=1))
    save(store, 1, 2)
    (path,) = (tmp_path / "checkpoints").glob("iteration-00000002-*/state-*")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with caplog.at_level(logging.ERROR):
        assert clean(store) == Cleaning([], [])
    assert iterations_in(store) == [1, 2]
    assert "does not read back" in caplog.text


def test_checkpoint_set_aside_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), CheckpointConfig(keep_last=1))
    save(store, 1, 2)
    (path,) = (tmp_path / "checkpoints").glob("iteration-00000002-*/state-*")
    path.unlink()
    assert store.restore(set_aside=True) is not None
    clean(store)
    assert iterations_in(store) == [1, 2]  # 1 is the only good one, 2 is evidence
    save(store, 3)
    clean(store)
    assert iterations_in(store) == [2, 3]
    clean(store, rejected=True)
    assert iterations_in(store) == [3]


def test_dead_attempts_go_but_not_those_that_may_be_alive(tmp_path: Path) -> None:
    first = CheckpointStore(str(tmp_path))
    first.acquire()
    save(first, 1)
    checkpoints = tmp_path / "checkpoints"

    def attempt(writer: int) -> Path:
        folder = checkpoints / f"iteration-00000009-writer-{writer:05d}-0badc0de"
        folder.mkdir()
        (folder / "state-00001-of-00002.safetensors").write_bytes(b"half")
        return folder

    second = CheckpointStore(str(tmp_path))
    second.acquire()
    older, own, newer = attempt(1), attempt(2), attempt(3)
    (checkpoints / "notes").mkdir()
    (checkpoints / "notes" / "mine.txt").write_text("x")
    save(second, 2)
    assert clean(CheckpointStore(str(tmp_path)), dry_run=True).attempts == [older.name]  # no lease: 2 may be alive
    assert older.exists()
    assert clean(second).attempts == [older.name, own.name]
    assert [older.exists(), own.exists(), newer.exists()] == [False, False, True]
    assert (checkpoints / "notes" / "mine.txt").exists()


def test_prune_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(tmp_path)]) == 3
    store = CheckpointStore(str(tmp_path))
    save(store, 1, 2, 3, 4)
    assert main(["prune", str(tmp_path), "--keep_last", "0"]) == 2
    assert main(["prune", str(tmp_path), "--keep_last", "1", "--dry_run"]) == 0
    assert iterations_in(store) == [1, 2, 3, 4]
    assert main(["prune", str(tmp_path), "--keep_last", "1", "--keep_every", "2"]) == 0
    assert iterations_in(store) == [2, 4]
    assert "deleted 2 checkpoints and 0 unfinished attempts" in capsys.readouterr().out


def test_list_shows_a_verdict_for_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(str(tmp_path), about={"strategy": "ddp", "world_size": 2})
    store.acquire()
    for iteration in (10, 20, 30, 40):
        store.save(iteration, {"weight": torch.ones(100)}, {"real_images": iteration * 1000})
    checkpoints = tmp_path / "checkpoints"
    for name, damage in (
        ("iteration-00000040-*/manifest.json", Path.unlink),
        ("iteration-00000030-*/state-*", Path.unlink),
        ("iteration-00000020-*/state-*", lambda path: os.truncate(path, 9)),
    ):
        (path,) = checkpoints.glob(name)
        damage(path)
    (checkpoints / "notes.txt").write_text("mine")
    assert store.restore(set_aside=True) is not None
    capsys.readouterr()
    assert main(["list", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {int(line.split()[0]): line for line in lines[1:5]}
    assert "no manifest" in verdicts[40]
    assert "INVALID: state-00001-of-00001.safetensors is missing; set aside" in verdicts[30]
    assert "INVALID: state-00001-of-00001.safetensors has 9 bytes" in verdicts[20]
    assert "10,000" in verdicts[10]
    assert "ddp x 2, writer 1" in verdicts[10]
    assert verdicts[10].endswith("committed, newest")
    assert lines[5] == "not ours, left alone: notes.txt"
    assert main(["verify", str(tmp_path)]) == 3
    assert main(["verify", str(tmp_path), "--iteration", "10"]) == 0
    assert "verified, newest" in capsys.readouterr().out
    manifest = json.loads(next(checkpoints.glob("iteration-00000010-*/manifest.json")).read_text())
    assert (manifest["writer"], manifest["info"]["strategy"]) == (1, "ddp")
