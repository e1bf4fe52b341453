"""`python -m data_pipeline.make_shards SOURCE INPUT OUTPUT [options]`: labelled images in, WebDataset shards out.

The source is listed, the list is shuffled by the order's hash (so classes are mixed even where shards are read one
after another), cut into shards, and every shard is written on its own, by any number of processes: the bytes depend
on the input and the options alone. Finished shards are kept, so an interrupted run goes on where it was.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.make_shards.shard_writer import ShardResult, write_shard
from data_pipeline.make_shards.sources.base import Item, Listing, Samples
from data_pipeline.make_shards.workers import worker_pool
from data_pipeline.manifest.format import FILE_NAME, ClassInfo, Content, Manifest, ShardInfo, parse_manifest
from data_pipeline.reading import order
from data_pipeline.storage.folder import Folder

_PROGRESS = "unfinished"
_PURPOSE = 2  # of the order's keys: neither samples (0) nor shards (1) of an epoch


class Plan:
    """Which items go into which shard; the digest covers the listing and the options that decide the bytes."""

    def __init__(self, listing: Listing, options: dict[str, Any], samples_per_shard: int, description: str) -> None:
        self.listing, self.options = listing, options
        shuffled = np.argsort(order.keys(0, 0, _PURPOSE, len(listing.items)), kind="stable").tolist()
        self.shards = [shuffled[i : i + samples_per_shard] for i in range(0, len(shuffled), samples_per_shard)]
        digest = hashlib.sha256()
        digest.update(json.dumps([description, options, samples_per_shard, listing.classes]).encode())
        for item in listing.items:
            digest.update(repr(tuple(item)).encode())
        self.digest = digest.hexdigest()

    def items(self, shard: int) -> list[tuple[int, Item]]:
        return [(ordinal, self.listing.items[ordinal]) for ordinal in self.shards[shard]]

    @staticmethod
    def name(shard: int) -> str:
        return f"shard-{shard:05d}.tar"


def _write(samples: Samples, items: list[tuple[int, Item]], name: str, output: Folder) -> ShardResult:
    """One unit of work: a shard, its index and the record that it is finished, in this order."""
    near = output.local
    with _writing(f"{output}/{name}"):
        if near is not None:
            near.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=near) as temporary:
            result = write_shard(samples, items, name, Path(temporary))
            output.put(Path(temporary, result.index), result.index)
            output.put(Path(temporary, name), name)
            output.write(f"{_PROGRESS}/{name}.json", result.to_bytes())
    return result


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turns an error of the disk (full, read-only, no permission) into DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"OUTPUT: {path} cannot be written ({error.strerror or error}); make room or correct the path, "
            "and run again"
        ) from None


def _finished(output: Folder, plan: Plan) -> dict[int, ShardResult]:
    """The shards that an interrupted run of the same plan has finished. Raises DataError for another plan's."""
    if output.exists(FILE_NAME) or (
        output.exists(f"{_PROGRESS}/plan") and output.read(f"{_PROGRESS}/plan") != plan.digest.encode()
    ):
        raise DataError(
            f"OUTPUT: {output} holds shards of another input or of other options; give an empty folder, or add "
            "--overwrite"
        )
    finished = {}
    for shard in range(len(plan.shards)):
        record = f"{_PROGRESS}/{plan.name(shard)}.json"
        if output.exists(record):
            result = ShardResult.from_bytes(output.read(record))
            if output.exists(result.name) and output.size(result.name) == result.size:
                finished[shard] = result
    return finished


def _clean(output: Folder) -> None:
    """Remove earlier shards and what a killed run left behind."""
    for name in output.names():
        if name == FILE_NAME or (name.startswith("shard-") and name.endswith((".tar", ".idx"))):
            output.remove(name)
    output.remove(_PROGRESS)


def _sweep(output: Folder) -> None:
    if output.local is not None:
        for path in output.local.glob(".part-*"):
            shutil.rmtree(path, ignore_errors=True)


def _run(plan: Plan, samples: Samples, output: Folder, todo: list[int], jobs: int) -> Iterator[tuple[int, ShardResult]]:
    """Write the shards in `todo`; results come as they are finished."""
    if jobs == 1 or len(todo) <= 1:
        for shard in todo:
            yield shard, _write(samples, plan.items(shard), plan.name(shard), output)
        return
    with worker_pool(min(jobs, len(todo))) as pool:
        waiting = iter(todo)
        running: dict[Future[ShardResult], int] = {}
        while True:
            for shard in waiting:
                work = pool.submit(_write, samples, plan.items(shard), plan.name(shard), output)
                running[work] = shard
                if len(running) >= 2 * jobs:
                    break
            if not running:
                return
            for work in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(work), work.result()


def check_classes(listing: Listing, where: object) -> None:
    """Refuse what is nearly always a mistake. Raises DataError."""
    if not listing.items:
        raise DataError(f"INPUT: {where} holds no images; check the path")
    if not listing.classes:
        return
    counts = np.bincount([item.label or 0 for item in listing.items], minlength=len(listing.classes))
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"INPUT: all {len(listing.items)} images of {where} belong to one class; a class-conditional model "
            "needs two or more "
            "(for a folder: one sub-folder per class, and INPUT is the folder above them)"
        )
    if empty := [listing.classes[k][0] for k in np.flatnonzero(counts == 0)]:
        raise DataError(
            f"INPUT: {where} holds no image of class {empty[0]} ({len(empty)} classes are empty); complete it"
        )


def make_shards(
    samples: Samples,
    output: Folder,
    *,
    description: str,
    where: object,
    samples_per_shard: int = 10_000,
    jobs: int = 1,
    max_unreadable: float = 0.01,
    exclude: frozenset[str] = frozenset(),
    overwrite: bool = False,
    dry_run: bool = False,
    part: tuple[int, int] | None = None,
) -> Manifest | None:
    """Write a source's shards, indexes and manifest; None for a dry run. Raises DataError.

    `part` (i, n), 1 <= i <= n: only every n-th shard, from the i-th on, and no manifest (None). When all parts have been
    written, at the same time or not, the call without `part` finds all shards finished and writes the manifest.
    """
    if part is not None and overwrite:
        raise DataError(
            "--part: the parts would remove each other's shards; use an empty OUTPUT instead of --overwrite"
        )
    listing = samples.listing()
    if unknown := exclude - {item.name for item in listing.items}:
        raise DataError(
            f"--exclude: {sorted(unknown)[0]} is not in INPUT ({len(unknown)} such names); correct the list"
        )
    kept = listing._replace(items=[item for item in listing.items if item.name not in exclude])
    check_classes(kept, where)
    plan = Plan(kept, samples.describe(), samples_per_shard, description)
    print(
        f"{len(kept.items)} {samples.content.name}s "
        f"{f'of {len(kept.classes)} classes' if kept.classes else 'without classes'} -> "
        f"{len(plan.shards)} shards of up to {samples_per_shard}: {samples.content}, {samples.extension}, in {output}",
        file=sys.stderr,
    )
    if dry_run:
        return None
    if output.exists(FILE_NAME):
        there = parse_manifest(output.read(FILE_NAME), f"{output}/{FILE_NAME}")
        if there.plan == plan.digest and not overwrite:
            print(f"{output}: is complete already", file=sys.stderr)
            return there
    if overwrite:
        _clean(output)
    results = _finished(output, plan)
    if results:
        print(f"{len(results)} of {len(plan.shards)} shards are finished already", file=sys.stderr)
    with _writing(f"{output}/{_PROGRESS}"):
        output.write(f"{_PROGRESS}/plan", plan.digest.encode())
    allowed = max_unreadable * len(kept.items)
    first, step = (part[0] - 1, part[1]) if part else (0, 1)
    todo = [shard for shard in range(first, len(plan.shards), step) if shard not in results]
    with tqdm(total=len(kept.items), unit="image", smoothing=0.05, disable=None) as progress:
        progress.update(sum(len(plan.shards[shard]) for shard in results))
        for shard, result in _run(plan, samples, output, todo, jobs):
            results[shard] = result
            progress.update(len(plan.shards[shard]))
            _check_unreadable(results, allowed, max_unreadable)
    _check_unreadable(results, allowed, max_unreadable)
    if part is not None:
        print(
            f"part {part[0]} of {part[1]} is finished; the manifest is still to be written, without --part",
            file=sys.stderr,
        )
        return None
    excluded = len(listing.items) - len(kept.items)
    manifest = _manifest(plan, [results[k] for k in range(len(plan.shards))], samples.content, excluded)
    with _writing(f"{output}/{FILE_NAME}"):
        output.write(FILE_NAME, manifest.to_bytes())
    output.remove(_PROGRESS)
    _sweep(output)
    return manifest


def _check_unreadable(results: dict[int, ShardResult], allowed: float, share: float) -> None:
    unreadable = [entry for result in results.values() for entry in result.unreadable]
    if len(unreadable) > allowed:
        name, why = unreadable[0]
        raise DataError(
            f"INPUT: {len(unreadable)} images cannot be read (the first: {name}: {why}), more than "
            f"--max-unreadable {share:g} allows; "
            "repair the input, or allow a larger share, and run again"
        )


def _manifest(plan: Plan, results: list[ShardResult], content: Content, excluded: int) -> Manifest:
    counts = [sum(result.labels.get(label, 0) for result in results) for label in range(len(plan.listing.classes))]
    if 0 in counts:
        name = plan.listing.classes[counts.index(0)][0]
        raise DataError(
            f"INPUT: no image of class {name} could be used; see the minimum side and the unreadable images"
        )
    if not any(result.samples for result in results):
        raise DataError("INPUT: no image could be used; see the minimum side and the unreadable images")
    return Manifest(
        classes=tuple(ClassInfo(name, key, n) for (name, key), n in zip(plan.listing.classes, counts, strict=True)),
        content=content,
        shards=tuple(
            ShardInfo(r.name, r.samples, r.size, r.sha256, r.index, r.index_sha256) for r in results if r.samples
        ),
        options=plan.options,
        report={
            "listed": len(plan.listing.items) + excluded,
            "excluded": excluded,
            "other_files": plan.listing.ignored,
            "too_small": sum(result.too_small for result in results),
            "written": sum(result.samples for result in results),
            "unreadable": [list(entry) for result in results for entry in result.unreadable],
        },
        plan=plan.digest,
    ).with_fingerprint()
