"""Labels in a file: every usual form gives each image its own class, and what is not clear is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources.labels import read_labels
from data_pipeline.manifest.format import Manifest, load_manifest
from tests.support.lying_data import encoded, jpeg, picture, run, said

FLAT = {f"{k}.png": encoded(picture(k), "PNG") for k in range(6)}


def flat(folder: Path, below: str = "") -> Path:
    (folder / below).mkdir(parents=True)
    for name, data in FLAT.items():
        (folder / below / name).write_bytes(data)
    return folder


def made(tmp_path: Path, source: Path, labels: Path, *options: object) -> Manifest:
    assert run("folder", source, tmp_path / "out", "--labels", labels, "--size", 16, *options) == 0
    return load_manifest(str(tmp_path / "out"))


WORDS = {f"{k}.png": "bdaacb"[k] for k in range(6)}
NUMBERS = {f"{k}.png": k % 3 for k in range(6)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "".join(f"{name},{label}\n" for name, label in WORDS.items())),
        ("l.csv", "\ufefffilename,label\r\n" + "".join(f"{name},{label}\r\n" for name, label in WORDS.items())),
        ("l.csv", "id,width,label\n" + "".join(f"{name},500,{label}\n" for name, label in WORDS.items())),
        ("l.tsv", "".join(f"{name}\t{label}\n" for name, label in WORDS.items())),
        ("l.txt", "".join(f"./{name} {label}\n\n" for name, label in WORDS.items())),
        ("l.txt", "".join(f"{name[:-4]} {label}\n" for name, label in WORDS.items())),
        ("val_annotations.txt", "".join(f"{name}\t{label}\t0\t32\t44\t62\n" for name, label in WORDS.items())),
        ("l.json", json.dumps(WORDS)),
        ("dataset.json", json.dumps({"labels": list(WORDS.items())})),
        ("l.json", json.dumps(list(WORDS.items()))),
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": n, "label": w, "text": "x"}) for n, w in WORDS.items())),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n" + "".join(f"{n[:-4]},{w} 1 2 3 4 {w} 5 6 7 8\n" for n, w in WORDS.items()),
        ),
    ],
)
def test_every_form_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    labels = read_labels(tmp_path / name)
    assert [labels.of.get(n, labels.of.get(n[:-4])) for n in WORDS] == list(WORDS.values())
    manifest = made(tmp_path, flat(tmp_path / "in", "images"), tmp_path / name)
    assert [tuple(entry) for entry in manifest.classes] == [("a", "a", 2), ("b", "b", 2), ("c", "c", 1), ("d", "d", 1)]


def test_numbers_keep_their_order_and_get_names(tmp_path: Path) -> None:
    labels, names = tmp_path / "l.csv", tmp_path / "names"
    labels.write_text("".join(f"{k}.png,{9 + k % 2 if k > 1 else k}\n" for k in range(6)))
    names.write_text("".join(f"id{k} the {k}\n" for k in range(11)))
    source = flat(tmp_path / "in")
    assert run("folder", source, tmp_path / "out", "--labels", labels) == 1  # 2 .. 8 are empty
    labels.write_text("".join(f"{name},{label}\n" for name, label in NUMBERS.items()))
    names.write_text("z zebra\na ant\nm mouse\n")
    manifest = made(tmp_path, source, labels, "--class-names", names)
    assert [tuple(entry) for entry in manifest.classes] == [("zebra", "z", 2), ("ant", "a", 2), ("mouse", "m", 2)]


def devkit(folder: Path, numbers: list[int]) -> Path:
    """The form of ILSVRC2012_devkit_t12/data: ids in an order of its own, and inner nodes of the tree after them."""
    savemat = pytest.importorskip("scipy.io").savemat
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(1, "n02119789", "kit fox", 0), (2, "n02100735", "English setter", 0), (3, "n01440764", "tench", 0)]
    synsets = np.array([*rows, (1001, "n00001740", "entity", 3)], dtype=kinds)
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": synsets})
    path = folder / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in numbers))
    return path


def test_imagenets_validation_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = devkit(tmp_path / "devkit", [3, 1, 1, 2, 3, 3])
    source = tmp_path / "val"
    source.mkdir()
    for k in range(6):
        (source / f"ILSVRC2012_val_{k + 1:08d}.JPEG").write_bytes(jpeg(k))
    manifest = made(tmp_path, source, truth)
    assert [(entry.id, entry.samples) for entry in manifest.classes] == [
        ("n01440764", 3),
        ("n02100735", 1),
        ("n02119789", 2),
    ]
    (source / "ILSVRC2012_val_00000004.JPEG").unlink()
    assert run("folder", source, tmp_path / "out2", "--labels", truth) == 1
    assert "names 6 images, but INPUT has no ILSVRC2012_val_00000004.JPEG (1 are missing)" in said(capsys)
    for number in (0, 4, 1001):  # the last is an inner node of the tree
        truth.write_text(f"{number}\n")
        assert run("folder", source, tmp_path / "out2", "--labels", truth) == 1
        assert "does not say what the numbers of ILSVRC2012_validation_ground_truth.txt mean" in said(capsys)
    (truth.parent / "meta.mat").write_bytes(b"cut")
    assert run("folder", source, tmp_path / "out2", "--labels", truth) == 1
    assert "does not say what the numbers of ILSVRC2012_validation_ground_truth.txt mean" in said(capsys)
    (truth.parent / "meta.mat").unlink()
    assert run("folder", source, tmp_path / "out2", "--labels", truth) == 1
    assert "holds only numbers, without names; write `name,label`, or, if it is the ground truth" in said(capsys)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "0.png,a\n", r"has no label of 1\.png \(5 images have none\); complete it"),
        ("l.csv", "0.png,a\n0.png,b\n", r"says that 0\.png is a and b; correct it"),
        ("l.csv", "0.png,a\n1.png,\n", r"has no label of 1\.png; complete it"),
        ("l.csv", "0.png,-1\n1.png,2\n", r"says that 0\.png is -1, which is no class"),
        ("l.csv", "0.png,a,b\n", "has 3 columns, and it is not clear which is the label"),
        ("l.csv", "name,a,b\n0.png,a,b\n", "has 3 columns, and it is not clear which is the label"),
        ("l.txt", "0.png a\n1.png golden retriever\n", "row 2 of .* has 3 columns, the first has 2"),
        ("l.csv", "", "holds no labels"),
        ("l.json", "{", "is not JSON"),
        ("l.json", '{"labels": null}', "says that there are no labels; give --unlabelled"),
        ("l.json", '{"labels": [["0.png", [0, 1]]]}', "has an entry without one name and one label"),
        ("l.json", '[{"file_name": "0.png", "label": 1, "class": 2}]', "has an entry without one name and one label"),
        ("l.json", '"text"', "is no list of names and labels"),
    ],
)
def test_refusals(tmp_path: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text(text)
    assert run("folder", flat(tmp_path / "in"), tmp_path / "out", "--labels", tmp_path / name) == 1
    output = said(capsys)
    assert output.startswith("--labels: ")
    assert re.search(message, output), output
    assert not (tmp_path / "out").exists()


def test_one_line_for_two_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = flat(tmp_path / "in", "a")
    flat(tmp_path / "in" / "b")
    labels = tmp_path / "l.json"
    labels.write_text(json.dumps(WORDS))
    assert run("folder", source, tmp_path / "out", "--labels", labels) == 1
    assert "has one line for 0.png, but INPUT has a/0.png and b/0.png; write their paths below INPUT" in said(capsys)
    labels.write_text(json.dumps({f"{below}/{n}": w for below in "ab" for n, w in WORDS.items()}))
    assert made(tmp_path, source, labels).samples == 12


def test_more_labels_than_images(tmp_path: Path) -> None:
    """As with a part of the images; a file of lines without an image is else an incomplete INPUT."""
    labels = tmp_path / "l.json"
    labels.write_text(json.dumps({**WORDS, "6.png": "a"}))
    source = flat(tmp_path / "in")
    assert run("folder", source, tmp_path / "out", "--labels", labels) == 1
    assert made(tmp_path, source, labels, "--subset").samples == 6


def test_a_column_is_chosen(tmp_path: Path) -> None:
    labels = tmp_path / "l.csv"
    labels.write_text("name,coarse,fine\n" + "".join(f"{n},{k % 2},{k % 3}\n" for k, n in enumerate(WORDS)))
    source = flat(tmp_path / "in")
    assert len(made(tmp_path, source, labels, "--label-field", "fine").classes) == 3
    with pytest.raises(DataError, match=r"--label-field: .* has no column best, only name, coarse, fine"):
        read_labels(labels, "best")


def test_stylegans_folder_says_its_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its sub-folders 00000, 00001 are no classes."""
    source = flat(tmp_path / "in", "00000")
    for name in FLAT:
        (source / "00000" / name).rename(source / "00000" / f"img{name}")
    flat(source / "00001")
    entries = [(f"00000/img{n}", k) for n, k in NUMBERS.items()] + [(f"00001/{n}", k) for n, k in NUMBERS.items()]
    (source / "dataset.json").write_text(json.dumps({"labels": entries}))
    assert run("folder", source, tmp_path / "out") == 1
    found = re.search(r"give --labels (\S+),", said(capsys))
    assert found is not None
    assert made(tmp_path, source, Path(found[1])).samples == 12
