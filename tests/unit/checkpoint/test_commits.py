"""Checkpoints: what is saved comes back, and nothing that was altered ever does."""

import dataclasses
import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.__main__ import main
from trainer.checkpoint.commits import CheckpointConfig, CheckpointStore, StoreFailure, state_hash
from trainer.checkpoint.format import encode_manifest
from trainer.foundation.errors import CheckpointError


def make_state(iteration: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(iteration)
    return {
        "generator/weight": torch.randn(300, 1000, generator=generator),
        "generator/half": torch.randn(7, generator=generator).to(torch.bfloat16),
        "generator.adam/step": torch.tensor(float(iteration)),
        "discriminator/weight": torch.randn(2, 3, 4, generator=generator),
        "discriminator/count": torch.tensor([iteration], dtype=torch.int64),
        "discriminator/none": torch.zeros(0, 3),
    }


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path), CheckpointConfig(file_megabytes=1))


def folder_of(tmp_path: Path, iteration: int) -> Path:
    (found,) = (tmp_path / "checkpoints").glob(f"iteration-{iteration:08d}-*")
    return found


def test_round_trip_is_bitwise(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.newest() is None
    state = make_state(3)
    commit = store.save(3, state, {"images_seen": 192})
    assert len(commit.files) == 2  # 1.2 MB in files of at most 1 MiB
    reader = CheckpointStore(str(tmp_path))
    tensors, info = reader.load(commit)
    assert info["images_seen"] == 192
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name].view(-1), tensor.view(-1))
    assert state_hash(tensors) == state_hash(state) == commit.state_sha256


def test_state_hash_sees_name_shape_dtype_and_bytes_but_not_order() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2)}
    by_hand = (
        b'["a","float32",[6]]\n' + struct.pack("<6f", *range(6)) + b'["b","float32",[2]]\n' + struct.pack("<2f", 1, 1)
    )
    assert state_hash(state) == hashlib.sha256(by_hand).hexdigest()
    assert state_hash(state) == state_hash(dict(reversed(state.items())))
    others = [
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0).double(), "b": torch.ones(2)},
        {"a": -torch.arange(6.0), "b": torch.ones(2)},  # -0.0 == 0.0, other bytes
        {"a": torch.arange(6.0)},
    ]
    assert len({state_hash(state), *map(state_hash, others)}) == len(others) + 1
    strided = torch.arange(12.0)[::2] / 2
    assert state_hash({"a": strided, "b": torch.ones(2)}) == state_hash(state)


def test_newest_is_the_last_iteration(store: CheckpointStore) -> None:
    for iteration in (1, 2, 10):
        store.save(iteration, make_state(iteration))
    newest = store.newest()
    assert newest is not None
    assert newest.iteration == 10
    assert [commit.iteration for commit in store.commits()] == [10, 2, 1]


def flip_bit(folder: Path) -> None:
    path = folder / "state-00001-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "state-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


Damage = Callable[[Path], object]
DAMAGES: list[tuple[str, Damage, str]] = [
    ("flipped bit", flip_bit, r"state-00001-of-00002\.safetensors has sha256"),
    ("truncated file", truncate, r"state-00002-of-00002\.safetensors has \d+ bytes, the manifest says \d+"),
    ("missing file", lambda f: (f / "state-00001-of-00002.safetensors").unlink(), r"state-00001-of-00002.* is missing"),
    ("empty file", lambda f: (f / "state-00001-of-00002.safetensors").write_bytes(b""), r"has 0 bytes"),
    ("empty manifest", lambda f: (f / "manifest.json").write_bytes(b""), r"manifest\.json is empty"),
    ("cut manifest", lambda f: (f / "manifest.json").write_bytes(b'{"format": "men'), r"not whole JSON"),
    ("altered manifest", edit_manifest(lambda m: m.update(iteration=3)), r"does not have the sha256 that it states"),
    ("foreign manifest", lambda f: (f / "manifest.json").write_text("[1]"), r"not a checkpoint's manifest"),
]


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_damaged_newest_is_named_and_the_one_before_is_used(
    store: CheckpointStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Damage,
    message: str,
) -> None:
    for iteration in (1, 2):
        store.save(iteration, make_state(iteration))
    damage(folder_of(tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        restored = CheckpointStore(str(tmp_path)).restore(set_aside=True)
    assert restored is not None
    assert restored.commit.iteration == 1
    assert state_hash(restored.tensors) == state_hash(make_state(1))
    assert caplog.messages[0].startswith(f"checkpoint {folder_of(tmp_path, 2)}")
    assert re.search(message, caplog.messages[0])
    assert folder_of(tmp_path, 2).is_dir()  # kept aside, not deleted

    caplog.clear()
    again = CheckpointStore(str(tmp_path)).restore(set_aside=True)
    assert again is not None
    assert (again.commit.iteration, caplog.messages) == (1, [])  # what was set aside is tried last

    damage(folder_of(tmp_path, 1))
    with pytest.raises(CheckpointError, match=message) as refusal:
        CheckpointStore(str(tmp_path)).newest()
    assert "not started again from zero" in str(refusal.value)
    assert refusal.value.exit_status == 3


def test_attempt_without_manifest_and_foreign_files_do_not_count(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(1, make_state(1))
    store.save(2, make_state(2))
    (folder_of(tmp_path, 2) / "manifest.json").unlink()
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "notes.txt").write_text("mine")
    (checkpoints / "iteration-00000009").mkdir()
    (checkpoints / "iteration-00000009" / "manifest.json").write_text("{}")
    newest = CheckpointStore(str(tmp_path)).newest()
    assert newest is not None
    assert newest.iteration == 1
    assert (checkpoints / "notes.txt").exists()


def test_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    mine, other = CheckpointStore(str(tmp_path / "mine")), CheckpointStore(str(tmp_path / "other"))
    mine.save(1, make_state(1))
    other.save(5, make_state(5))
    folder_of(tmp_path / "other", 5).rename(tmp_path / "mine" / "checkpoints" / folder_of(tmp_path / "other", 5).name)
    newest = CheckpointStore(str(tmp_path / "mine")).newest()
    assert newest is not None
    assert newest.iteration == 1
    with pytest.raises(CheckpointError, match="belongs to another run"):
        CheckpointStore(str(tmp_path / "mine")).restore(5)


def test_newer_format_is_refused_not_skipped(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(1, make_state(1))
    store.save(2, make_state(2))
    edit_manifest(lambda manifest: manifest.update(format_version=99))(folder_of(tmp_path, 2))
    with pytest.raises(CheckpointError, match="format version 99, this program reads up to 1") as refusal:
        CheckpointStore(str(tmp_path)).newest()
    assert "version that wrote it" in str(refusal.value)


def test_failing_save_leaves_nothing_and_the_next_one_works(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(1, make_state(1))
    put = store.store.put

    def disk_full(path: str, data: bytes) -> None:
        if path.endswith("manifest.json"):
            raise OSError(28, "No space left on device")
        put(path, data)

    monkeypatch.setattr(store.store, "put", disk_full)
    with pytest.raises(OSError, match="No space left"):
        store.save(2, make_state(2))
    monkeypatch.undo()
    assert not list((tmp_path / "checkpoints").glob("iteration-00000002-*"))
    store.save(3, make_state(3))
    newest = store.newest()
    assert newest is not None
    assert newest.iteration == 3


def test_verbs(store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hash", str(tmp_path)]) == 3
    for iteration in (1, 2):
        store.save(iteration, make_state(iteration))
    capsys.readouterr()
    assert main(["hash", str(tmp_path)]) == 0
    assert capsys.readouterr().out == state_hash(make_state(2)) + "\n"
    assert main(["hash", str(tmp_path), "--iteration", "1"]) == 0
    assert capsys.readouterr().out == state_hash(make_state(1)) + "\n"
    assert main(["verify", str(tmp_path)]) == 0
    flip_bit(folder_of(tmp_path, 1))
    assert main(["verify", str(tmp_path), "--iteration", "2"]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 3
    assert re.search(r"1 .*sha256", capsys.readouterr().out)
    assert main(["list", str(tmp_path)]) == 0
    assert main(["hash", str(tmp_path), "--iteration", "7"]) == 3
    assert "no checkpoint of iteration 7" in capsys.readouterr().err


def test_store_that_fails_is_not_taken_for_damage(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(1, make_state(1))

    def unreachable(path: str) -> bytes:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(store.store, "get", unreachable)
    with pytest.raises(StoreFailure, match=r"^run\.dir: the store of .* failed: ConnectionError: no route") as failure:
        store.restore(set_aside=True)
    assert failure.value.exit_status == 1
    monkeypatch.undo()
    newest = store.newest()
    assert newest is not None
    assert not list((tmp_path / "checkpoints").rglob("rejected.json"))


def test_manifest_tells_its_origin(store: CheckpointStore, tmp_path: Path) -> None:
    first = store.save(1, make_state(1), {"settings": {"run": {"seed": 1}, "stages": (1, 2)}})
    same = store.save(2, make_state(2), {"settings": {"stages": [1, 2], "run": {"seed": 1}}})
    other = store.save(3, make_state(3), {"settings": {"run": {"seed": 2}, "stages": [1, 2]}})
    assert first.info["settings_sha256"] == same.info["settings_sha256"] != other.info["settings_sha256"]
    manifest = json.loads((folder_of(tmp_path, 1) / "manifest.json").read_text())
    assert manifest["info"]["settings"]["stages"] == [1, 2]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+g[0-9a-f]{12})?|unknown(\+g.*)?", manifest["info"]["code_version"])


def test_state_that_is_not_what_the_manifest_states_is_refused(store: CheckpointStore, tmp_path: Path) -> None:
    """Every file as promised, and yet not the whole state: a writer's mistake, not damage."""
    commit = store.save(1, make_state(1))
    incomplete = dataclasses.replace(commit, files=commit.files[:1])
    (folder_of(tmp_path, 1) / "manifest.json").write_bytes(encode_manifest(incomplete))
    with pytest.raises(CheckpointError, match="the state does not have the sha256 that its manifest states"):
        store.newest()
