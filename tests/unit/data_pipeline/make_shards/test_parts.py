"""make_shards in parts, as a job array runs it: all parts and the merge make the bytes of one run."""

import hashlib
from pathlib import Path

import pytest

from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.make_shards import writing
from data_pipeline.manifest.format import load_manifest


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_parts_and_merge_make_the_bytes_of_one_run(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["idx", str(idx_folder)]
    options = ["--size", "8", "--samples-per-shard", "47", "--jobs", "1"]
    assert make_shards.main([*common, str(tmp_path / "whole"), *options]) == 0
    for part in (3, 1, 2):
        assert make_shards.main([*common, str(tmp_path / "parts"), *options, "--part", f"{part}/3"]) == 0
    assert len(list((tmp_path / "parts").glob("shard-*.tar"))) == 7
    assert not (tmp_path / "parts" / "manifest.json").exists()

    def nothing_is_left_to_do(*_: object) -> object:
        raise AssertionError("the merge wrote a shard")

    monkeypatch.setattr(writing, "write_shard", nothing_is_left_to_do)
    assert make_shards.main([*common, str(tmp_path / "parts"), *options]) == 0
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert load_manifest(str(tmp_path / "parts")).samples == 300


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b"])
def test_impossible_parts_are_refused(idx_folder: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        make_shards.main(["idx", str(idx_folder), str(tmp_path), "--part", part])
    assert refusal.value.code == 2


def test_parts_do_not_overwrite(idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_shards.main(["idx", str(idx_folder), str(tmp_path), "--part", "1/2", "--overwrite"]) == 1
    assert "--part: " in capsys.readouterr().err
