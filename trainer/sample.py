"""`python -m trainer.sample RUN_OR_EXPORT --classes "tabby, lifeboat" --out DIR`: samples of a trained generator.

Without more, a grid with one row per class (grid.png) and every image alone. `--morph "A -> B"` mixes two classes' rows
of gamma and beta step by step at fixed latents, one row per latent vector (the projection paper's category morphing);
`--interpolate` goes from one latent vector to another within each class; `--sheet` arranges samples as the method knows
to. Image n of a class depends on the seed, the class and n alone. Samples that are vectors go to samples.npy, and are
printed one a line.

A generator that makes pictures of pictures takes them from `--source`, a file or a folder: each becomes DIR/NAME.png. A
generator of words prints a line of words for each.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.foundation import keys
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.options import number, whole
from trainer.foundation.outputs import check_output
from trainer.foundation.pictures import draw_grid
from trainer.foundation.pixels import to_uint8
from trainer.methods.paths import between
from trainer.methods.protocol import Sampler
from trainer.methods.sampling import ClassConditions, Describing, FromPictures, Mixing, directed, number_of
from trainer.methods.sheets import Sheets
from trainer.processes.launch import read_launch
from trainer.trained.pictures import picture_files, read_pictures, write_picture
from trainer.trained.pretrained import Generator, open_generator
from trainer.trained.sampling import evaluating

DEFAULT_ROWS = 10


def main(arguments: list[str]) -> int:
    """Make the samples; returns the exit status."""
    options = _parser().parse_args(arguments)
    _check(options)
    average = None if options.weights is None else options.weights == "average"
    device = read_launch(options.device).device
    check_output(options.out, "--out")
    generator = open_generator(options.source, options.iteration, average, device)
    if options.direction is not None:
        generator.sampler = directed(generator.sampler, options.direction)
    if options.pictures is not None:
        work = _describe if isinstance(generator.sampler, Describing) else _remake
        print(work(generator, options))
        return 0
    if options.truncation is not None:
        generator = generator.truncated(options.truncation)

    asked = _morph if options.morph else _interpolate if options.interpolate else _sheet if options.sheet else _classes
    plan = asked(generator, options)
    generator = generator if plan.sampler is None else replace(generator, sampler=plan.sampler)
    samples = generator.make(plan.latents, plan.conditions, options.batch, options.statistics == "batch")
    out = Path(options.out)
    write = _write_vectors if generator.sampler.output == "vector" else _write_pictures
    told = write(out, plan, samples.reshape(len(plan.rows), -1, *samples.shape[1:]))
    described = {**vars(options), "training": generator.training}
    described |= {"columns": list(plan.columns)} if plan.columns else {}
    (out / f"{plan.name}.json").write_text(json.dumps(described, indent=2) + "\n")
    print(told)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="RUN_OR_EXPORT", help="a run's folder, or what trainer.export wrote; a path or URL")
    add(
        "--classes",
        "--conditions",
        help='names, identifiers or numbers, e.g. "tabby, 814", or what else the method can read (default: up to ten, '
        "evenly chosen)",
    )
    add(
        "--source",
        dest="pictures",
        metavar="PICTURES",
        help="a picture, or a folder of them, of any size that the generator can take: it makes others of them, or gives the "
        "best --count words for each",
    )
    add("--direction", help="of a generator that has several, for example a_to_b (default: its first)")
    add(
        "--count",
        type=whole(1),
        default=8,
        help="samples of each class; rows of a morph or an interpolation (default: 8)",
    )
    add("--seed", type=whole(), default=0, help="of the latents (default: 0)")
    add("--out", default="samples", metavar="DIR", help="folder for the samples (default: samples)")
    add(
        "--truncation",
        type=number(least=-1e15),
        metavar="T",
        help="less variety: latent entries beyond +-T are drawn again (or what else the method makes of it)",
    )
    add("--statistics", choices=["evaluation", "batch"], default="evaluation", help="what batch norm normalises with")
    add("--morph", metavar='"A -> B"', help="go from class A to class B at fixed latents")
    add("--interpolate", action="store_true", help="go from one latent vector to another, in each class")
    add("--sheet", metavar="NAME", help="a sheet that the method offers; an unknown name lists them")
    add(
        "--mix",
        dest="sheet",
        action="store_const",
        const="mixing",
        help="the sheet `mixing`: the styles of two samples",
    )
    add(
        "--steps",
        type=whole(1),
        default=9,
        help="samples from one end of a morph or an interpolation to the other (default: 9)",
    )
    add("--iteration", type=whole(), help="which checkpoint of a run (default: the newest)")
    add("--weights", choices=["average", "plain"], help="of a run; default: the moving average if it has one")
    add("--batch", type=whole(1), default=50, help="samples computed at a time (default: 50)")
    add("--device", help="default: cuda where there is one, else cpu")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.morph and options.interpolate:
        raise SettingError("--morph: does not go together with --interpolate; ask for one after the other")
    if options.sheet and (options.morph or options.interpolate):
        other = "--morph" if options.morph else "--interpolate"
        raise SettingError(f"{other}: does not go together with --sheet or --mix; ask for one after the other")
    for name in ("classes", "morph", "interpolate", "truncation", "sheet"):
        if options.pictures is not None and getattr(options, name):
            raise SettingError(f"--{name}: does not go together with --source; leave one of them out")
    if options.morph and options.classes:
        raise SettingError("--classes: does not go together with --morph, which names its two classes itself")


def _remake(generator: Generator, options: argparse.Namespace) -> str:
    """A picture of each picture of --source, as OUT/NAME.png. Returns what is printed."""
    sampler = generator.sampler
    if not isinstance(sampler, FromPictures):
        raise SettingError("--source: this generator makes no pictures of pictures; leave the option out")
    files = picture_files(options.pictures, "--source")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for path, picture in read_pictures(files, sampler.channels, "--source"):
        source = keys.generator(options.seed, "sample", replica=number_of(picture))
        try:
            with evaluating(sampler, options.statistics == "batch"), torch.no_grad():
                made = sampler.remake(picture.to(generator.device), source)
        except SettingError as error:
            raise SettingError(f"--source: {path} is {error}") from None
        write_picture(out / f"{path.stem}.png", made)
    described = {**vars(options), "training": generator.training}
    (out / "pictures.json").write_text(json.dumps(described, indent=2) + "\n")
    return f"{out}/: {len(files)} pictures"


def _describe(generator: Generator, options: argparse.Namespace) -> str:
    """The words for each picture of --source, also in OUT/words.json. Returns what is printed."""
    sampler = generator.sampler
    assert isinstance(sampler, Describing)
    files, found = picture_files(options.pictures, "--source"), {}
    for path, picture in read_pictures(files, sampler.channels, "--source"):
        source = keys.generator(options.seed, "sample", replica=number_of(picture))
        with evaluating(sampler):
            found[path.name] = sampler.describe(picture.to(generator.device), source, options.count)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    described = {"words": found, **vars(options), "training": generator.training}
    (out / "words.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    return "\n".join(f"{name}: {', '.join(words)}" for name, words in found.items())


class Plan(NamedTuple):
    """What is sampled."""

    name: str
    """Of the files."""
    rows: list[str]
    """The rows' captions."""
    latents: Tensor
    """[rows * columns, ...]."""
    conditions: Tensor
    """[rows * columns, ...]."""
    sampler: Sampler | None = None
    """What makes them, if it is not the generator's own sampler."""
    columns: Sequence[str] = ()
    """What the columns are, where it is to be noted."""


def _chosen(generator: Generator, text: str | None) -> Tensor:
    """The conditions that are asked for, or some, evenly chosen: [n, ...]."""
    conditions = generator.sampler.conditions
    if text and isinstance(conditions, ClassConditions) and not conditions.classes:
        raise SettingError("--classes: this generator has no classes; leave the option out")
    if text is not None and not text.strip(" ,"):
        raise SettingError("--classes: names no class; name some, or leave the option out")
    if text is not None:
        named = [_parsed(generator, "--classes", part) for part in text.split(",") if part.strip()]
    else:
        named = list(conditions.evenly(DEFAULT_ROWS))
    if not named:
        option = "--source" if isinstance(generator.sampler, FromPictures | Describing) else "--classes"
        raise SettingError(f"{option}: names nothing, and this generator has no samples without a condition; name some")
    return torch.stack(named)


def _parsed(generator: Generator, option: str, text: str) -> Tensor:
    try:
        return generator.sampler.conditions.parse(text)
    except SettingError as error:
        raise SettingError(f"{option}: {str(error).removeprefix('classes: ')}") from None


def _classes(generator: Generator, options: argparse.Namespace) -> Plan:
    chosen = _chosen(generator, options.classes)
    latents = torch.cat([generator.latents(k, options.count, options.seed) for k in chosen])
    name = "samples" if generator.sampler.output == "vector" else "grid"
    return Plan(name, _captions(generator, chosen), latents, chosen.repeat_interleave(options.count, 0))


def _interpolate(generator: Generator, options: argparse.Namespace) -> Plan:
    """`count` rows per class, each on the way between two latent vectors."""
    chosen, pairs = _chosen(generator, options.classes), 2 * options.count
    drawn = torch.cat([generator.latents(k, pairs, options.seed) for k in chosen])
    latents = between(generator.sampler, drawn[::2], drawn[1::2], _shares(options.steps, generator.device))
    if latents is None:
        raise SettingError("--interpolate: this generator has no latent vectors to go between; leave the option out")
    rows = chosen.repeat_interleave(options.count, 0)
    conditions = rows.repeat_interleave(options.steps, 0)
    return Plan("interpolation", _captions(generator, rows), latents.flatten(0, 1), conditions)


def _morph(generator: Generator, options: argparse.Namespace) -> Plan:
    """`count` rows, each one latent vector; the conditions go from A to B in equal steps."""
    conditions = generator.sampler.conditions
    if isinstance(conditions, ClassConditions) and not conditions.classes:
        raise SettingError("--morph: this generator has no classes to go between; try --interpolate")
    if not isinstance(conditions, Mixing):
        raise SettingError("--morph: this generator's conditions cannot be mixed; try --interpolate")
    ends = options.morph.split("->")
    if len(ends) != 2:
        raise SettingError(f'--morph: is {options.morph!r}; give two classes as "A -> B"')
    first, last = (_parsed(generator, "--morph", end.strip()) for end in ends)
    mixed = conditions.mix(first, last, _shares(options.steps, generator.device))
    latents = generator.latents(first, options.count, options.seed)
    name = f"morph_{_slug(conditions.caption(first))}_{_slug(conditions.caption(last))}"
    rows = [""] * options.count
    return Plan(name, rows, latents.repeat_interleave(options.steps, 0), torch.cat([mixed] * options.count))


def _sheet(generator: Generator, options: argparse.Namespace) -> Plan:
    """A sheet of the method's own, of `count` latents of each class."""
    sampler = generator.sampler
    known = sampler.sheets if isinstance(sampler, Sheets) else {}
    if options.sheet not in known:
        there_are = "; ".join(f"{name}: {meaning}" for name, meaning in known.items())
        asked = "--mix" if options.sheet == "mixing" else "--sheet"
        raise SettingError(
            f"--sheet: there is no sheet {options.sheet!r}; there are {there_are}"
            if known
            else f"{asked}: this generator's method has no sheets; leave the option out"
        )
    assert isinstance(sampler, Sheets)
    chosen = _chosen(generator, options.classes)
    latents = torch.stack([generator.latents(k, options.count, options.seed) for k in chosen])
    sheet = sampler.sheet(options.sheet, latents, chosen.to(generator.device), options.steps)
    return Plan(options.sheet, list(sheet.rows), sheet.latents, sheet.conditions, sheet.sampler, sheet.columns)


def _shares(steps: int, device: torch.device) -> Tensor:
    return torch.linspace(0, 1, steps, device=device)


def _captions(generator: Generator, conditions: Tensor) -> list[str]:
    return [generator.sampler.conditions.caption(condition) for condition in conditions]


def _write_pictures(out: Path, plan: Plan, samples: Tensor) -> str:
    """The grid, and every image alone: images [rows, columns, C, H, W] in [-1, 1]. Returns what is printed."""
    pictures = to_uint8(samples.flatten(0, 1)).view(samples.shape)
    folder = out / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    draw_grid(pictures, plan.rows).save(out / f"{plan.name}.png")
    for row, (caption, strip) in enumerate(zip(plan.rows, pictures, strict=True)):
        for column, image in enumerate(strip):
            label = f"_{_slug(caption)}" if caption else ""
            pixels = image.permute(1, 2, 0).squeeze(2) if image.shape[0] == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.contiguous().numpy()).save(folder / f"{row:03d}{label}_{column:04d}.png")
    return f"{out / plan.name}.png: {len(plan.rows)} x {pictures.shape[1]} images; each alone in {out}/"


def _write_vectors(out: Path, plan: Plan, samples: Tensor) -> str:
    """One file of vectors [rows * columns, D] of [rows, columns, D]. Returns what is printed: a line per sample."""
    out.mkdir(parents=True, exist_ok=True)
    vectors = samples.flatten(0, 1).float().cpu().numpy()
    np.save(out / f"{plan.name}.npy", vectors)
    captions = [caption for caption in plan.rows for _ in range(samples.shape[1])]
    lines = [
        f"{caption}: {_values(vector)}".removeprefix(": ") for caption, vector in zip(captions, vectors, strict=True)
    ]
    return "\n".join([*lines, f"{out / plan.name}.npy: {len(vectors)} samples of {vectors.shape[1]} values"])


def _values(vector: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> str:
    return " ".join(f"{value:.4g}" for value in vector)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-") or "class"


if __name__ == "__main__":
    sys.exit(run_command(main))
