"""The command line: `python -m data_pipeline.make_shards SOURCE INPUT OUTPUT [options]`."""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.make_shards.foreign_shards import index_shards
from data_pipeline.make_shards.images import ImageOptions, ImageSamples
from data_pipeline.make_shards.sources.base import Source, Unlabelled
from data_pipeline.make_shards.sources.cifar import CifarSource
from data_pipeline.make_shards.sources.class_names import read_class_names
from data_pipeline.make_shards.sources.folder import FolderSource
from data_pipeline.make_shards.sources.idx import CLASS_NAMES, IdxSource
from data_pipeline.make_shards.sources.imagenet import imagenet_source
from data_pipeline.make_shards.writing import make_shards
from data_pipeline.manifest.format import Manifest
from data_pipeline.storage.folder import Folder

_HELP = """
SOURCE is one of
  folder    one sub-folder per class
  imagenet  ILSVRC2012_img_train.tar (a tar of tars, read in place), a folder of its inner tars, or its unpacked folders
  idx       the MNIST family: a folder with the four IDX files
  cifar     CIFAR-10 or CIFAR-100: a published archive (binary or Python version) or its unpacked folder
  shards    a folder of WebDataset tars that somebody else made: they are indexed where they are, nothing is copied
INPUT and OUTPUT are paths or fsspec URLs (s3://bucket/folder). Interrupted, the same command goes on.
"""
_PHOTOGRAPHS: dict[str, Any] = {"size": 128, "fit": "crop", "encoding": "jpeg"}
_SMALL: dict[str, Any] = {"size": 32, "fit": "pad", "encoding": "png"}
_DEFAULTS = {"folder": _PHOTOGRAPHS, "imagenet": _PHOTOGRAPHS, "idx": _SMALL, "cifar": _SMALL}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _size(text: str) -> int | tuple[int, int]:
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isascii() and number.isdigit() and int(number) >= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} is neither a number of pixels nor WIDTHxHEIGHT, as in 128 or 160x96")
    sides = [int(number) for number in numbers]
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _part(text: str) -> tuple[int, int]:
    first, slash, last = text.partition("/")
    if not (slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with 1 <= I <= N, as in 3/16")
    return int(first), int(last)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.make_shards",
        description="Make WebDataset shards, their indexes and manifest.json from labelled images.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=["folder", "imagenet", "idx", "cifar", "shards"], metavar="SOURCE")
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", metavar="OUTPUT")
    image = parser.add_argument_group("images")
    image.add_argument(
        "--size", type=_size, help="side of the samples, or WIDTHxHEIGHT, in pixels (128; 32 for idx and cifar)"
    )
    image.add_argument(
        "--fit",
        choices=["crop", "pad", "stretch"],
        help="centred square, black bars, or distortion (crop; pad for idx and cifar)",
    )
    image.add_argument("--encoding", choices=["jpeg", "png"], help="png is lossless (jpeg; png for idx and cifar)")
    image.add_argument("--quality", type=int, default=95, choices=range(1, 101), metavar="1..100", help="of JPEG (95)")
    image.add_argument("--chroma", choices=["444", "422", "420"], default="444", help="JPEG's chroma sampling (444)")
    image.add_argument(
        "--minimum-side", type=_positive, default=1, help="exclude images whose shorter side is less (1)"
    )
    image.add_argument("--grey", action="store_true", help="one channel instead of RGB")
    image.add_argument("--exclude", type=Path, help="a file with one name per line, as in the manifest's report")
    image.add_argument(
        "--max-unreadable", type=_share, default=0.01, help="share of unreadable images that stops the work (0.01)"
    )
    image.add_argument(
        "--class-names", type=Path, help="a file with `id name` per line, for folder, imagenet and shards"
    )
    image.add_argument(
        "--unlabelled",
        action="store_true",
        help="the samples have no class; folder then takes the images at any depth of INPUT",
    )
    idx = parser.add_argument_group("idx and cifar")
    idx.add_argument("--split", choices=["train", "test"], default="train", help="(train)")
    idx.add_argument(
        "--family", choices=sorted(CLASS_NAMES), help="of idx: whose class names (default: known by the files' digest)"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--samples-per-shard", type=_positive, default=10_000, help="(10000)")
    work.add_argument("--jobs", type=_positive, help="processes (default: the CPUs this process may use)")
    work.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="only every N-th shard from the I-th on, and no manifest; when all parts are written, at the same time or not, "
        "the command without --part writes it",
    )
    work.add_argument("--overwrite", action="store_true", help="remove what OUTPUT holds")
    work.add_argument("--dry-run", action="store_true", help="list the input and say what would be made")
    return parser


def _source(given: argparse.Namespace, folder: Folder, names: dict[str, str] | None) -> Source:
    match given.source:
        case "idx":
            return IdxSource(folder, split=given.split, family=given.family)
        case "cifar":
            return CifarSource(given.input, split=given.split)
        case "imagenet":
            return imagenet_source(given.input, names)
        case _:
            return FolderSource(folder, names, flat=given.unlabelled)


def parse(arguments: Sequence[str] | None) -> Callable[[], Manifest | None]:
    """The work that the command line asks for. Raises DataError, and SystemExit(2) for a wrong command line."""
    given = _parser().parse_args(arguments)
    folder, output = Folder(given.input), Folder(given.output)
    names = read_class_names(given.class_names) if given.class_names else None
    jobs = given.jobs or len(os.sched_getaffinity(0))
    if given.source == "shards":
        if given.part:
            raise DataError("--part: shards are only indexed, which one process does; leave it out")
        return functools.partial(
            index_shards,
            folder,
            output,
            names=names,
            labelled=not given.unlabelled,
            jobs=jobs,
            dry_run=given.dry_run,
            overwrite=given.overwrite,
        )
    default = _DEFAULTS[given.source]
    options = ImageOptions(
        size=given.size or default["size"],
        channels=1 if given.grey or given.source == "idx" else 3,
        fit=given.fit or default["fit"],
        encoding=given.encoding or default["encoding"],
        quality=given.quality,
        chroma=given.chroma,
        minimum_side=given.minimum_side,
    )
    source = _source(given, folder, names)
    exclude: frozenset[str] = frozenset()
    if given.exclude is not None:
        try:
            exclude = frozenset(line.strip() for line in given.exclude.read_text().splitlines() if line.strip())
        except OSError as error:
            raise DataError(f"--exclude: {given.exclude} cannot be read ({error.strerror})") from None
    return functools.partial(
        make_shards,
        ImageSamples(Unlabelled(source) if given.unlabelled else source, options),
        output,
        description=given.source,
        where=folder,
        samples_per_shard=given.samples_per_shard,
        jobs=jobs,
        max_unreadable=given.max_unreadable,
        exclude=exclude,
        overwrite=given.overwrite,
        dry_run=given.dry_run,
        part=given.part,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 = done, 1 = an error of the data, 2 = an error of the command line, 130 = interrupted."""
    try:
        manifest = parse(arguments)()
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    if manifest is not None:
        report = manifest.report
        for name, why in report["unreadable"][:20]:
            print(f"unreadable: {name}: {why}", file=sys.stderr)
        print(
            f"{manifest.samples} samples in {len(manifest.shards)} shards, {manifest.total_bytes / 1e6:.1f} MB; "
            f"{len(report['unreadable'])} unreadable, {report['too_small']} too small, {report['excluded']} excluded; "
            f"fingerprint {manifest.fingerprint[:16]}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
