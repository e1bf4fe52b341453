"""SOURCE shards: scan WebDataset tars that somebody else made, write indexes and a manifest beside or apart from
them; no copy."""

import contextlib
import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import simplejpeg
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.make_shards import tar_scan
from data_pipeline.make_shards.sources.class_names import named
from data_pipeline.make_shards.workers import worker_pool
from data_pipeline.manifest import index
from data_pipeline.manifest.format import FILE_NAME, ClassInfo, ImageField, Manifest, ShardInfo
from data_pipeline.storage.folder import Folder

_BLOCK = 8 << 20


def image_geometry(data: bytes) -> tuple[int, int, int]:
    """(width, height, channels) from the header of a JPEG or PNG. Raises ValueError with the reason."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 26:
        width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
        if depth != 8 or colour not in (0, 2):
            raise ValueError("it is a PNG that is neither 8-bit grey nor 8-bit RGB")
        return width, height, 3 if colour == 2 else 1
    if data[:2] == b"\xff\xd8":
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        if colours.upper() not in ("GRAY", "YCBCR", "RGB"):
            raise ValueError(f"it is a JPEG in {colours}")
        return width, height, 1 if colours.upper() == "GRAY" else 3
    raise ValueError("it is neither a JPEG nor a PNG")


@contextlib.contextmanager
def _local_file(folder: Folder, name: str) -> Iterator[IO[bytes]]:
    """The file itself where it is local, else a temporary copy."""
    if folder.local is not None:
        with open(folder.path(name), "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        size = folder.size(name) or 0
        folder.remote.download(
            f"{folder}/{name}", folder.path(name), size, lambda data, at: os.pwrite(copy.fileno(), data, at)
        )
        copy.seek(0)
        yield copy


def _scan(tars: Folder, name: str, output: Folder, labelled: bool) -> dict[str, Any]:
    """Index one tar; what the manifest needs of it."""
    digest, size = hashlib.sha256(), 0
    geometries: dict[str, str] = {}
    with _local_file(tars, name) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
        file.seek(0)
        records = tar_scan.build_index(file, f"{tars}/{name}", labelled)
        file.seek(0)
        for sample in tar_scan.samples(file, f"{tars}/{name}"):
            try:
                geometries.setdefault(json.dumps(image_geometry(sample.data)), sample.key)
            except ValueError as error:
                raise DataError(
                    f"INPUT: sample {sample.key} of {tars}/{name} cannot be used ({error}); unpack the images "
                    "and use SOURCE folder"
                ) from None
    packed = index.to_bytes(records)
    index_name = name.removesuffix(".tar") + ".idx"
    output.write(index_name, packed)
    return {
        "shard": ShardInfo(
            name, len(records), size, digest.hexdigest(), index_name, hashlib.sha256(packed).hexdigest()
        ),
        "geometries": geometries,
        "labels": np.unique(records["label"], return_counts=True),
    }


def index_shards(
    tars: Folder,
    output: Folder,
    *,
    names: dict[str, str] | None,
    labelled: bool = True,
    jobs: int = 1,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Manifest | None:
    """Index every `*.tar` of a folder and write the manifest to `output`; None for a dry run. Raises DataError."""
    found = [name for name in tars.names() if name.endswith(".tar")]
    if not found:
        raise DataError(f"INPUT: {tars} holds no .tar files; check the path (and unpack .tar.gz files)")
    print(f"{len(found)} tars to index", file=sys.stderr)
    if dry_run:
        return None
    if output.exists(FILE_NAME) and not overwrite:
        raise DataError(f"OUTPUT: {output} holds a {FILE_NAME} already; give another folder, or add --overwrite")
    results = []
    with tqdm(total=len(found), unit="shard", disable=None) as progress:
        if jobs == 1 or len(found) == 1:
            for name in found:
                results.append(_scan(tars, name, output, labelled))
                progress.update()
        else:
            with worker_pool(min(jobs, len(found))) as pool:
                count = len(found)
                for result in pool.map(_scan, [tars] * count, found, [output] * count, [labelled] * count):
                    results.append(result)
                    progress.update()
    manifest = _manifest(tars, output, results, names, labelled).with_fingerprint()
    output.write(FILE_NAME, manifest.to_bytes())
    return manifest


def _manifest(
    tars: Folder, output: Folder, results: list[dict[str, Any]], names: dict[str, str] | None, labelled: bool
) -> Manifest:
    results = [result for result in results if result["shard"].samples]
    geometries = {key: where for result in results for key, where in result["geometries"].items()}
    sizes = {tuple(json.loads(key)[:2]): where for key, where in geometries.items()}
    if len(sizes) != 1:
        examples = ", ".join(f"{w}x{h} ({where})" for (w, h), where in list(sizes.items())[:2]) or "no samples at all"
        raise DataError(
            f"INPUT: the images of {tars} are not of one size: {examples}; unpack them and use SOURCE folder"
        )
    if len({json.loads(key)[2] for key in geometries}) != 1:
        raise DataError(f"INPUT: {tars} holds grey and colour images together; unpack them and use SOURCE folder")
    width, height = next(iter(sizes))
    counts = _count_labels(results)
    return Manifest(
        classes=_classes(tars, counts, names) if labelled else (),
        content=ImageField(int(height), int(width), int(json.loads(next(iter(geometries)))[2])),
        shards=tuple(result["shard"] for result in results),
        options={"source": "shards"},
        report={"written": sum(counts.values()), "unreadable": [], "too_small": 0, "excluded": 0},
        base="" if _same(tars, output) else _address(tars),
    )


def _count_labels(results: list[dict[str, Any]]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for result in results:
        for label, count in zip(*result["labels"], strict=True):
            counts[int(label)] = counts.get(int(label), 0) + int(count)
    return counts


def _classes(tars: Folder, counts: dict[int, int], names: dict[str, str] | None) -> tuple[ClassInfo, ...]:
    """The classes of samples with these labels. Raises DataError where names and labels do not fit together."""
    classes = len(names) if names is not None else max(counts) + 1
    if min(counts) < 0 or max(counts) >= classes:
        wrong = min(counts) if min(counts) < 0 else max(counts)
        raise DataError(
            f"INPUT: {tars} holds the label {wrong}, outside 0..{classes - 1}; correct --class-names or the labels"
        )
    if len(counts) < 2:
        raise DataError(
            f"INPUT: all samples of {tars} belong to one class; a class-conditional model needs two or more"
        )
    if names is None and len(counts) < classes:
        gap = next(label for label in range(classes) if label not in counts)
        raise DataError(
            f"INPUT: {tars} holds labels up to {classes - 1} but none is {gap}; if that is right, give "
            "--class-names with all classes"
        )
    ids = list(names) if names is not None else [str(k) for k in range(classes)]
    return tuple(ClassInfo(name, key, counts.get(label, 0)) for label, (name, key) in enumerate(named(ids, names)))


def _same(a: Folder, b: Folder) -> bool:
    return (a.local is None) == (b.local is None) and Path(a.root).resolve() == Path(b.root).resolve()


def _address(folder: Folder) -> str:
    return str(folder) if folder.local is None else str(folder.local.resolve())
