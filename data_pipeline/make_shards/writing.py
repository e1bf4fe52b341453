"""`python -m data_pipeline.make_shards SOURCE INPUT OUTPUT [options]`: images in, WebDataset shards out.

The source is listed, the list is shuffled by the order's hash (so classes are mixed even where shards are read one
after another), cut into shards, and every shard is written on its own, by any number of processes: the bytes depend
on the input and the options alone. Finished shards are kept, so an interrupted run resumes where it was.
"""

import hashlib
import json
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.make_shards.output import PART_PREFIX, begin, complete, record, shard_name, sweep, writing
from data_pipeline.make_shards.shard_writer import ShardResult, write_shard
from data_pipeline.make_shards.sources.base import Item, Listing, Samples, printable
from data_pipeline.make_shards.workers import in_any_order, worker_pool
from data_pipeline.manifest.format import ClassInfo, Content, Manifest, ShardInfo
from data_pipeline.reading import order
from data_pipeline.storage.folder import Folder

_PURPOSE = 2  # of the order's keys: neither samples (0) nor shards (1) of an epoch


class Plan:
    """Which items go into which shard; the digest covers the listing and the options that decide the bytes."""

    def __init__(self, listing: Listing, options: dict[str, Any], samples_per_shard: int, description: str) -> None:
        self.listing, self.options = listing, options
        shuffled = _shuffled(listing)
        self.shards = [shuffled[i : i + samples_per_shard] for i in range(0, len(shuffled), samples_per_shard)]
        digest = hashlib.sha256()
        digest.update(json.dumps([description, options, samples_per_shard, listing.classes]).encode())
        for item in listing.items:
            digest.update(repr(tuple(item)).encode())
        self.digest = digest.hexdigest()

    def items(self, shard: int) -> list[tuple[int, Item]]:
        return [(ordinal, self.listing.items[ordinal]) for ordinal in self.shards[shard]]


def _shuffled(listing: Listing) -> list[int]:
    """The places of the items in the order of the shards: shuffled, where items are read together their groups are."""
    items, n = listing.items, listing.together
    begins = [k for k, item in enumerate(items) if n == 0 or k == 0 or item.where[:n] != items[k - 1].where[:n]]
    ends = [*begins[1:], len(items)]
    shuffled = np.argsort(order.keys(0, 0, _PURPOSE, len(begins)), kind="stable").tolist()
    return [place for group in shuffled for place in range(begins[group], ends[group])]


def _write(samples: Samples, items: list[tuple[int, Item]], name: str, output: Folder, parts: str) -> ShardResult:
    """One unit of work: a shard, its index and the record that it is finished, in this order. `parts`: what its
    temporary folder's name begins with."""
    near = output.local
    with writing(f"{output}/{name}"):
        if near is not None:
            near.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=parts, dir=near) as temporary:
            result = write_shard(samples, items, name, Path(temporary))
            output.put(Path(temporary, result.index), result.index)
            output.put(Path(temporary, name), name)
            record(output, result)
    return result


def _run(
    plan: Plan, samples: Samples, output: Folder, todo: list[int], jobs: int
) -> Generator[tuple[int, ShardResult]]:
    """Write the shards in `todo`; results come as they are finished. Raises DataError."""
    parts = f"{PART_PREFIX}{secrets.token_hex(4)}_"
    work = ((samples, plan.items(shard), shard_name(shard), output, parts) for shard in todo)
    try:
        if jobs == 1 or len(todo) <= 1:
            for shard, arguments in zip(todo, work, strict=True):
                yield shard, _write(*arguments)
        else:
            with worker_pool(min(jobs, len(todo))) as pool:
                for place, result in in_any_order(pool, _write, work, 2 * jobs):
                    yield todo[place], result
    finally:
        sweep(output, parts)  # of workers that were ended


def check_listing(listing: Listing, where: object) -> None:
    """Refuse what is nearly always a mistake, and what the manifest could not hold. Raises DataError."""
    if not listing.items:
        raise DataError(f"INPUT: {where} holds no images; check the path")
    if not listing.classes:
        return
    for text in (text for names in listing.classes for text in names):
        if not text.strip() or printable(text) != text:
            raise DataError(
                f"INPUT: the class {printable(text)!r} of {where} has a name that is empty, not UTF-8, or breaks a line; "
                "rename it (convmv mends the names of a whole disk)"
            )
    counts = np.bincount([item.label or 0 for item in listing.items], minlength=len(listing.classes))
    if listing.part:
        return
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"INPUT: all {len(listing.items)} images of {where} belong to one class; a class-conditional model needs two "
            "or more, so complete the input (a folder holds one sub-folder per class), or give --unlabelled"
        )
    if empty := [listing.classes[k][0] for k in np.flatnonzero(counts == 0)]:
        raise DataError(
            f"INPUT: {where} holds no image of class {empty[0]} ({len(empty)} classes are empty); complete it"
        )


def check_excluded(exclude: frozenset[str], there: Collection[str]) -> None:
    """Refuse names to exclude that are not in the input. Raises DataError."""
    if unknown := exclude - set(there):
        raise DataError(
            f"--exclude: {sorted(unknown)[0]} is not in INPUT ({len(unknown)} such names); correct the list"
        )


def check_unreadable(unreadable: Sequence[tuple[str, str]], of: int, share: float) -> None:
    """Refuse more than this share of unreadable samples. Raises DataError."""
    if len(unreadable) > share * of:
        name, why = unreadable[0]
        raise DataError(
            f"INPUT: {len(unreadable)} images cannot be read (the first: {name}: {why}), more than "
            f"--max-unreadable {share:g} allows; "
            "repair the input, or allow a larger share, and run again"
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
    check_excluded(exclude, {item.name for item in listing.items})
    kept = listing._replace(items=[item for item in listing.items if item.name not in exclude])
    check_listing(kept, where)
    options = samples.describe() | ({"notice": dict(listing.notice)} if listing.notice else {})
    plan = Plan(kept, options, samples_per_shard, description)
    print(
        f"{len(kept.items)} {samples.content.name}s "
        f"{f'of {len(kept.classes)} classes' if kept.classes else 'without classes'} -> "
        f"{len(plan.shards)} shards of up to {samples_per_shard}: {samples.content}, {samples.extension}, in {output}",
        file=sys.stderr,
    )
    if dry_run:
        return None
    there, results = begin(output, plan.digest, len(plan.shards), overwrite)
    if there is not None:
        print(f"{output}: is complete already", file=sys.stderr)
        return there
    if results:
        print(f"{len(results)} of {len(plan.shards)} shards are finished already", file=sys.stderr)
    first, step = (part[0] - 1, part[1]) if part else (0, 1)
    todo = [shard for shard in range(first, len(plan.shards), step) if shard not in results]
    with tqdm(total=len(kept.items), unit="image", smoothing=0.05, disable=None) as progress:
        progress.update(sum(len(plan.shards[shard]) for shard in results))
        with closing(_run(plan, samples, output, todo, jobs)) as finished:
            for shard, result in finished:
                results[shard] = result
                progress.update(len(plan.shards[shard]))
                check_unreadable(_unreadable(results), len(kept.items), max_unreadable)
    check_unreadable(_unreadable(results), len(kept.items), max_unreadable)
    if part is not None:
        print(
            f"part {part[0]} of {part[1]} is finished; the manifest is still to be written, without --part",
            file=sys.stderr,
        )
        return None
    excluded = len(listing.items) - len(kept.items)
    manifest = _manifest(plan, [results[k] for k in range(len(plan.shards))], samples.content, excluded)
    complete(output, manifest)
    return manifest


def _unreadable(results: dict[int, ShardResult]) -> list[tuple[str, str]]:
    return [entry for result in results.values() for entry in result.unreadable]


def _manifest(plan: Plan, results: list[ShardResult], content: Content, excluded: int) -> Manifest:
    counts = [sum(result.labels.get(label, 0) for result in results) for label in range(len(plan.listing.classes))]
    if 0 in counts and not plan.listing.part:
        name = plan.listing.classes[counts.index(0)][0]
        raise DataError(f"INPUT: no image of class {name} could be used; see --minimum-side and the unreadable images")
    notes = sum((Counter(result.notes) for result in results), Counter[str]())
    if not any(result.samples for result in results):
        raise DataError("INPUT: no image could be used; see --minimum-side and the unreadable images")
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
            **({"notes": dict(notes)} if notes else {}),
        },
        plan=plan.digest,
    ).with_fingerprint()
