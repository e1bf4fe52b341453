"""Small inputs of make_shards as they are found: folders of pictures, tars, file systems in memory."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig, open_stream

Members = list[tuple[str, bytes]]


def run(*arguments: object) -> int:
    return make_shards.main([*(str(argument) for argument in arguments), "--jobs", "1"])


def picture(seed: int, width: int = 24, height: int = 24, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(seed: int, side: int = 24) -> bytes:
    return encoded(picture(seed, side, side))


def fill(folder: Path, *classes: str, each: int = 3) -> Path:
    for number, name in enumerate(classes or ("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for k in range(each):
            (folder / name / f"{k}.jpg").write_bytes(jpeg(100 * number + k))
    return folder


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def pack(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def usual(samples: int = 6, begin: int = 0, extension: str = "jpg") -> Members:
    return [
        member
        for k in range(begin, begin + samples)
        for member in ((f"{k:03d}.{extension}", jpeg(k)), (f"{k:03d}.cls", b"%d" % (k % 2)))
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.err + captured.out


def pixels(folder: Path) -> set[bytes]:
    """All images of a folder of shards, read through the stream."""
    samples = load_manifest(str(folder)).samples
    with open_stream(DataConfig(shards=str(folder)), seed=0, replicas=1, held=[0], sizes=[samples]) as stream:
        return {image.numpy().tobytes() for image in next(stream).images[0]}


def empty_memory() -> Any:
    """The file system `memory://`, emptied."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return memory
