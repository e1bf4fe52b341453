"""The command line: `python -m data_pipeline.make_shards SOURCE INPUT OUTPUT [options]`."""

import argparse
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from data_pipeline.errors import DataError
from data_pipeline.make_shards.folders import below, data_sets
from data_pipeline.make_shards.foreign_shards import Wanted, index_shards
from data_pipeline.make_shards.images import ImageOptions, ImageSamples
from data_pipeline.make_shards.options import names_of, part, positive, share, size
from data_pipeline.make_shards.sources import parquet
from data_pipeline.make_shards.sources.base import Source, Unlabelled
from data_pipeline.make_shards.sources.cifar import CifarSource
from data_pipeline.make_shards.sources.class_names import read_class_names
from data_pipeline.make_shards.sources.emojifont import EmojiFontSource
from data_pipeline.make_shards.sources.folder import FolderSource
from data_pipeline.make_shards.sources.idx import CLASS_NAMES, IdxSource
from data_pipeline.make_shards.sources.imagenet import imagenet_source
from data_pipeline.make_shards.sources.labels import Labelled
from data_pipeline.make_shards.sources.openmoji import SPLITS, STYLES, OpenMojiSource
from data_pipeline.make_shards.sources.tags import TagsSource
from data_pipeline.make_shards.sources.webdataset import WebDatasetSource
from data_pipeline.make_shards.sources.zipped import ZipSource
from data_pipeline.make_shards.tar_scan import Fields
from data_pipeline.make_shards.writing import make_shards
from data_pipeline.manifest.format import Manifest
from data_pipeline.storage.folder import Folder

_HELP = """
SOURCE is one of
  folder      one sub-folder per class; with --labels, images at any depth
  imagenet    ILSVRC2012_img_train.tar (a tar of tars, read in place), a folder of its inner tars, or its unpacked folders
  idx         the MNIST family: a folder with the four IDX files
  cifar       CIFAR-10 or CIFAR-100: a published archive (binary or Python version) or its unpacked folder
  webdataset  a folder of WebDataset tars of images of any size and kind, read in place
  zip         a zip of class folders, or StyleGAN's with dataset.json, read in place
  parquet     Parquet files with a column of image files and one of labels, as on model hubs, read in place
  openmoji    the unpacked npm package openmoji: emoji as colour or line drawings, pixel-aligned, groups as classes
  emojifont   a colour emoji font with bitmaps and Unicode's emoji-test.txt in one folder, groups as classes
  tags        MIR Flickr 25k, or the package openmoji: a picture once for each of its tags, the tags as classes
  shards      a folder of WebDataset tars whose images all have one size: they are indexed where they are, nothing is copied
INPUT and OUTPUT are paths or fsspec URLs (s3://bucket/folder). Interrupted, the same command resumes.
Greys of 12 and 16 bits are scaled to 8; images whose numbers have an unknown range are listed as unreadable.
"""
_PHOTOGRAPHS: dict[str, Any] = {"size": 128, "fit": "crop", "encoding": "jpeg"}
_SMALL: dict[str, Any] = {"size": 32, "fit": "pad", "encoding": "png"}
_DEFAULTS = {
    "folder": _PHOTOGRAPHS,
    "imagenet": _PHOTOGRAPHS,
    "webdataset": _PHOTOGRAPHS,
    "parquet": _PHOTOGRAPHS,
    "zip": _PHOTOGRAPHS,
    "idx": _SMALL,
    "cifar": _SMALL,
    "openmoji": {"size": 64, "fit": "pad", "encoding": "png"},
    "emojifont": {"size": 128, "fit": "crop", "encoding": "png"},
    "tags": {"size": 224, "fit": "crop", "encoding": "jpeg"},
}
_EVERYWHERE = frozenset(("exclude", "max_unreadable", "unlabelled", "jobs", "overwrite", "dry_run"))
_WRITING = _EVERYWHERE | {
    *("size", "fit", "encoding", "quality", "chroma", "minimum_side", "samples_per_shard", "part")
}
_MEANINGFUL: dict[str, frozenset[str]] = {
    "folder": _WRITING | {"grey", "class_names", "subset", "each", "labels", "label_field"},
    "zip": _WRITING | {"grey", "class_names", "subset", "labels", "label_field"},
    "imagenet": _WRITING | {"grey", "class_names", "subset"},
    "webdataset": _WRITING | {"grey", "class_names", "image_field", "label_field"},
    "parquet": _WRITING | {"grey", "class_names", "image_field", "label_field", "split"},
    "idx": _WRITING | {"split", "family"},
    "cifar": _WRITING | {"grey", "split"},
    "openmoji": _WRITING | {"grey", "split", "style", "groups"},
    "emojifont": _WRITING | {"grey", "split", "groups"},
    "tags": _WRITING - {"unlabelled"} | {"split", "words", "minimum_pictures"},
    "shards": _EVERYWHERE | {"class_names", "image_field", "label_field"},
}
"""Options that mean something to a SOURCE."""


_SPLITS: dict[str, tuple[str, ...]] = {
    "idx": ("train", "test"),
    "cifar": ("train", "test"),
    "parquet": tuple(parquet.SPLITS),
    "openmoji": tuple(SPLITS),
    "emojifont": tuple(SPLITS),
    "tags": ("train", "test"),
}
"""What --split may be for a SOURCE."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.make_shards",
        description="Make WebDataset shards, their indexes and manifest.json from images.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=list(_MEANINGFUL), metavar="SOURCE")
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", metavar="OUTPUT")
    # No option has a default here, so one that was given can be known from one that was not.
    image = parser.add_argument_group("images")
    image.add_argument(
        "--size",
        type=size,
        help="side of the samples, or WIDTHxHEIGHT, in pixels (128; 32 for idx and cifar; 64 for openmoji; 224 for tags)",
    )
    image.add_argument(
        "--fit",
        choices=["crop", "pad", "stretch"],
        help="centred part, black bars, or distortion (crop; pad for idx, cifar and openmoji)",
    )
    image.add_argument(
        "--encoding", choices=["jpeg", "png"], help="png is lossless (jpeg; png for idx, cifar and openmoji)"
    )
    image.add_argument("--quality", type=int, choices=range(1, 101), metavar="1..100", help="of JPEG (95)")
    image.add_argument("--chroma", choices=["444", "422", "420"], help="JPEG's chroma sampling (444)")
    image.add_argument("--minimum-side", type=positive, help="exclude images whose shorter side is less (1)")
    image.add_argument("--grey", action="store_true", help="one channel instead of RGB")
    image.add_argument("--exclude", type=Path, help="a file with one name per line, as in the manifest's report")
    image.add_argument("--max-unreadable", type=share, help="share of unreadable images that stops the work (0.01)")
    classes = parser.add_argument_group("classes")
    classes.add_argument("--class-names", type=Path, help="a file with `id name` per line, for all but idx and cifar")
    classes.add_argument(
        "--labels", type=Path, help="of folder and zip: a file (CSV, TSV, JSON, `name label`) with each image's class"
    )
    classes.add_argument(
        "--subset",
        action="store_true",
        help="INPUT may have only some of the classes (of ImageNet's 1000, or of --class-names), which are numbered anew, "
        "and only some of the images of --labels",
    )
    classes.add_argument(
        "--unlabelled",
        action="store_true",
        help="the samples have no class; folder then takes the images at any depth of INPUT",
    )
    classes.add_argument(
        "--each",
        action="store_true",
        help="the sub-folders of INPUT are data sets, such as trainA and trainB: each becomes OUTPUT/NAME",
    )
    fields = parser.add_argument_group("webdataset, shards, parquet and --labels")
    fields.add_argument(
        "--image-field", metavar="NAME", help="suffix of the member, or column, with the image (default: the only one)"
    )
    fields.add_argument(
        "--label-field", metavar="NAME", help="suffix of the member, or column, with the label (cls or json; label)"
    )
    parts = parser.add_argument_group("idx, cifar, parquet, openmoji, emojifont and tags")
    parts.add_argument(
        "--split",
        choices=list(dict.fromkeys(split for splits in _SPLITS.values() for split in splits)),
        help="(train; of parquet: the only one); a and b are halves of the emoji's train without a common one",
    )
    parts.add_argument("--style", choices=list(STYLES), help="of openmoji (colour)")
    parts.add_argument(
        "--groups",
        type=names_of,
        metavar="NAMES",
        help="of openmoji and emojifont, with commas (all but component, of openmoji also but flags)",
    )
    parts.add_argument(
        "--words", metavar="FILE", help="of tags: word vectors (word2vec or GloVe); tags without one are left out"
    )
    parts.add_argument(
        "--minimum-pictures", type=positive, help="of tags: training pictures that have a tag of the vocabulary (5)"
    )
    parts.add_argument(
        "--family", choices=sorted(CLASS_NAMES), help="of idx: whose class names (default: known by the files' digest)"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--samples-per-shard", type=positive, help="(10000)")
    work.add_argument("--jobs", type=positive, help="processes (default: the CPUs this process may use)")
    work.add_argument(
        "--part",
        type=part,
        metavar="I/N",
        help="only every N-th shard from the I-th on, and no manifest; when all parts are written, at the same time or not, "
        "the command without --part writes it",
    )
    work.add_argument(
        "--overwrite", action="store_true", help="remove the shards, indexes and manifest that OUTPUT holds"
    )
    work.add_argument("--dry-run", action="store_true", help="list the input and say what would be made")
    return parser


def _check_options(given: argparse.Namespace) -> None:
    """Refuse options that mean nothing here. Raises DataError."""
    options = {name for name, value in vars(given).items() if value not in (None, False)}
    options -= {"source", "input", "output"}
    meaningful = _MEANINGFUL[given.source]
    if strange := sorted(options - meaningful):
        known = ", ".join(_flag(name) for name in sorted(meaningful))
        raise DataError(
            f"{_flag(strange[0])}: means nothing to SOURCE {given.source}, which knows {known}; leave it out"
        )
    if given.split is not None and given.split not in _SPLITS[given.source]:
        there = ", ".join(_SPLITS[given.source])
        raise DataError(f"--split: SOURCE {given.source} has {there}, but no {given.split}; choose one of them")
    unnamed = given.source in ("folder", "zip")
    for option, other, why in (
        ("class_names", given.unlabelled, "means nothing with --unlabelled"),
        ("subset", given.unlabelled, "means nothing with --unlabelled"),
        ("label_field", given.unlabelled, "means nothing with --unlabelled"),
        ("quality", _encoding(given) == "png", "means nothing to PNG, which is lossless"),
        ("chroma", _encoding(given) == "png", "means nothing to PNG, which is lossless"),
        ("labels", given.unlabelled, "means nothing with --unlabelled"),
        ("labels", given.each, "is of one data set, and --each makes several"),
        ("label_field", unnamed and given.labels is None, "means nothing without --labels"),
        (
            "subset",
            unnamed and given.class_names is given.labels is None,
            "means nothing without --class-names or --labels",
        ),
    ):
        if option in options and other:
            raise DataError(f"{_flag(option)}: {why}; leave one of them out")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _encoding(given: argparse.Namespace) -> str:
    return str(given.encoding or _DEFAULTS.get(given.source, _PHOTOGRAPHS)["encoding"])


def _source(
    given: argparse.Namespace, folder: Folder, output: Folder, names: dict[str, str] | None, options: ImageOptions
) -> Source:
    fields = Fields(given.image_field or "", given.label_field or "")
    flat = given.unlabelled or given.labels is not None
    match given.source:
        case "idx":
            return IdxSource(folder, split=given.split or "train", family=given.family)
        case "cifar":
            return CifarSource(given.input, split=given.split or "train")
        case "imagenet":
            return imagenet_source(given.input, names, subset=given.subset, skip=below(folder, output))
        case "openmoji":
            side = max(options.width, options.height)
            style, split = given.style or "colour", given.split or "train"
            return OpenMojiSource(folder, style=style, split=split, groups=given.groups or (), side=side)
        case "emojifont":
            return EmojiFontSource(folder, split=given.split or "train", groups=given.groups or ())
        case "tags":
            least, side = given.minimum_pictures or 5, max(options.width, options.height)
            return TagsSource(folder, split=given.split or "train", words=given.words, least=least, side=side)
        case "webdataset":
            return WebDatasetSource(folder, names, fields=fields, labelled=not given.unlabelled)
        case "parquet":
            labelled = not given.unlabelled
            return parquet.ParquetSource(given.input, names, fields=fields, split=given.split, labelled=labelled)
        case "zip":
            return _with_labels(given, ZipSource(given.input, names, flat=flat, subset=given.subset), names)
        case _:
            skip = below(folder, output)
            return _with_labels(given, FolderSource(folder, names, flat=flat, subset=given.subset, skip=skip), names)


def _with_labels(given: argparse.Namespace, source: Source, names: dict[str, str] | None) -> Source:
    if given.labels is None:
        return source
    return Labelled(source, given.labels, names, field=given.label_field or "", subset=given.subset)


def _excluded(path: Path | None) -> frozenset[str]:
    """The names in the file. Raises DataError."""
    if path is None:
        return frozenset()
    try:
        return frozenset(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--exclude: {path} cannot be read ({error}); give a text file in UTF-8") from None


def parse(arguments: Sequence[str] | None) -> dict[str, Callable[[], Manifest | None]]:
    """The work that the command line asks for, by OUTPUT. Raises DataError, and SystemExit(2) for a wrong command line."""
    given = _parser().parse_args(arguments)
    _check_options(given)
    if not given.each:
        return {given.output: _work(given)}
    found: dict[str, Callable[[], Manifest | None]] = {}
    for name in data_sets(Folder(given.input), Folder(given.output)):
        places = {side: f"{getattr(given, side).rstrip('/')}/{name}" for side in ("input", "output")}
        found[places["output"]] = _work(argparse.Namespace(**{**vars(given), **places}))
    return found


def _work(given: argparse.Namespace) -> Callable[[], Manifest | None]:
    folder, output = Folder(given.input), Folder(given.output)
    names = read_class_names(given.class_names) if given.class_names else None
    exclude = _excluded(given.exclude)
    common = {
        "max_unreadable": 0.01 if given.max_unreadable is None else given.max_unreadable,
        "jobs": given.jobs or len(os.sched_getaffinity(0)),
        "dry_run": given.dry_run,
        "overwrite": given.overwrite,
    }
    if given.source == "shards":
        wanted = Wanted(not given.unlabelled, Fields(given.image_field or "", given.label_field or ""), exclude)
        return functools.partial(index_shards, folder, output, names=names, wanted=wanted, **common)
    default = _DEFAULTS[given.source]
    options = ImageOptions(
        size=given.size or default["size"],
        channels=1 if given.grey or given.source == "idx" else 3,
        fit=given.fit or default["fit"],
        encoding=given.encoding or default["encoding"],
        quality=given.quality or 95,
        chroma=given.chroma or "444",
        minimum_side=given.minimum_side or 1,
    )
    source = _source(given, folder, output, names, options)
    return functools.partial(
        make_shards,
        ImageSamples(Unlabelled(source) if given.unlabelled else source, options),
        output,
        description=given.source,
        where=folder,
        samples_per_shard=given.samples_per_shard or 10_000,
        exclude=exclude,
        part=given.part,
        **common,
    )


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def main(arguments: Sequence[str] | None = None, *, only_check: bool = False) -> int:
    """The command; 0 = done, 1 = an error of the data, 2 = an error of the command line, 130 = interrupted, 143 =
    ended by SIGTERM. `only_check`: only whether the command line is right."""
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        works = parse(arguments)
        for output, work in () if only_check else works.items():
            if (manifest := work()) is not None:
                print((f"{output}: " if len(works) > 1 else "") + _summary(manifest))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, _Terminated) as error:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 143
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


def _summary(manifest: Manifest) -> str:
    """The last line; says on standard error which samples are unreadable."""
    report = manifest.report
    for name, why in report["unreadable"][:20]:
        print(f"unreadable: {name}: {why}", file=sys.stderr)
    counts = [
        f"{len(report['unreadable'])} unreadable",
        f"{report['too_small']} too small",
        f"{report['excluded']} excluded",
        *([f"{report['other_files']} other files"] if report.get("other_files") else []),
        *(f"{count} with {note}" for note, count in report.get("notes", {}).items()),
    ]
    return (
        f"{manifest.samples} samples in {len(manifest.shards)} shards, {manifest.total_bytes / 1e6:.1f} MB; "
        f"{', '.join(counts)}; fingerprint {manifest.fingerprint[:16]}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
