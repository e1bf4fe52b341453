"""`python -m trainer.sample RUN_OR_EXPORT --classes "tabby, lifeboat" --out DIR`: pictures of a trained generator.

Without more, a grid with one row per class (grid.png) and every image alone. `--morph "A -> B"` mixes two classes' rows
of gamma and beta step by step at fixed latents, one row per latent vector (the projection paper's category morphing);
`--interpolate` goes from one latent vector to another within each class. Image n of a class depends on the seed, the
class and n alone.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.pictures import draw_grid
from trainer.foundation.pixels import to_uint8
from trainer.trained.pretrained import Generator, open_generator

DEFAULT_ROWS = 10


def main(arguments: list[str]) -> int:
    """Make the pictures; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.morph and options.interpolate:
        raise SettingError("--morph: does not go together with --interpolate; ask for one after the other")
    for name in ("count", "steps", "batch"):
        if getattr(options, name) < 1:
            raise SettingError(f"--{name}: is {getattr(options, name)}; give at least 1")
    if options.truncation is not None and options.truncation <= 0:
        raise SettingError(f"--truncation: is {options.truncation}; give a number above 0, such as 1 or 0.5")
    average = None if options.weights is None else options.weights == "average"
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    generator = open_generator(options.source, options.iteration, average, device)

    if options.morph:
        name, rows, latents, labels = _morph(generator, options)
    elif options.interpolate:
        name, rows, latents, labels = _interpolate(generator, options)
    else:
        name, rows, latents, labels = _classes(generator, options)
    images = generator.images(latents, labels, options.batch, options.statistics == "batch")
    pictures = to_uint8(images).reshape(len(rows), -1, *images.shape[1:])
    out = Path(options.out)
    _write(out, name, pictures, rows)
    (out / f"{name}.json").write_text(json.dumps({**vars(options), "training": generator.training}, indent=2) + "\n")
    print(f"{out / name}.png: {len(rows)} x {pictures.shape[1]} images; each alone in {out}/")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="RUN_OR_EXPORT", help="a run's folder, or what trainer.export wrote; a path or URL")
    add(
        "--classes",
        help='names, identifiers or numbers, e.g. "tabby, 814" (default: up to ten, evenly chosen)',
    )
    add("--count", type=int, default=8, help="images of each class; rows of a morph or an interpolation (default: 8)")
    add("--seed", type=int, default=0, help="of the latents (default: 0)")
    add("--out", default="samples", metavar="DIR", help="folder for the pictures (default: samples)")
    add(
        "--truncation",
        type=float,
        metavar="T",
        help="draw latent entries beyond +-T again (less variety)",
    )
    add("--statistics", choices=["evaluation", "batch"], default="evaluation", help="what batch norm normalises with")
    add("--morph", metavar='"A -> B"', help="go from class A to class B at fixed latents")
    add("--interpolate", action="store_true", help="go from one latent vector to another, in each class")
    add(
        "--steps",
        type=int,
        default=9,
        help="images from one end of a morph or an interpolation to the other (default: 9)",
    )
    add("--iteration", type=int, help="which checkpoint of a run (default: the newest)")
    add("--weights", choices=["average", "plain"], help="of a run; default: the moving average if it has one")
    add("--batch", type=int, default=50, help="images computed at a time (default: 50)")
    add("--device", help="default: cuda where there is one, else cpu")
    return parser


Plan = tuple[str, list[str], Tensor, Tensor]
"""Name of the picture, names of its rows, latents [rows * columns, Z], labels or class weights for them."""


def _labels(generator: Generator, text: str | None) -> list[int]:
    if generator.model.classes == 0:
        if text:
            raise SettingError("--classes: this generator has no classes; leave the option out")
        return [0]
    if text is None:
        rows = min(DEFAULT_ROWS, generator.model.classes)
        return [row * generator.model.classes // rows for row in range(rows)]
    try:
        return [generator.label(part) for part in text.split(",") if part.strip()]
    except SettingError as error:
        raise SettingError(f"--{error}") from None


def _classes(generator: Generator, options: argparse.Namespace) -> Plan:
    chosen = _labels(generator, options.classes)
    latents = torch.cat([generator.latents(k, options.count, options.seed, options.truncation) for k in chosen])
    labels = torch.tensor(chosen, device=generator.device).repeat_interleave(options.count)
    return "grid", _row_names(generator, chosen), latents, labels


def _interpolate(generator: Generator, options: argparse.Namespace) -> Plan:
    """`count` rows per class, each on the straight line between two latent vectors."""
    chosen = [label for label in _labels(generator, options.classes) for _ in range(options.count)]
    pairs = 2 * options.count
    drawn = [generator.latents(k, pairs, options.seed, options.truncation) for k in chosen[:: options.count]]
    ends = torch.cat(drawn).view(len(chosen), 2, -1)
    share = _shares(options.steps, generator.device)[None, :, None]
    latents = (1 - share) * ends[:, :1] + share * ends[:, 1:]
    labels = torch.tensor(chosen, device=generator.device).repeat_interleave(options.steps)
    return "interpolation", _row_names(generator, chosen), latents.flatten(0, 1), labels


def _morph(generator: Generator, options: argparse.Namespace) -> Plan:
    """`count` rows, each one latent vector; the class weights go from A to B in equal steps."""
    if options.classes:
        raise SettingError("--classes: does not go together with --morph, which names its two classes itself")
    if generator.model.classes == 0:
        raise SettingError("--morph: this generator has no classes to go between; try --interpolate")
    ends = options.morph.split("->")
    if len(ends) != 2:
        raise SettingError(f'--morph: is {options.morph!r}; give two classes as "A -> B"')
    try:
        first, last = (generator.label(end.strip()) for end in ends)
    except SettingError as error:
        raise SettingError(f"--morph: {str(error).removeprefix('classes: ')}") from None
    share = _shares(options.steps, generator.device)[:, None]
    one_hot = F.one_hot(torch.tensor([first, last], device=generator.device), generator.model.classes).float()
    weights = (1 - share) * one_hot[0] + share * one_hot[1]
    latents = generator.latents(first, options.count, options.seed, options.truncation)
    name = f"morph_{_slug(generator.name_of(first))}_{_slug(generator.name_of(last))}"
    return name, [""] * options.count, latents.repeat_interleave(options.steps, 0), weights.repeat(options.count, 1)


def _shares(steps: int, device: torch.device) -> Tensor:
    return torch.linspace(0, 1, steps, device=device)


def _row_names(generator: Generator, labels: list[int]) -> list[str]:
    return [generator.name_of(label) if generator.model.classes else "" for label in labels]


def _write(out: Path, name: str, pictures: Tensor, rows: list[str]) -> None:
    """The grid, and every image alone: pictures uint8 [rows, columns, C, H, W]."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    draw_grid(pictures, rows).save(out / f"{name}.png")
    for row, (row_name, strip) in enumerate(zip(rows, pictures, strict=True)):
        for column, image in enumerate(strip):
            label = f"_{_slug(row_name)}" if row_name else ""
            pixels = image.permute(1, 2, 0).squeeze(2) if image.shape[0] == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.contiguous().numpy()).save(folder / f"{row:03d}{label}_{column:04d}.png")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-") or "class"


if __name__ == "__main__":
    sys.exit(run_command(main))
