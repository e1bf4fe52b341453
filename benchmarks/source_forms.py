"""The same photographs in every form that make_shards reads, and one measured run of one source in a separate process.

    python -m benchmarks.source_forms make|list SOURCE INPUT OUTPUT

prints a JSON line: images, CPU seconds, peak memory in bytes, and for `make` a digest of images and labels.
"""

import hashlib
import io
import json
import resource
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CLASSES = 8
GROUP = 100  # rows of a row group, as Hugging Face writes images
IN_A_TAR = 500
OPTIONS = ("--samples-per-shard", "500", "--jobs", "1")


def photographs(count: int) -> Iterator[bytes]:
    """JPEGs of 500x375, ImageNet's usual size in pixels, cut from scikit-image's photographs."""
    import simplejpeg
    import skimage
    from PIL import Image

    place = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    sources = [Image.open(place / name).convert("RGB") for name in names]
    random = np.random.default_rng(0)
    for k in range(count):
        source = sources[k % len(sources)]
        width, height = (int(extent * random.uniform(0.5, 0.9)) for extent in source.size)
        left, top = int(random.integers(source.width - width)), int(random.integers(source.height - height))
        image = source.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        yield simplejpeg.encode_jpeg(np.asarray(image), 92, "RGB", "444" if k % 2 else "420")


def dots(count: int) -> Iterator[bytes]:
    """The smallest JPEGs, for the listing alone."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "JPEG")
    for _ in range(count):
        yield buffer.getvalue()


def write_forms(folder: Path, images: Iterator[bytes]) -> dict[str, Path]:
    """The images as INPUT of each source, in the order of the folder: by class."""
    import pyarrow
    import pyarrow.parquet

    forms = {name: folder / name for name in ("folder", "webdataset", "parquet")} | {"zip": folder / "images.zip"}
    everything = sorted((f"{k % CLASSES}/{k:06d}.jpg", data) for k, data in enumerate(images))
    for name in ("webdataset", "parquet"):
        forms[name].mkdir(parents=True)
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": list(map(str, range(CLASSES)))}}}}
    files = -(-len(everything) // IN_A_TAR)
    with zipfile.ZipFile(forms["zip"], "w") as archive:
        for number in range(files):
            part = everything[number * IN_A_TAR : (number + 1) * IN_A_TAR]
            with tarfile.open(forms["webdataset"] / f"train-{number:05d}.tar", "w") as tar:
                for path, data in part:
                    (forms["folder"] / path).parent.mkdir(parents=True, exist_ok=True)
                    (forms["folder"] / path).write_bytes(data)
                    archive.writestr(path, data)
                    key = Path(path).stem
                    for name, content in ((f"{key}.cls", path[0].encode()), (f"{key}.jpg", data)):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            rows = [{"bytes": data, "path": path} for path, data in part]
            table = pyarrow.table({"image": rows, "label": [int(path[0]) for path, _ in part]})
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
            place = forms["parquet"] / f"train-{number:05d}-of-{files:05d}.parquet"
            pyarrow.parquet.write_table(table, place, row_group_size=GROUP)
    return forms


def digest(shards: Path) -> str:
    """sha256 of all (label, image) of a folder of shards, whatever their order is."""
    found = []
    for path in sorted(shards.glob("shard-*.tar")):
        label = b""
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".cls"):
                    label = data
                else:
                    found.append(hashlib.sha256(label + b" " + data).digest())
    return hashlib.sha256(b"".join(sorted(found))).hexdigest()


def main() -> None:
    import pyarrow.parquet  # noqa: F401  (imports are not what is measured)

    from data_pipeline.make_shards import __main__ as make_shards

    what, source, place, output = sys.argv[1:]
    began = time.process_time()
    options = ["--dry-run"] if what == "list" else OPTIONS
    assert make_shards.main([source, place, output, *options]) == 0
    measured = {
        "cpu": time.process_time() - began,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "digest": digest(Path(output)) if what == "make" else "",
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
