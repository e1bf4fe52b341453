"""The command line of make_shards."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.errors import DataError
from data_pipeline.images import ImageOptions
from data_pipeline.sources.base import Source
from data_pipeline.sources.idx import CLASS_NAMES, IdxSource
from data_pipeline.storage import Folder


class Work(NamedTuple):
    """What the command line asks for; `settings` are make_shards' keyword arguments."""

    source: Source
    output: Folder
    options: ImageOptions
    settings: dict[str, Any]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.make_shards",
        description="Make WebDataset shards, their indexes and manifest.json from labelled images.",
        epilog="INPUT and OUTPUT are paths or fsspec URLs (s3://bucket/folder). Interrupted, the same command goes on.",
    )
    parser.add_argument("source", choices=["idx"], metavar="SOURCE", help="idx: the MNIST family")
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", metavar="OUTPUT")
    image = parser.add_argument_group("images")
    image.add_argument("--size", type=_positive, help="width and height of the samples (default: 32 for idx)")
    image.add_argument(
        "--fit", choices=["crop", "pad", "stretch"], help="how an image becomes a square (default: pad for idx)"
    )
    image.add_argument("--encoding", choices=["jpeg", "png"], help="png is lossless (default: png for idx)")
    image.add_argument("--quality", type=int, default=95, choices=range(1, 101), metavar="1..100", help="of JPEG (95)")
    image.add_argument("--chroma", choices=["444", "422", "420"], default="444", help="JPEG's chroma sampling (444)")
    image.add_argument(
        "--minimum-side", type=_positive, default=1, help="exclude images whose shorter side is less (1)"
    )
    image.add_argument("--exclude", type=Path, help="a file with one name per line, as in the manifest's report")
    image.add_argument(
        "--max-unreadable", type=_share, default=0.01, help="share of unreadable images that stops the work (0.01)"
    )
    idx = parser.add_argument_group("idx")
    idx.add_argument("--split", choices=["train", "test"], default="train")
    idx.add_argument(
        "--family", choices=sorted(CLASS_NAMES), help="whose class names (default: known by the files' digest)"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--samples-per-shard", type=_positive, default=10_000, help="(10000)")
    work.add_argument("--jobs", type=_positive, help="processes (default: the CPUs this process may use)")
    work.add_argument("--overwrite", action="store_true", help="remove what OUTPUT holds")
    work.add_argument("--dry-run", action="store_true", help="list the input and say what would be made")
    return parser


def parse(arguments: Sequence[str] | None) -> Work:
    """The work that the command line asks for. Raises DataError, and SystemExit(2) for a wrong command line."""
    from data_pipeline.make_shards import default_jobs

    given = _parser().parse_args(arguments)
    folder = Folder(given.input)
    source = IdxSource(folder, split=given.split, family=given.family)
    options = ImageOptions(
        size=given.size or 32,
        channels=1,
        fit=given.fit or "pad",
        encoding=given.encoding or "png",
        quality=given.quality,
        chroma=given.chroma,
        minimum_side=given.minimum_side,
    )
    exclude: frozenset[str] = frozenset()
    if given.exclude is not None:
        try:
            exclude = frozenset(line.strip() for line in given.exclude.read_text().splitlines() if line.strip())
        except OSError as error:
            raise DataError(f"--exclude: {given.exclude} cannot be read ({error.strerror})") from None
    settings = {
        "description": given.source,
        "where": folder,
        "samples_per_shard": given.samples_per_shard,
        "jobs": given.jobs or default_jobs(),
        "max_unreadable": given.max_unreadable,
        "exclude": exclude,
        "overwrite": given.overwrite,
        "dry_run": given.dry_run,
    }
    return Work(source, Folder(given.output), options, settings)
