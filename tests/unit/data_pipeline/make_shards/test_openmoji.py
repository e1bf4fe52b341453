"""The emoji package: two aligned drawings of each, splits by emoji, groups as classes. The drawings are the test's own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.make_shards.sources.openmoji import SPLITS, chosen, family, read_emoji
from data_pipeline.manifest.__main__ import describe
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig, open_stream
from data_pipeline.storage.folder import Folder

GROUPS = ("animals", "faces")


def run(*arguments: object) -> int:
    return make_shards.main([*(str(argument) for argument in arguments), "--jobs", "1"])


def drawing(number: int, colour: str) -> str:
    """A frame whose place tells the number, filled or not."""
    x, y = number % 6 * 8 + 8, number // 6 % 6 * 8 + 8
    shape = f'<rect x="{x}" y="{y}" width="16" height="12" fill="{colour}" stroke="#000" stroke-width="2"/>'
    return f'<svg id="emoji" viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{shape}</svg>'


def row(code: str, group: str, **more: Any) -> dict[str, Any]:
    return {
        "hexcode": code,
        "group": group,
        "annotation": f"the {group} {code}",
        "tags": "small, Red",
        "openmoji_tags": "red, ",
        "skintone": "",
    } | more


def write_package(folder: Path, count: int = 36) -> Path:
    """A package of `count` emoji in two groups, and of all that is to be left out."""
    rows = [row(f"1F{400 + n}", GROUPS[n % 2]) for n in range(count)]
    rows += [
        row("1F400-1F3FB", "faces", skintone=1),
        row("1F1E6", "flags"),
        row("2640", "component"),
        row("AE", "faces"),
    ]
    for place in ("data", "color/svg", "black/svg"):
        (folder / place).mkdir(parents=True)
    (folder / "data/openmoji.json").write_text(json.dumps(rows))
    for number, entry in enumerate(rows):
        grey = entry["hexcode"] == "AE"
        colour = "#fff" if grey else f"#{(number * 37) % 200:02x}{(number * 91) % 200:02x}f0"
        (folder / "color/svg" / f"{entry['hexcode']}.svg").write_text(drawing(number, colour))
        (folder / "black/svg" / f"{entry['hexcode']}.svg").write_text(drawing(number, "none"))
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("openmoji") / "package")


def images(folder: Path) -> tuple[np.ndarray, torch.Tensor]:
    """All images and labels in the order of seed 3."""
    samples = load_manifest(str(folder)).samples
    with open_stream(DataConfig(shards=str(folder)), seed=3, replicas=1, held=[0], sizes=[samples]) as stream:
        batch = next(stream)
        return batch.images[0].numpy().copy(), batch.labels[0].clone()


def test_both_styles_of_the_test_set_are_true_pairs(package: Path, tmp_path: Path) -> None:
    for style in ("line", "colour"):
        assert run("openmoji", package, tmp_path / style, "--style", style, "--split", "test", "--size", 72) == 0
    (line, labels), (colour, same) = images(tmp_path / "line"), images(tmp_path / "colour")
    assert torch.equal(labels, same)
    manifest = load_manifest(str(tmp_path / "line"))
    assert (manifest.class_names, manifest.resolution, manifest.channels) == (GROUPS, 72, 3)
    # The dark frame is in the same place, the ground is white, and the fill differs.
    assert ((line.max(-1) < 60) == (colour.max(-1) < 60)).all()
    assert (line[:, 0, 0] == 255).all()
    assert all((a != b).any() for a, b in zip(line, colour, strict=True))


def test_two_unpaired_sources_have_no_emoji_in_common() -> None:
    splits = {name: set(parts) for name, parts in SPLITS.items()}
    assert not splits["a"] & splits["b"]
    assert splits["a"] | splits["b"] == splits["train"]
    assert splits["train"] | splits["test"] == set(range(5))
    assert not splits["train"] & splits["test"]


def test_what_is_taken_and_its_words(package: Path) -> None:
    emoji = read_emoji(Folder(package))
    assert [entry.code for entry in emoji] == [f"1F{400 + n}" for n in range(36)]
    assert emoji[0].words == ("the animals 1f400", "small", "red")
    assert {entry.group for entry in read_emoji(Folder(package), ["flags"])} == {"flags"}
    assert sorted(e.code for s in ("a", "b", "test") for e in chosen(emoji, s)) == sorted(e.code for e in emoji)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F44B", "1F44B-1F3FD"),
        ("1F9D1-200D-1F680", "1F469-1F3FC-200D-1F680"),
        ("1F468", "1F9D1-200D-1F9B0"),
        ("1F6B6", "1F6B6-200D-2642-FE0F-200D-27A1-FE0F"),
        ("2764", "2764-FE0F"),
    ],
)
def test_variants_are_one_family(one: str, other: str) -> None:
    assert family(one) == family(other)


def test_other_emoji_are_other_families() -> None:
    assert len({family(code) for code in ("1F44B", "1F44C", "1F9D1-200D-1F680", "1F9D1", "2640", "200D")}) == 6


def test_equal_drawings_are_one_family(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "package", 4)
    (folder / "color/svg/1F403.svg").write_text((folder / "color/svg/1F401.svg").read_text())
    families = {entry.code: entry.family for entry in read_emoji(Folder(folder))}
    assert families["1F403"] == families["1F401"] != families["1F402"]


def test_the_licence_is_in_the_manifest(package: Path, tmp_path: Path) -> None:
    assert run("openmoji", package, tmp_path / "out", "--split", "train", "--size", 16) == 0
    manifest = load_manifest(str(tmp_path / "out"))
    assert manifest.options["notice"]["licence"] == "CC BY-SA 4.0"
    assert manifest.options["notice"]["renderer"].startswith("resvg_py ")
    lines = list(describe(manifest))
    assert "licence: CC BY-SA 4.0" in lines
    assert any(line.startswith("attribution: All emojis designed by OpenMoji") for line in lines)


def test_the_pixels_do_not_depend_on_the_processes(package: Path, tmp_path: Path) -> None:
    made = []
    for jobs in ("1", "2"):
        arguments = ["openmoji", str(package), str(tmp_path / jobs), "--size", "16", "--samples-per-shard", "8"]
        assert make_shards.main([*arguments, "--jobs", jobs]) == 0
        made.append(load_manifest(str(tmp_path / jobs)).fingerprint)
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (
            lambda f: (f / "data/openmoji.json").unlink(),
            (),
            r"^INPUT: .* holds no data/openmoji\.json; give the folder",
        ),
        (lambda f: (f / "data/openmoji.json").write_text("[{}]"), (), r"^INPUT: .*openmoji\.json cannot be read"),
        (lambda f: (f / "color/svg/1F402.svg").unlink(), (), r"^INPUT: .* lacks a drawing .*1F402.*; fetch"),
        (
            lambda f: (f / "black").rename(f / "noir"),
            ("--style", "line"),
            r"^INPUT: .* lacks a drawing .*black/svg/1F4",
        ),
        (lambda f: None, ("--groups", "feces"), r"^--groups: there is no group 'feces'; there are animals, "),
        (lambda f: None, ("--family", "mnist"), r"^--family: means nothing to SOURCE openmoji"),
    ],
)
def test_refusals(
    damage: Any, options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_package(tmp_path / "package")
    damage(folder)
    assert run("openmoji", folder, tmp_path / "out", *options) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if " -> " not in line]
    assert len(said) == 1
    assert re.search(message, said[0]), said


def test_a_and_b_are_for_emoji_alone(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cifar", package, tmp_path / "out", "--split", "a") == 1
    assert capsys.readouterr().err.startswith("--split: SOURCE cifar has train, test, but no a; choose one of them")


def test_without_the_renderer_it_says_what_to_install(package: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['resvg_py'] = None; from data_pipeline.make_shards.__main__ import main; "
        f"sys.exit(main(['openmoji', {str(package)!r}, {str(tmp_path / 'out')!r}, '--jobs', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("resvg is not installed; install menagerie[emoji]")
