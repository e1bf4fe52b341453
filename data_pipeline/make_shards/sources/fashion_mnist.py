"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): `python -m data_pipeline.make_shards.sources.fashion_mnist OUTPUT_DIR`
brings its four files.

They come from Debian's package `dataset-fashion-mnist` where it is installed, else from the data set's own address,
and are checked against the pinned sha256 of the unpacked bytes (the archives themselves differ between the two).
"""

import argparse
import gzip
import hashlib
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.storage.folder import Folder

ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LABELS_SHA256 = (
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
)
"""sha256 of the labels alone, without the file's header: how the data set is recognised."""


def _unpacked_sha256(data: bytes) -> str:
    try:
        return hashlib.sha256(gzip.decompress(data)).hexdigest()
    except (OSError, EOFError, zlib.error):
        return "not a gzip file"


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return bytes(response.read())
    except (OSError, urllib.error.URLError) as error:
        raise DataError(
            f"{url}: cannot be fetched ({error}); check the network, or install Debian's package dataset-fashion-mnist"
        ) from None


def bring(output: Path, *, debian_folder: Path = DEBIAN_FOLDER, address: str = ADDRESS) -> None:
    """Put the four verified files into `output`; those already there and right are kept. Raises DataError."""
    folder = Folder(output)
    for name, sha256 in SHA256.items():
        target = output / f"{name}.gz"
        if target.exists():
            if target.is_file() and _unpacked_sha256(target.read_bytes()) == sha256:
                continue
            raise DataError(
                f"OUTPUT_DIR: {target} is not Fashion-MNIST's file and would be replaced; give another folder, or "
                "remove it"
            )
        debian = debian_folder / f"{name}.gz"
        where = str(debian) if debian.is_file() else f"{address}/{name}.gz"
        data = debian.read_bytes() if debian.is_file() else _download(where)
        found = _unpacked_sha256(data)
        if found != sha256:
            raise DataError(f"{where}: the unpacked file's sha256 is {found}, not {sha256}; it was changed or damaged")
        folder.write(target.name, data)
        print(f"{target}: from {where}, sha256 as pinned", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.make_shards.sources.fashion_mnist", description=__doc__
    )
    parser.add_argument("output_dir", type=Path)
    try:
        bring(parser.parse_args(arguments).output_dir)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
