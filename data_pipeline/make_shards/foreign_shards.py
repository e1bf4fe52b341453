"""SOURCE shards: scan WebDataset tars that somebody else made, write indexes and a manifest next to or apart from
them; no copy. Every image is decoded once, so training will not meet one that it cannot decode."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm
from zlib_ng.zlib_ng import crc32

from data_pipeline.errors import DataError
from data_pipeline.make_shards import tar_scan
from data_pipeline.make_shards.output import check_indexes, existing_manifest
from data_pipeline.make_shards.shard_writer import reason
from data_pipeline.make_shards.sources.base import printable
from data_pipeline.make_shards.sources.class_names import named
from data_pipeline.make_shards.workers import in_any_order, worker_pool
from data_pipeline.make_shards.writing import check_excluded, check_unreadable
from data_pipeline.manifest import index
from data_pipeline.manifest.content import decode_image, image_shape
from data_pipeline.manifest.format import FILE_NAME, ClassInfo, ImageField, Manifest, ShardInfo
from data_pipeline.storage.folder import Folder

_BLOCK = 8 << 20


@dataclass(frozen=True)
class Wanted:
    """What is taken of the tars."""

    labelled: bool = True
    """Without it the samples have no class, whatever the tars say."""
    fields: tar_scan.Fields = tar_scan.USUAL_FIELDS
    exclude: frozenset[str] = frozenset()
    """Samples to leave out, called as in the manifest's report."""


@dataclass
class _Result:
    """What the manifest needs of one tar."""

    shard: ShardInfo
    found: int = 0
    shapes: dict[tuple[int, int, int], str] = field(default_factory=dict)
    """(height, width, channels) of the images, and a sample that has it."""
    labels: Counter[int] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    excluded: set[str] = field(default_factory=set)
    unused: Counter[str] = field(default_factory=Counter)


def tars_of(folder: Folder) -> list[str]:
    """The names of a folder's tars, sorted. Raises DataError where it has none, or some that would be left out."""
    names = [name for name in folder.names() if not name.startswith(".")]
    found = [name for name in names if name.endswith(".tar")]
    packed = [name for name in names if name.endswith(tar_scan.COMPRESSED)]
    if packed:
        raise DataError(
            f"INPUT: {folder} holds {packed[0]}, which is compressed ({len(packed)} such files); decompress it to a .tar "
            "(gunzip, unxz, zstd -d), or move it away"
        )
    if not found:
        raise DataError(f"INPUT: {folder} holds no .tar files; check the path")
    return found


def _index_name(tar: str) -> str:
    return tar.removesuffix(".tar") + ".idx"


def _sha256(file: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while block := file.read(_BLOCK):
        digest.update(block)
        size += len(block)
    file.seek(0)
    return digest.hexdigest(), size


def _scan(tars: Folder, name: str, output: Folder, wanted: Wanted) -> _Result:
    """Index one tar."""
    with tars.open_local(name) as file:
        sha256, size = _sha256(file)
        scan = tar_scan.Scan(file, f"INPUT: {tars}/{name}", wanted.fields)
        result = _Result(ShardInfo(name, 0, size, sha256, _index_name(name), ""))
        rows = list(_rows(scan, name, wanted, result))
    packed = index.to_bytes(np.array(rows, dtype=index.RECORD))
    output.write(_index_name(name), packed)
    index_sha256 = hashlib.sha256(packed).hexdigest()
    result.shard = ShardInfo(name, len(rows), size, sha256, _index_name(name), index_sha256)
    result.unused = scan.unused
    return result


def _rows(scan: tar_scan.Scan, tar: str, wanted: Wanted, result: _Result) -> Iterator[tuple[int, int, int, int]]:
    """The index's records of the samples that can be decoded; what became of the others goes into `result`."""
    buffers: dict[tuple[int, int, int], np.ndarray] = {}
    for sample in scan:
        called = printable(f"{tar}/{sample.key}")
        result.found += 1
        if called in wanted.exclude:
            result.excluded.add(called)
            continue
        if wanted.labelled and sample.label is None:
            raise DataError(
                f"{scan.name}: the sample {sample.key} has no .cls file and no class number in a .json file; add it, name "
                "the member that has it with --label-field, or give --unlabelled"
            )
        data = scan.read(sample.offset, sample.size, sample.image)
        try:
            shape = image_shape(data)
            decode_image(data, buffers.setdefault(shape, np.empty(shape, np.uint8)))
        except Exception as error:  # decoders of damaged bytes raise anything
            result.unreadable.append((called, reason(error)))
            continue
        result.shapes.setdefault(shape, called)
        label = sample.label if wanted.labelled and sample.label is not None else index.NO_LABEL
        result.labels[label] += 1
        yield sample.offset, sample.size, label, crc32(data)


def index_shards(
    tars: Folder,
    output: Folder,
    *,
    names: dict[str, str] | None,
    wanted: Wanted,
    max_unreadable: float = 0.01,
    jobs: int = 1,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Manifest | None:
    """Index every `*.tar` of a folder and write the manifest to `output`; None for a dry run. Raises DataError."""
    found = tars_of(tars)
    print(f"{len(found)} tars to index", file=sys.stderr)
    if dry_run:
        return None
    if existing_manifest(output) is not None and not overwrite:
        raise DataError(f"OUTPUT: {output} holds a {FILE_NAME} already; give another folder, or add --overwrite")
    check_indexes(output, [_index_name(name) for name in found])
    scanned: dict[int, _Result] = {}
    with tqdm(total=len(found), unit="shard", disable=None) as progress:
        for place, result in _scan_all(tars, found, output, wanted, jobs):
            scanned[place] = result
            progress.update()
    results = [scanned[place] for place in range(len(found))]
    check_excluded(wanted.exclude, set().union(*(result.excluded for result in results)))
    unreadable = [entry for result in results for entry in result.unreadable]
    check_unreadable(unreadable, sum(result.found for result in results), max_unreadable)
    if unused := sum((result.unused for result in results), Counter[str]()):
        said = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unused.items()))
        print(f"not used: {said} members", file=sys.stderr)
    manifest = _manifest(tars, output, results, names, wanted.labelled).with_fingerprint()
    output.write(FILE_NAME, manifest.to_bytes())
    return manifest


def _scan_all(
    tars: Folder, found: list[str], output: Folder, wanted: Wanted, jobs: int
) -> Iterator[tuple[int, _Result]]:
    """(place of the tar in `found`, what it holds), as they are finished. Raises DataError."""
    calls = [(tars, name, output, wanted) for name in found]
    if jobs == 1 or len(found) == 1:
        for place, arguments in enumerate(calls):
            yield place, _scan(*arguments)
        return
    with worker_pool(min(jobs, len(found))) as pool:
        yield from in_any_order(pool, _scan, calls, 2 * jobs)


def _manifest(
    tars: Folder, output: Folder, results: list[_Result], names: dict[str, str] | None, labelled: bool
) -> Manifest:
    shapes = {shape: sample for result in results for shape, sample in result.shapes.items()}
    convert = "SOURCE webdataset makes shards of one kind"
    if len({shape[:2] for shape in shapes}) != 1:
        examples = ", ".join(f"{shape[1]}x{shape[0]} ({sample})" for shape, sample in list(shapes.items())[:2])
        raise DataError(f"INPUT: the images of {tars} are not of one size: {examples or 'no image at all'}; {convert}")
    if len(shapes) != 1:
        raise DataError(f"INPUT: {tars} holds grey and colour images together; {convert}")
    counts = sum((result.labels for result in results), Counter[int]())
    report = {
        "written": sum(result.shard.samples for result in results),
        "unreadable": [list(entry) for result in results for entry in result.unreadable],
        "too_small": 0,
        "excluded": sum(len(result.excluded) for result in results),
    }
    return Manifest(
        classes=_classes(tars, counts, names) if labelled else (),
        content=ImageField(*next(iter(shapes))),
        shards=tuple(result.shard for result in results if result.shard.samples),
        options={"source": "shards"},
        report=report,
        base="" if _same(tars, output) else _address(tars),
    )


def _classes(tars: Folder, counts: Counter[int], names: dict[str, str] | None) -> tuple[ClassInfo, ...]:
    """The classes of samples with these labels. Raises DataError where names and labels do not fit together."""
    classes = len(names) if names is not None else max(counts) + 1
    if min(counts) < 0 or max(counts) >= classes:
        wrong = min(counts) if min(counts) < 0 else max(counts)
        raise DataError(
            f"INPUT: {tars} holds the label {wrong}, outside 0..{classes - 1}; correct --class-names or the labels"
        )
    if len(counts) < 2:
        raise DataError(
            f"INPUT: all samples of {tars} belong to one class; a class-conditional model needs two or more, so complete "
            "the input, or give --unlabelled"
        )
    if names is None and len(counts) < classes:
        gap = next(label for label in range(classes) if label not in counts)
        raise DataError(
            f"INPUT: {tars} holds labels up to {classes - 1} but none is {gap}; if that is right, give "
            "--class-names with all classes"
        )
    ids = list(names) if names is not None else [str(k) for k in range(classes)]
    return tuple(ClassInfo(name, key, counts[label]) for label, (name, key) in enumerate(named(ids, names)))


def _same(a: Folder, b: Folder) -> bool:
    return (a.local is None) == (b.local is None) and Path(a.root).resolve() == Path(b.root).resolve()


def _address(folder: Folder) -> str:
    return str(folder) if folder.local is None else str(folder.local.resolve())
