"""A part of the classes: the right samples, each once per epoch, with new labels; and refusals with the closest
name."""

from pathlib import Path

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
