"""Files of pictures that a trained generator makes other pictures of."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.make_shards.images import open_image, to_mode
from trainer.foundation.errors import SettingError
from trainer.foundation.pixels import to_uint8

SUFFIXES = frozenset(Image.registered_extensions())


class Picture(NamedTuple):
    """A file that was read."""

    path: Path
    pixels: Tensor
    """[C, H, W] in [-1, 1]."""


def picture_files(source: str, option: str) -> list[Path]:
    """The file itself, or every file of the folder that is named like a picture, by name. Raises `SettingError`."""
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SettingError(
            f"{option}: {source} is neither a file nor a folder; give a picture, or a folder of pictures"
        )
    found = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix.lower() in SUFFIXES)
    if not found:
        raise SettingError(f"{option}: the folder {source} holds no pictures; give one that does")
    if twins := [file for before, file in itertools.pairwise(found) if file.stem == before.stem]:
        raise SettingError(f"{option}: {source} has two pictures called {twins[0].stem}; rename one")
    return found


def read_pictures(files: list[Path], channels: int, option: str) -> Iterator[Picture]:
    """The files one after another, upright, in grey or colour. Raises `SettingError` for one that cannot be read."""
    for path in files:
        try:
            pixels = np.asarray(to_mode(open_image(path.read_bytes()), channels))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise SettingError(f"{option}: {path} cannot be read as a picture ({error}); remove it") from None
        image = torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], channels).permute(2, 0, 1)
        yield Picture(path, image.float() / 127.5 - 1.0)


def write_picture(path: Path, image: Tensor) -> None:
    """An image [C, H, W] in [-1, 1], as a PNG."""
    pixels = to_uint8(image[None])[0].permute(1, 2, 0)
    Image.fromarray((pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).contiguous().numpy()).save(path)
