"""Parquet as it is on model hubs: the same samples as from a folder, each row group read once, nothing guessed."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.make_shards.sources import parquet
from data_pipeline.manifest.format import load_manifest
from tests.support.lying_data import contents, empty_memory, encoded, jpeg, picture, pixels, run, said

pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("tench, Tinca tinca", "goldfish", "great white shark")
FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}


def rows(images: list[bytes | None], **labels: list[Any]) -> dict[str, list[Any]]:
    return {"image": [{"bytes": data, "path": f"{k}.JPEG"} for k, data in enumerate(images)], **labels}


def write(path: Path, columns: dict[str, list[Any]], features: dict[str, Any] | None = None, group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


def hub(folder: Path, files: int = 3, each: int = 10) -> Path:
    """The form of ILSVRC/imagenet-1k."""
    for k in range(files):
        images = [jpeg(each * k + n, side=20 + n) for n in range(each)]
        labels = [(each * k + n) % len(NAMES) for n in range(each)]
        write(folder / f"train-{k:05d}-of-{files:05d}.parquet", rows(images, label=labels), FEATURES)
    return folder


def test_files_of_a_hub_give_the_samples_of_a_folder(tmp_path: Path) -> None:
    source = hub(tmp_path / "in")
    for place in range(30):
        path = tmp_path / "folder" / str(place % 3) / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(place, side=20 + place % 10))
    options = ("--size", 16, "--encoding", "png")
    assert run("parquet", source, tmp_path / "out", *options) == 0
    assert run("folder", tmp_path / "folder", tmp_path / "out2", *options) == 0
    manifest = load_manifest(str(tmp_path / "out"))
    assert [tuple(entry) for entry in manifest.classes] == [(name, str(k), 10) for k, name in enumerate(NAMES)]
    assert pixels(tmp_path / "out") == pixels(tmp_path / "out2")


def test_parts_and_remote_files_give_the_same_bytes(tmp_path: Path) -> None:
    source = hub(tmp_path / "in")
    memory = empty_memory()
    for path in source.iterdir():
        memory.pipe_file(f"/hub/data/{path.name}", path.read_bytes())
    options = ("--size", 16, "--samples-per-shard", 7)
    assert run("parquet", source, tmp_path / "whole", *options) == 0
    for part in ("2/2", "1/2"):
        assert run("parquet", source, tmp_path / "parts", *options, "--part", part) == 0
    assert run("parquet", source, tmp_path / "parts", *options) == 0
    assert run("parquet", "memory://hub/data", tmp_path / "far", *options) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts") == contents(tmp_path / "far")


def test_a_row_group_is_opened_once_and_its_rows_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Counted(parquet._Rows):
        def __init__(self, file: Any, place: tuple[str, int], column: str) -> None:
            opened.append(place)
            super().__init__(file, place, column)

    monkeypatch.setattr(parquet, "_Rows", Counted)
    assert run("parquet", hub(tmp_path / "in"), tmp_path / "out", "--size", 16) == 0
    assert len(opened) == len(set(opened)) == 9  # 3 files of 4, 4 and 2 rows
    assert opened != sorted(opened)  # the groups are shuffled


def test_other_columns_are_chosen(tmp_path: Path) -> None:
    """CIFAR-100's columns, plain bytes, and labels that are words."""
    images = [jpeg(k) for k in range(12)]
    columns = {"img": rows(images)["image"], "fine_label": [k % 3 for k in range(12)], "coarse_label": [0, 1] * 6}
    write(tmp_path / "in" / "train-00000-of-00001.parquet", columns)
    options = ("--size", 16, "--image-field", "img", "--label-field")
    assert run("parquet", tmp_path / "in", tmp_path / "fine", *options, "fine_label") == 0
    assert run("parquet", tmp_path / "in", tmp_path / "coarse", *options, "coarse_label") == 0
    assert [len(load_manifest(str(tmp_path / name)).classes) for name in ("fine", "coarse")] == [3, 2]
    one = write(tmp_path / "words.parquet", {"picture": images, "label": ["dog", "cat"] * 6, "caption": ["x"] * 12})
    assert run("parquet", one, tmp_path / "words", "--size", 16) == 0
    assert [tuple(entry) for entry in load_manifest(str(tmp_path / "words")).classes] == [
        ("cat", "cat", 6),
        ("dog", "dog", 6),
    ]


def test_rows_without_an_image_are_listed(tmp_path: Path) -> None:
    images = [*(jpeg(k) for k in range(20)), None, b"<html>404</html>", encoded(picture(1), "PNG")[:-40]]
    write(tmp_path / "in" / "a.parquet", rows(images, label=[k % 3 for k in range(23)]), FEATURES)
    assert run("parquet", tmp_path / "in", tmp_path / "out", "--max-unreadable", 0.2) == 0
    unreadable = dict(load_manifest(str(tmp_path / "out")).report["unreadable"])
    assert sorted(unreadable) == ["a.parquet/20", "a.parquet/21", "a.parquet/22"]
    assert unreadable["a.parquet/20"] == "the row holds no bytes of an image"
    (tmp_path / "exclude").write_text("\n".join(unreadable))
    assert run("parquet", tmp_path / "in", tmp_path / "out2", "--exclude", tmp_path / "exclude") == 0
    assert load_manifest(str(tmp_path / "out2")).report["written"] == 20


def test_a_split_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hub's folder `data` has all parts; the test set's labels are -1."""
    source = hub(tmp_path / "in" / "data")
    images = [jpeg(90 + k) for k in range(6)]
    write(source / "validation-00000-of-00001.parquet", rows(images, label=[0, 1, 2] * 2), FEATURES)
    write(source / "test-00000-of-00001.parquet", rows(images, label=[-1] * 6), FEATURES)
    assert run("parquet", tmp_path / "in", tmp_path / "out") == 1
    assert f"give {tmp_path}/in/data" in said(capsys)
    assert run("parquet", source, tmp_path / "out") == 1
    assert "holds files of test and train and validation; choose with --split, as in --split train" in said(capsys)
    assert run("parquet", source, tmp_path / "out", "--split", "test") == 1
    assert re.search(r"row 0 has -1 in the column label, which is no class; .* give --unlabelled", said(capsys))
    for split, options, samples in (("train", [], 30), ("validation", [], 6), ("test", ["--unlabelled"], 6)):
        assert run("parquet", source, tmp_path / split, "--split", split, "--size", 16, *options) == 0
        assert load_manifest(str(tmp_path / split)).samples == samples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train-00001-of-00003.parquet").unlink(), r"holds 2 of the 3 files train-\*.*not number 1;"),
        (lambda f: [path.unlink() for path in f.iterdir()], r"holds no \.parquet files; check the path"),
        (
            lambda f: (f / "train-00001-of-00003.parquet").write_bytes(b"PAR1 cut"),
            "train-00001-of-00003.parquet is not a whole Parquet file",
        ),
        (
            lambda f: write(f / "train-00001-of-00003.parquet", rows([jpeg(1)], label=[1])),
            "has other columns or classes than the files before it",
        ),
        (
            lambda f: write(f / "train-00000-of-00003.parquet", rows([jpeg(1)], label=[None])),
            "row 0 has None in the column label, which is no class",
        ),
        (
            lambda f: write(f / "train-00000-of-00003.parquet", rows([jpeg(1)], kind=[1])),
            "has no column label, only image, kind; choose one with --label-field, or give --unlabelled",
        ),
        (
            lambda f: write(f / "train-00000-of-00003.parquet", {"image": ["a.jpg"], "label": [1]}),
            "the column image is string, not image files; choose with --image-field",
        ),
    ],
)
def test_refusals(tmp_path: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(hub(tmp_path / "in"))
    assert run("parquet", tmp_path / "in", tmp_path / "out") == 1
    text = said(capsys)
    assert text.startswith("INPUT: ")
    assert re.search(message, text), text
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_cut_in_its_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its footer is whole, so only a read of the rows can know."""
    path = write(tmp_path / "in" / "a.parquet", rows([jpeg(k) for k in range(9)], label=[0, 1, 2] * 3), FEATURES)
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(data)
    assert run("parquet", tmp_path / "in", tmp_path / "out") == 1
    assert re.search(r"a\.parquet cannot be read at a\.parquet/\d .*; fetch it again", said(capsys))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = hub(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run("parquet", source, tmp_path / "out") == 1
    text = said(capsys)
    assert text.startswith("SOURCE parquet: needs pyarrow")
    assert "install it with pip install 'menagerie[parquet]'" in text
