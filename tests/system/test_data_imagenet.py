"""make_shards imagenet on a tar of tars that is shaped as the published one: 1000 WordNet ids, odd files, interrupted
and run again."""

import functools
import io
import itertools
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig, open_stream

CLASSES, EACH = 1000, 3
KNOWN = {0: "n01440764", 1: "n01443537", 207: "n02099601", 281: "n02123045", 340: "n02391049", 388: "n02510455"}
KNOWN[999] = "n15075141"


def wordnet_ids() -> list[str]:
    """1000 ascending ids with the standard ones at their numbers."""
    ids, places = [], [*KNOWN, CLASSES]
    for place, after in itertools.pairwise(places):
        first = int(KNOWN[place][1:])
        ids += [f"n{first + k:08d}" for k in range(after - place)]
    return ids


@functools.cache
def originals() -> list[np.ndarray]:
    """The colour photographs that come with scikit-image."""
    from skimage import data

    return [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]


def photograph(label: int, number: int) -> Image.Image:
    """A crop of a photograph, of less contrast and tinted: the mean of its inner square tells the label, red label %
    32, green label // 32."""
    random = np.random.default_rng(10 * label + number)
    source = originals()[int(random.integers(4))]
    width, height = (int(extent) for extent in random.integers(70, 150, 2))
    top, left = (int(random.integers(0, a - b)) for a, b in zip(source.shape[:2], (height, width), strict=True))
    crop = source[top : top + height, left : left + width].astype(np.float32)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    inner = crop[top : top + side, left : left + side]
    contrast = (crop - inner.mean((0, 1))) * (12 / max(12, float(inner.std())))
    colours = np.array([(label % 32) * 4 + 64, (label // 32) * 4 + 64, 128])
    return Image.fromarray((colours + contrast).round().clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}), **options)
    return buffer.getvalue()


def odd(label: int, number: int) -> bytes | None:
    """The odd files of the real set, at a few places."""
    image = photograph(label, number)
    exif = Image.Exif()
    exif[0x0112] = 3
    match (label, number):
        case (5, 0):
            return encoded(image.convert("CMYK"))
        case (6, 1):
            return encoded(image, "PNG")
        case (7, 2):
            return encoded(image, exif=exif.tobytes())
        case (8, 0):
            return encoded(image)[:-300]
        case (9, 1):
            data = bytearray(encoded(image))
            frame = data.index(b"\xff\xc0")
            data[frame + 1], data[frame + 4] = 0xC1, 12  # 12 bits a sample
            return bytes(data)
        case (10, 2):
            return encoded(image.resize((1, 1)))
        case (11, 0):
            return encoded(image.convert("L"))
    return None


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of tars; inner tars and their images stand in no order, as in the published one."""
    path = tmp_path_factory.mktemp("imagenet") / "ILSVRC2012_img_train.tar"

    def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))

    with tarfile.open(path, "w") as outer:
        ids = wordnet_ids()
        for label in np.random.default_rng(0).permutation(CLASSES).tolist():
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for number in (2, 0, 1):
                    data = odd(label, number) or encoded(photograph(label, number))
                    add(inner, f"{ids[label]}_{number}.JPEG", data)
            add(outer, f"{ids[label]}.tar", buffer.getvalue())
    return path


def test_an_archive_shaped_as_imagenet(archive: Path, tmp_path: Path) -> None:
    """Two processes, interrupted and run again, give the bytes of one undisturbed process; every label is right."""
    options = ["--size", "64", "--samples-per-shard", "400", "--max-unreadable", "0.01"]
    command = [
        sys.executable,
        "-m",
        "data_pipeline.make_shards",
        "imagenet",
        str(archive),
        str(tmp_path / "two"),
        *options,
    ]
    first = subprocess.Popen(
        [*command, "--jobs", "2"],
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Tests that a shell runs in the background ignore SIGINT, and hand that down; a terminal's programs do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "two" / "unfinished").glob("*.tar.json")):
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does, to all processes of the terminal
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130
    assert said.decode().strip().endswith("run the same command again to resume")
    assert b"Traceback" not in said
    assert not (tmp_path / "two" / "manifest.json").exists()
    # A shard whose record was not yet written is done again, though it is there.
    records = (tmp_path / "two" / "unfinished").glob("*.tar.json")
    kept = {path.stem: (tmp_path / "two" / path.stem).stat().st_mtime_ns for path in records}
    assert subprocess.run([*command, "--jobs", "2"], capture_output=True).returncode == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}.items()

    assert make_shards.main(["imagenet", str(archive), str(tmp_path / "one"), *options, "--jobs", "1"]) == 0
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]

    manifest = load_manifest(str(tmp_path / "one"))
    assert [entry.id for entry in manifest.classes] == wordnet_ids()
    assert manifest.class_names[207] == "golden retriever"
    assert len(set(manifest.class_names)) > 990
    assert {name for name, _ in manifest.report["unreadable"]} == {
        f"{wordnet_ids()[8]}_0.JPEG",
        f"{wordnet_ids()[9]}_1.JPEG",
    }
    assert manifest.samples == CLASSES * EACH - 2
    with open_stream(
        DataConfig(shards=str(tmp_path / "one")), seed=0, replicas=1, held=[0], sizes=[1499] * 2
    ) as stream:
        for _ in range(2):
            batch = next(stream)
            colours = batch.images[0].double().mean(dim=(1, 2))
            grey = (colours[:, :2].amax(1) - colours[:, :2].amin(1) < 0.5) & (batch.labels[0] == 11)
            found = ((colours[:, 0] - 64) / 4).round() + 32 * ((colours[:, 1] - 64) / 4).round()
            assert ((found.long() == batch.labels[0]) | grey | (batch.labels[0] == 5)).double().mean() > 0.99
    # Classes are mixed in every shard, so that a window of one shard is not a few classes.
    labels = np.concatenate([np.frombuffer(files[0][shard.index], np.uint8)[16:] for shard in manifest.shards[:1]])
    first_shard = labels.reshape(-1, 20)[:, 12:16].copy().view("<i4").reshape(-1)
    assert len(set(first_shard.tolist())) > 250
