"""Pictures with tags, their vocabulary and split; word vectors from files and from text. All data are the test's own."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.make_shards import corpus
from data_pipeline.make_shards.sources.tags import TagsSource
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.word_vectors import read_word_vectors
from data_pipeline.storage.folder import Folder

VECTORS = {"cat": [3.0, 4.0], "dog": [1.0, 0.0], "red": [0.0, 2.0], "red_cat": [0.0, -1.0], "unasked": [1.0, 1.0]}


def run(*arguments: object) -> int:
    return make_shards.main([*(str(argument) for argument in arguments), "--jobs", "1"])


def as_text(header: bool) -> bytes:
    lines = [f"{word} {' '.join(map(str, numbers))}" for word, numbers in VECTORS.items()]
    return ("\n".join([*([f"{len(lines)} 2"] if header else []), *lines]) + "\n").encode()


def as_binary(ends: bytes) -> bytes:
    packed = b"".join(word.encode() + b" " + struct.pack("<2f", *numbers) + ends for word, numbers in VECTORS.items())
    return f"{len(VECTORS)} 2\n".encode() + packed


@pytest.mark.parametrize(
    "content",
    [as_text(True), as_text(False), as_binary(b"\n"), as_binary(b"")],
    ids=["word2vec", "glove", "binary", "bare"],
)
def test_all_forms_give_the_same_unit_vectors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(content)
    found = read_word_vectors(
        str(tmp_path / "words"), ["cat", "red cat", "red dog", "dog-cat", "bird", "red bird"], "--words"
    )
    assert set(found) == {"cat", "red cat", "red dog", "dog-cat"}
    np.testing.assert_allclose(found["cat"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(found["red cat"], [0.0, -1.0])  # the file has it as one word
    np.testing.assert_allclose(found["red dog"], np.array([1.0, 1.0]) / 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(found["dog-cat"], np.array([1.6, 0.8]) / np.hypot(1.6, 0.8), rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^--words: .*words does not exist; give a file of word2vec"),
        (b"", None),
        (as_text(True) + b"bird 1.0\n", None),  # a word that nobody asks for is not looked at
        (b"2 2\ncat 1 2\ndog 1\n", r"^--words: .*words: line 3 is no word with 2 numbers"),
        (b"cat 1 2\ndog x 2\n", r"^--words: .*words: line 2 is no word with 2 numbers"),
        (b"1 2\ncat nan 1\n", r"^--words: .*not finite in the vector of 'cat'"),
        (as_binary(b"")[:-5], r"^--words: .*words: ends within word 5 of 5; fetch it again"),
    ],
)
def test_damaged_files_are_refused(content: bytes | None, message: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "words").write_bytes(content)
    if content == b"":
        assert read_word_vectors(str(tmp_path / "words"), ["cat"], "--words") == {}
    elif message is None:
        assert set(read_word_vectors(str(tmp_path / "words"), ["cat"], "--words")) == {"cat"}
    else:
        with pytest.raises(DataError, match=message):
            read_word_vectors(str(tmp_path / "words"), ["cat", "dog", "unasked"], "--words")


def write_flickr(folder: Path, count: int = 12) -> Path:
    """Pictures 1 to `count`: every one is a sky, every second a cat, the third has no tag at all, 10 is grey."""
    (folder / "meta/tags").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number in range(1, count + 1):
        mode = "L" if number == 10 else "RGB"
        Image.new(mode, (20, 16), number if mode == "L" else (number, 0, 99)).save(folder / f"im{number}.jpg")
        tags = "" if number == 3 else "sky\n" + ("Cat\n" if number % 2 == 0 else "") + f"only{number}\n"
        (folder / f"meta/tags/tags{number}.txt").write_text(tags)
    (folder / "annotations/night_r1.txt").write_text("1\n2\n12\n")
    (folder / "annotations/night.txt").write_text("1\n2\n4\n")
    (folder / "annotations/README.txt").write_text("not a list")
    return folder


def pairs(source: TagsSource) -> list[tuple[str, str]]:
    listing = source.listing()
    return [(item.name.split()[0], listing.classes[item.label or 0][0]) for item in listing.items]


def test_mir_flickr_is_split_by_picture_in_the_order_of_numbers(tmp_path: Path) -> None:
    folder = Folder(write_flickr(tmp_path / "mirflickr"))
    training, test = (pairs(TagsSource(folder, split=split, least=2)) for split in ("train", "test"))
    # The first two thirds by number, so 10 is not among them; annotations are tags; 3 is left out.
    assert [name for name, tag in training if tag == "sky"] == [f"im{n}.jpg" for n in (1, 2, 4, 5, 6, 7, 8)]
    assert [name for name, tag in training if tag == "cat"] == [f"im{n}.jpg" for n in (2, 4, 6, 8)]
    assert [name for name, tag in training if tag == "night"] == [f"im{n}.jpg" for n in (1, 2, 4)]
    assert {name for name, _ in test} == {f"im{n}.jpg" for n in (9, 10, 11, 12)}
    assert not {name for name, _ in training} & {name for name, _ in test}
    notice = dict(TagsSource(folder, least=2).listing().notice)
    assert (notice["pictures"], notice["without a tag"]) == ("7", "1")


def test_both_splits_have_the_vocabulary_of_the_training_pictures(tmp_path: Path) -> None:
    folder = write_flickr(tmp_path / "mirflickr")
    (folder / "annotations/night_r1.txt").write_text("1\n2\n")  # no picture of the test split
    for split in ("train", "test"):
        assert run("tags", folder, tmp_path / split, "--split", split, "--minimum-pictures", 2, "--size", 16) == 0
    training, test = (load_manifest(str(tmp_path / split)) for split in ("train", "test"))
    assert training.class_names == test.class_names == ("cat", "night", "sky")
    assert [entry.samples for entry in test.classes] == [2, 0, 4]
    assert test.channels == 3


def test_tags_without_a_vector_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat 1 0\nsky 0 1\nnowhere 1 1\n")
    folder = Folder(write_flickr(tmp_path / "mirflickr"))
    assert {tag for _, tag in pairs(TagsSource(folder, words=str(tmp_path / "words.txt"), least=2))} == {"cat", "sky"}


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda f: [path.unlink() for path in f.glob("*.jpg")], (), r"^INPUT: .* holds neither im1\.jpg"),
        (lambda f: (f / "meta/tags/tags7.txt").unlink(), (), r"^INPUT: .*meta/tags lacks tags7\.txt"),
        (lambda f: (f / "annotations/dog.txt").write_text("99\n"), (), r"^INPUT: .*dog\.txt names the picture '99'"),
        (lambda f: None, (), r"^--minimum-pictures: 1 tags are on 5 or more of the training pictures"),
        (lambda f: [p.write_text("") for p in f.glob("*/tags/*")], (), r"^--minimum-pictures: 0 tags are on 5"),
        (
            lambda f: (f / "words").write_text("hund 1 0\n"),
            ("--words", "words", "--minimum-pictures", "2"),
            r"^--words: .*words has a vector of 0 of the 3 tags, such as 'cat'",
        ),
        (lambda f: None, ("--style", "line"), r"^--style: means nothing to SOURCE tags"),
    ],
)
def test_refusals(
    damage: Callable[[Path], object],
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_flickr(tmp_path / "mirflickr")
    damage(folder)
    given = [str(folder / option) if option == "words" else option for option in options]
    assert run("tags", folder, tmp_path / "out", *given) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said


def write_emoji(folder: Path, count: int = 24) -> Path:
    """A package of squares: all are a square, every second is a dark one; the woman and the man are one emoji."""
    codes = [*(f"1F{400 + n}" for n in range(count)), "1F469-200D-1F680", "1F468-200D-1F680"]
    rows = [
        {
            "hexcode": code,
            "group": "shapes",
            "annotation": "Square",
            "tags": "dark" if n % 2 else "",
            "openmoji_tags": "square, dark" if n % 2 else "square",
            "skintone": "",
        }
        for n, code in enumerate(codes)
    ]
    for place in ("data", "color/svg", "black/svg"):
        (folder / place).mkdir(parents=True)
    (folder / "data/openmoji.json").write_text(json.dumps(rows))
    for n, code in enumerate(codes):
        shape = f'<rect x="{n}" y="9" width="30" height="30" fill="#{n:02x}40c0"/>'
        svg = f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{shape}</svg>'
        (folder / f"color/svg/{code}.svg").write_text(svg)
    return folder


def test_emoji_are_split_by_family_and_drawn_in_colour(tmp_path: Path) -> None:
    package = write_emoji(tmp_path / "package")
    source = {split: TagsSource(Folder(package), split=split, side=36) for split in ("train", "test")}
    found = {split: pairs(entry) for split, entry in source.items()}
    # Each tag once, though it is the name, a tag and an OpenMoji tag.
    assert all(len(set(entries)) == len(entries) for entries in found.values())
    names = {split: {name for name, _ in entries} for split, entries in found.items()}
    assert not names["train"] & names["test"]
    assert len(names["train"] | names["test"]) == 26
    assert len([split for split in names if any("200D" in name for name in names[split])]) == 1
    dark = {name for entries in found.values() for name, tag in entries if tag == "dark"}
    assert dark == {f"1F{400 + n}" for n in range(1, 24, 2)} | {"1F468-200D-1F680"}
    listing = source["train"].listing()
    assert dict(listing.notice)["licence"] == "CC BY-SA 4.0"
    image = source["train"].image(listing.items[0])
    assert image.size == (36, 36)
    assert image.convert("RGBA").getpixel((10, 12))[1:] == (0x40, 0xC0, 255)


TEXT = "The cat sat on a red mat\n\nred cat, RED dog\n"


def test_counting_falls_with_the_distance_and_ends_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    words = corpus.vocabulary_of(corpus.lines_of(tmp_path / "text"), 1)
    assert words[:2] == ["red", "cat"]  # the most frequent first; single letters are no words
    counts = corpus.cooccurrences(corpus.lines_of(tmp_path / "text"), words, 2).toarray()
    number = {word: place for place, word in enumerate(words)}
    assert counts[number["cat"], number["sat"]] == counts[number["sat"], number["cat"]] == 1
    assert counts[number["cat"], number["on"]] == 0.5
    assert counts[number["red"], number["cat"]] == 1 + 1  # of "red cat" and "cat, RED"
    assert counts[number["mat"], number["cat"]] == 0
    assert counts[number["red"], number["red"]] == 2 * 0.5


def test_ppmi_and_vectors_against_a_plain_form(tmp_path: Path) -> None:
    from scipy import sparse

    counts = np.random.default_rng(0).integers(0, 4, (9, 9)).astype(float)
    counts = counts + counts.T
    smoothed = counts.sum(0) ** 0.75
    expected = np.zeros((9, 9))
    for i in range(9):
        for j in range(9):
            if counts[i, j]:
                share = (counts[i, j] / counts.sum()) / (counts[i].sum() / counts.sum() * smoothed[j] / smoothed.sum())
                expected[i, j] = max(0.0, np.log(share))
    matrix = corpus.ppmi(sparse.csr_matrix(counts))
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-12)
    u, s, _ = np.linalg.svd(expected)
    vectors = corpus.vectors_of(matrix, 3).astype(float)
    np.testing.assert_allclose(np.abs(vectors), np.abs(u[:, :3] * np.sqrt(s[:3])), atol=1e-5)
    assert (vectors[np.abs(vectors).argmax(0), range(3)] > 0).all()


def test_the_command_writes_what_the_reader_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(TEXT)
    out = tmp_path / "words.vec"
    assert corpus.main([str(tmp_path / "text"), str(out), "--length", "3", "--minimum-count", "1"]) == 0
    assert capsys.readouterr().out == f"{out}: 7 words, 3 numbers each\n"
    assert set(read_word_vectors(str(out), ["cat", "red dog", "bird"], "--words")) == {"cat", "red dog"}
    for options, message in (
        (["--length", "9", "--minimum-count", "1"], r"^--length: is 9, but there are 7 words"),
        ([], r"^CORPUS: has 0 words that come 5 times or more"),
        (["--window", "0"], r"^--window: is 0; give 1 or more"),
    ):
        assert corpus.main([str(tmp_path / "text"), str(out), *options]) == 1
        assert re.search(message, capsys.readouterr().err)
    assert corpus.main([str(tmp_path / "nowhere"), str(out)]) == 1
    assert capsys.readouterr().err.startswith("CORPUS: ")
