"""A part of the classes: the right samples, each once per epoch, with new labels; and refusals with the closest
name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import ClassInfo, ImageField, Manifest, load_manifest
from data_pipeline.reading.selection import Classes, class_numbers, select_classes
from data_pipeline.reading.stream import DataConfig, open_stream

MANIFEST = Manifest(
    classes=tuple(
        ClassInfo(name, f"n{k}", 10) for k, name in enumerate(("cat", "dog", "crane", "crane", "1", "fox", "hen"))
    ),
    content=ImageField(8, 8, 3),
    shards=(),
    fingerprint="ab",
)


@pytest.mark.parametrize(
    ("selection", "numbers"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6]),
        ((5, "cat", "n3"), [0, 3, 5]),
        ("dog", [1]),
        (("1",), [4]),
        ("split 1 of 3", [0, 1]),
        ("split 2 of 3", [2, 3]),
        ("split 3 of 3", [4, 5, 6]),
        ("split 7 of 7", [6]),
    ],
)
def test_numbers(selection: Classes, numbers: list[int]) -> None:
    assert class_numbers(MANIFEST, selection) == numbers


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (("doge",), r"there is no class 'doge'; did you mean 'dog'\?"),
        ((7,), r"7 is not a class number; they are 0\.\.6"),
        ((-1,), r"-1 is not a class number"),
        (("crane",), r"'crane' is the name of 2 classes \(n2, n3\); give the id"),
        (("cat", 0), r"'cat' is selected twice"),
        ((), r"selects no class"),
        ("split 0 of 3", r"is none of the splits"),
        ("split 4 of 3", r"is none of the splits"),
        ("split 1 of 8", r"is none of the splits"),
    ],
)
def test_refusals(selection: Classes, message: str) -> None:
    with pytest.raises(DataError, match=r"^data\.classes: .*" + message):
        class_numbers(MANIFEST, selection)


def test_fingerprint_covers_the_selection() -> None:
    prints = {select_classes(MANIFEST, s).fingerprint for s in (None, (0,), (1,), (0, 1), "split 1 of 2")}
    assert len(prints) == 5
    assert select_classes(MANIFEST, (0, 1)).fingerprint == select_classes(MANIFEST, ("dog", "cat")).fingerprint
    assert select_classes(MANIFEST, tuple(range(7))) == MANIFEST


@pytest.mark.parametrize("window", [None, 25])
def test_the_order_runs_over_the_selected_samples(shards: Path, window: int | None) -> None:
    """Classes 1 and 4 of 5: 120 of the 300 samples, each once per epoch over three replicas, labelled 0 and 1."""
    config = DataConfig(shards=str(shards), classes=(4, "1"), shuffle_window=window)
    with open_stream(config, seed=2, replicas=3, held=[0, 1, 2], sizes=[20] * 4) as stream:
        assert stream.manifest.class_names == ("1", "4")
        assert stream.manifest.samples == 120
        epochs = []
        for _ in range(2):
            seen = {}
            for _ in range(2):
                batch = next(stream)
                images = batch.images.numpy().astype(int)
                numbers = (images[..., 1, 1, 0] + 256 * images[..., 1, 2, 0]).reshape(-1)
                assert (np.array([1, 4])[batch.labels.numpy().reshape(-1)] == numbers % 5).all()
                seen |= dict.fromkeys(numbers.tolist())
            epochs.append(list(seen))
    assert [sorted(epoch) for epoch in epochs] == [[k for k in range(300) if k % 5 in (1, 4)]] * 2
    assert epochs[0] != epochs[1]
    assert load_manifest(str(shards)).samples == 300


def drawn(shards: Path, per_class: int | None, seed: int = 0, **more: Any) -> set[tuple[int, bytes]]:
    """One epoch: labels and pixels."""
    config = DataConfig(shards=str(shards), labelled_per_class=per_class, subset_seed=seed, **more)
    samples = config.selected(load_manifest(str(shards))).samples
    with open_stream(config, seed=5, replicas=1, held=[0], sizes=[samples]) as stream:
        batch = next(stream)
        found = [(int(y), image.numpy().tobytes()) for y, image in zip(batch.labels[0], batch.images[0], strict=True)]
    assert len(set(found)) == len(found) == samples
    return set(found)


def test_so_many_of_each_class_are_drawn_once(tiny_shards: Path) -> None:
    whole, five = drawn(tiny_shards, None), drawn(tiny_shards, 5)
    assert five < whole
    assert sorted(label for label, _ in five) == [0] * 5 + [1] * 5 + [2] * 5
    assert five == drawn(tiny_shards, 5, shuffle_window=20)  # not a matter of the order
    assert five < drawn(tiny_shards, 12)  # a smaller number is a part of a larger one
    assert five != drawn(tiny_shards, 5, seed=1)
    assert drawn(tiny_shards, 30) == whole
    some = drawn(tiny_shards, 5, classes=(0, 2))
    assert some == {(0 if label == 0 else 1, image) for label, image in five if label != 1}


def test_the_fingerprint_names_the_subset(tiny_shards: Path) -> None:
    whole = load_manifest(str(tiny_shards))

    def fingerprint(per_class: int | None, seed: int) -> str:
        return DataConfig(shards="x", labelled_per_class=per_class, subset_seed=seed).selected(whole).fingerprint

    assert fingerprint(None, 0) == fingerprint(None, 1) == whole.fingerprint
    assert len({fingerprint(per_class, seed) for per_class in (4, 5) for seed in (0, 1)}) == 4


def test_a_subset_that_cannot_be_is_refused(tiny_shards: Path) -> None:
    with pytest.raises(
        DataError, match=r"^data\.labelled_per_class: is 31, but the class '0' has 30 samples; give at most"
    ):
        DataConfig(shards="x", labelled_per_class=31).selected(load_manifest(str(tiny_shards)))
    without = replace(load_manifest(str(tiny_shards)), classes=())
    with pytest.raises(DataError, match=r"^data\.labelled_per_class: the samples of these shards have no class"):
        DataConfig(shards="x", labelled_per_class=3).selected(without)
