"""`manifest show|verify`: what a folder of shards holds, and whether every byte of it is what it was."""

import argparse
import hashlib
import signal
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import index
from data_pipeline.manifest.content import DECODERS, empty
from data_pipeline.manifest.format import FILE_NAME, Content, Manifest, ShardInfo, load_index, load_manifest
from data_pipeline.storage.folder import Folder

_BLOCK = 1 << 23
_BARS = 40


def describe(manifest: Manifest) -> Iterator[str]:
    """The lines of `manifest show`."""
    classes = f"of {len(manifest.classes)} classes" if manifest.labelled else "without classes"
    yield f"{manifest.samples} samples {classes}, {manifest.content}"
    yield f"{len(manifest.shards)} shards, {manifest.total_bytes / 1e6:.1f} MB; fingerprint {manifest.fingerprint}"
    report = {k: v for k, v in manifest.report.items() if k != "unreadable"}
    yield "made with " + ", ".join(f"{k} {v}" for k, v in sorted(manifest.options.items()) if k != "notice")
    yield from (f"{name}: {text}" for name, text in manifest.options.get("notice", {}).items())
    yield "report: " + ", ".join(f"{k} {v}" for k, v in sorted(report.items()))
    for name, why in manifest.report.get("unreadable", []):
        yield f"  unreadable: {name}: {why}"
    yield "shards:"
    for shard in manifest.shards:
        yield f"  {shard.name}  {shard.samples} samples  {shard.bytes} bytes  sha256 {shard.sha256[:16]}"
    if not manifest.labelled:
        return
    yield "classes (number, id, name, samples):"
    most = max(entry.samples for entry in manifest.classes)
    width = max(len(entry.name) for entry in manifest.classes)
    for number, entry in enumerate(manifest.classes):
        bar = "#" * max(1, round(_BARS * entry.samples / most))
        yield f"  {number:4d}  {entry.id:>10}  {entry.name:<{width}}  {entry.samples:8d}  {bar}"


def _verify_shard(folder: Folder, shards: Folder, shard: ShardInfo, manifest: Manifest) -> tuple[list[str], np.ndarray]:
    """What is wrong with one shard, and its samples per class."""
    classes = len(manifest.classes)
    counts = np.zeros(classes, dtype=np.int64)
    try:
        records = load_index(folder, shard)
    except DataError as error:
        return [str(error)], counts
    labels = records["label"]
    if classes and len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        return [f"{folder}/{shard.index}: labels reach {labels.max()}, the manifest has {classes} classes"], counts
    if not classes and (labels != index.NO_LABEL).any():
        return [f"{folder}/{shard.index}: holds labels, the manifest has no classes"], counts
    if classes:
        counts += np.bincount(labels, minlength=classes)
    path = f"{shards}/{shard.name}"
    try:
        size = shards.size(shard.name)
        if size is not None and size != shard.bytes:
            return [f"{path}: has {size} bytes, the manifest says {shard.bytes}; copy the shard again"], counts
        with shards.open_local(shard.name) as file:
            return list(_verify_bytes(file, path, shard, records, manifest.content)), counts
    except DataError as error:
        return [str(error)], counts


def _verify_bytes(
    file: IO[bytes], path: str, shard: ShardInfo, records: index.Records, content: Content
) -> Iterator[str]:
    """What is wrong with the bytes of a shard, and with its samples."""
    sha256 = hashlib.sha256()
    while block := file.read(_BLOCK):
        sha256.update(block)
    damaged: list[int] = []
    strange: list[tuple[int, Exception]] = []
    out = empty(content)
    for number, record in enumerate(records):
        file.seek(int(record["offset"]))
        data = file.read(int(record["size"]))
        if zlib.crc32(data) != record["crc32"]:
            damaged.append(number)
            continue
        try:
            DECODERS[content.name](data, out)
        except Exception as error:  # decoders of damaged bytes raise anything
            strange.append((number, error))
    if sha256.hexdigest() != shard.sha256:
        which = f"wrong samples: {', '.join(map(str, damaged[:10]))}" if damaged else "no sample is damaged"
        more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
        yield f"{path}: its sha256 is not the manifest's ({which}{more}); copy the shard again"
    if strange:
        number, why = strange[0]
        yield (
            f"{path}: {len(strange)} samples cannot be decoded, the first is sample {number} ({why}); make the shards again: "
            "make_shards leaves out what cannot be decoded"
        )


def verify(url: str) -> list[str]:
    """Check every byte of a folder of shards; what is wrong, one sentence each. Raises DataError without a manifest."""
    manifest = load_manifest(url)
    folder = Folder(url)
    shards = Folder(manifest.base) if manifest.base else folder
    problems = []
    counts = np.zeros(len(manifest.classes), dtype=np.int64)
    complete = True
    for shard in manifest.shards:
        found, labels = _verify_shard(folder, shards, shard, manifest)
        complete = complete and bool(labels.any())
        problems += found
        counts += labels
    for number, entry in enumerate(manifest.classes):
        if complete and counts[number] != entry.samples:
            problems.append(
                f"{folder}/manifest.json: class {number} ({entry.name}) has {entry.samples} samples, the "
                f"indexes hold {counts[number]}"
            )
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """0 = all is well, 1 = something is wrong (each said in one sentence)."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.manifest", description=__doc__)
    parser.add_argument("action", choices=["show", "verify"])
    parser.add_argument("url", metavar="URL", help="path or fsspec URL of the folder that holds manifest.json")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends quietly
    try:
        if not (folder := Folder(given.url)).exists(FILE_NAME):
            raise DataError(f"URL: {folder} holds no {FILE_NAME}; give the folder that make_shards wrote")
        if given.action == "show":
            print("\n".join(describe(load_manifest(given.url))))
            return 0
        problems = verify(given.url)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        manifest = load_manifest(given.url)
        print(
            f"{manifest.samples} samples in {len(manifest.shards)} shards, {manifest.total_bytes} bytes: every "
            "byte is as it was written"
        )
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
