"""One measured run of one party of `bench_data.py`, in a separate process: prints a JSON line.

    python data_parties.py PARTY FOLDER IMAGES

Every party delivers batches of 64 RGB 128x128 images and labels from the same JPEGs in FOLDER, with one worker (a
process, or for the threaded ones a thread), for IMAGES images after a warm-up. CPU seconds are user + system of the
whole process tree.
"""

import io
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH, SIDE, WINDOW = 64, 128, 1000
FULL = 2048  # photographs of 500x375 for make_shards


def roofline(folder: Path) -> Iterator[Any]:
    """The bare decode loop: bytes in memory, simplejpeg into one reused buffer, one thread."""
    import simplejpeg

    images = [path.read_bytes() for path in sorted((folder / "files").glob("*/*.jpg"))]
    batch = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
    while True:
        for begin in range(0, len(images) - BATCH + 1, BATCH):
            for row, data in enumerate(images[begin : begin + BATCH]):
                simplejpeg.decode_jpeg(data, "RGB", buffer=batch[row])
            yield batch


def ours(folder: Path, window: int | None = None) -> Iterator[Any]:
    """Menagerie's stream, CRC32 on, one decoding thread."""
    from data_pipeline.reading.stream import DataConfig, open_stream

    config = DataConfig(shards=str(folder / "tars"), decode_threads=1, shuffle_window=window)
    yield from open_stream(config, seed=0, replicas=1, held=[0], sizes=itertools.repeat(BATCH))


def ours_windowed(folder: Path) -> Iterator[Any]:
    """The same with a shuffle window of as many samples as the peers' shuffle buffers."""
    yield from ours(folder, WINDOW)


def _repeat(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _webdataset(folder: Path, decode: Any) -> Any:
    import webdataset

    tars = [str(path) for path in sorted((folder / "tars").glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(WINDOW).repeat()
    return decode(dataset), webdataset


def webdataset_usual(folder: Path) -> Iterator[Any]:
    """The recipe of its documentation: PIL, to-tensor and normalise (float), default collate."""
    import torch

    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    dataset, webdataset = _webdataset(
        folder,
        lambda d: (
            d.decode("torchrgb").to_tuple("jpg", "cls").map_tuple(lambda image: (image - mean) / std).batched(BATCH)
        ),
    )
    yield from _repeat(webdataset.WebLoader(dataset, batch_size=None, num_workers=1))


def webdataset_uint8(folder: Path) -> Iterator[Any]:
    """The same recipe with uint8 images: PIL, default collate."""
    dataset, webdataset = _webdataset(folder, lambda d: d.decode("rgb8").to_tuple("jpg", "cls").batched(BATCH))
    yield from _repeat(webdataset.WebLoader(dataset, batch_size=None, num_workers=1))


def _simplejpeg_batch(samples: Any) -> Any:
    import simplejpeg

    images = np.empty((len(samples), SIDE, SIDE, 3), np.uint8)
    for row, (data, _) in enumerate(samples):
        simplejpeg.decode_jpeg(data, "RGB", buffer=images[row])
    return images, np.array([int(label) for _, label in samples])


def _torch_batch(samples: Any) -> Any:
    """As tensors, which torch's workers hand over through shared memory: a tenth faster than arrays through a pipe."""
    import torch

    return tuple(map(torch.from_numpy, _simplejpeg_batch(samples)))


def webdataset_simplejpeg(folder: Path) -> Iterator[Any]:
    """simplejpeg, one stack per batch, in the worker."""
    dataset, webdataset = _webdataset(
        folder, lambda d: d.to_tuple("jpg", "cls").batched(BATCH, collation_fn=_torch_batch)
    )
    yield from _repeat(webdataset.WebLoader(dataset, batch_size=None, num_workers=1))


def mosaic(folder: Path) -> Iterator[Any]:
    """mosaicml-streaming: MDS shards of the same JPEGs, simplejpeg."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()  # what a run before this one left keeps the next one waiting for ever
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=1,
        collate_fn=lambda samples: _torch_batch([(sample["jpg"], sample["cls"]) for sample in samples]),
    )
    yield from _repeat(loader)


def litdata(folder: Path) -> Iterator[Any]:
    """litdata: chunks of the same JPEGs, simplejpeg."""
    import litdata as lit

    dataset = lit.StreamingDataset(str(folder / "lit"), shuffle=True, max_cache_size="10GB")
    loader = lit.StreamingDataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=1,
        persistent_workers=True,
        collate_fn=lambda samples: _torch_batch([(sample["jpg"], sample["cls"]) for sample in samples]),
    )
    yield from _repeat(loader)


class _Files:
    """A map-style dataset of files; a sample is (bytes, label)."""

    def __init__(self, folder: Path) -> None:
        self.paths = [str(path) for path in sorted((folder / "files").glob("*/*.jpg"))]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> tuple[bytes, int]:
        with open(self.paths[k], "rb") as file:
            return file.read(), int(self.paths[k].split("/")[-2])


def dataloader(folder: Path) -> Iterator[Any]:
    """torchdata's StatefulDataLoader over files, simplejpeg, one stack per batch."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    yield from _repeat(
        StatefulDataLoader(
            _Files(folder),
            batch_size=BATCH,
            shuffle=True,
            num_workers=1,
            persistent_workers=True,
            collate_fn=_torch_batch,
        )
    )


class _Indexed:
    """Random access to the tars through Menagerie's indexes (Grain and SPDL have none of their own for tars)."""

    def __init__(self, folder: Path) -> None:
        import mmap

        record = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("crc32", "<u4")])
        self.rows, self.maps = [], []
        for number, path in enumerate(sorted((folder / "tars").glob("*.tar"))):
            rows = np.frombuffer(path.with_suffix(".idx").read_bytes(), record, offset=16)
            with path.open("rb") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self.rows += [(number, int(r["offset"]), int(r["size"]), int(r["label"])) for r in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> tuple[bytes, int]:
        number, offset, size, label = self.rows[k]
        return self.maps[number][offset : offset + size], label


def grain(folder: Path) -> Iterator[Any]:
    """Grain's threads on our index, simplejpeg."""
    import grain as g

    source = g.MapDataset.source(_Indexed(folder)).shuffle(seed=0).repeat().batch(BATCH, batch_fn=_simplejpeg_batch)
    yield from source.to_iter_dataset(g.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def spdl(folder: Path) -> Iterator[Any]:
    """SPDL's executor on our index, simplejpeg."""
    from spdl.pipeline import PipelineBuilder

    source = _Indexed(folder)

    def batches() -> Iterator[list[int]]:
        generator = np.random.default_rng(0)
        while True:
            order = generator.permutation(len(source)).tolist()
            for begin in range(0, len(order) - BATCH + 1, BATCH):
                yield order[begin : begin + BATCH]

    pipeline = (
        PipelineBuilder()
        .add_source(batches())
        .pipe(lambda ids: _simplejpeg_batch([source[k] for k in ids]), concurrency=1)
        .add_sink(4)
        .build(num_threads=1)
    )
    with pipeline.auto_stop():
        yield from pipeline


PARTIES = {
    function.__name__: function
    for function in (
        *(roofline, ours, ours_windowed, webdataset_usual, webdataset_uint8, webdataset_simplejpeg),
        *(mosaic, litdata, dataloader, grain, spdl),
    )
}


def prepare(folder: Path) -> None:
    """The peers' own formats, from the same JPEGs."""
    import litdata as lit
    from streaming import MDSWriter

    files = _Files(folder)
    with MDSWriter(out=str(folder / "mds"), columns={"jpg": "bytes", "cls": "int"}, size_limit="8mb") as writer:
        for data, label in files:  # type: ignore[attr-defined]
            writer.write({"jpg": data, "cls": label})
    samples = [files[k] for k in range(len(files))]
    lit.optimize(
        fn=lambda k: {"jpg": samples[k][0], "cls": samples[k][1]},
        inputs=list(range(len(samples))),
        output_dir=str(folder / "lit"),
        chunk_bytes="8MB",
        num_workers=1,
        start_method="fork",
    )


def photographs(folder: Path, count: int, classes: int = 16) -> None:
    """Crops of scikit-image's photographs: 128 px JPEGs (q95, 4:4:4) as files and tars, full-size ones for
    make_shards."""
    import tarfile

    import simplejpeg
    import skimage
    from PIL import Image

    place = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
    sources = [Image.open(place / name).convert("RGB") for name in names]
    random = np.random.default_rng(0)
    tars = [tarfile.open(folder / "tars" / f"part-{k}.tar", "w") for k in range(8)]  # noqa: SIM115
    for k in range(count):
        source = sources[k % len(sources)]
        side = int(random.integers(128, min(source.size) + 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in source.size)
        image = source.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        data = simplejpeg.encode_jpeg(np.asarray(image), 95, "RGB", "444")
        target = folder / "files" / str(k % classes)
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{k:06d}.jpg").write_bytes(data)
        for name, content in ((f"{k:06d}.cls", str(k % classes).encode()), (f"{k:06d}.jpg", data)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tars[k * 8 // count].addfile(member, io.BytesIO(content))
    for tar in tars:
        tar.close()
    for k in range(FULL):
        source = sources[k % len(sources)]
        extents = [int(extent * random.uniform(0.6, 0.9)) for extent in source.size]
        left, top = (int(random.integers(0, whole - part)) for whole, part in zip(source.size, extents, strict=True))
        box = (left, top, left + extents[0], top + extents[1])
        image = source.resize((500, 375), Image.Resampling.BICUBIC, box=box)
        target = folder / "full" / str(k % 4)
        target.mkdir(parents=True, exist_ok=True)
        data = simplejpeg.encode_jpeg(np.asarray(image), 95, "RGB", "444" if k % 2 else "420")
        (target / f"{k:04d}.jpg").write_bytes(data)


def shards_plain(folder: Path, output: Path) -> int:
    """A plain script: PIL and webdataset's ShardWriter."""
    import webdataset
    from PIL import Image

    paths = sorted((folder / "full").glob("*/*.jpg"))
    with webdataset.ShardWriter(str(output / "plain-%05d.tar"), maxcount=10000, verbose=0) as writer:
        for number, path in enumerate(paths):
            image = Image.open(path).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=95, subsampling=0)
            writer.write({"__key__": f"{number:08d}", "jpg": buffer.getvalue(), "cls": int(path.parent.name)})
    return len(paths)


def shards_limit(folder: Path, output: Path) -> int:
    """Decode, resize, encode, and nothing else: bytes in memory, simplejpeg, Pillow's Lanczos."""
    import simplejpeg
    from PIL import Image

    images = [path.read_bytes() for path in sorted((folder / "full").glob("*/*.jpg"))]
    for data in images:
        pixels = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
        side = min(pixels.size)
        left, top = (pixels.width - side) // 2, (pixels.height - side) // 2
        small = pixels.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        simplejpeg.encode_jpeg(np.asarray(small), 95, "RGB", "444")
    return len(images)


def shards_ours(folder: Path, output: Path) -> int:
    from data_pipeline.make_shards import __main__ as make_shards

    assert make_shards.main(["folder", str(folder / "full"), str(output / "ours"), "--jobs", "1"]) == 0
    return FULL


MAKERS = {function.__name__: function for function in (shards_plain, shards_limit, shards_ours)}


def _cpu(tree: Any) -> tuple[float, float]:
    """CPU seconds of the process tree (ended children too), and its memory (shared pages counted in proportion)."""
    import psutil

    seconds, memory = 0.0, 0.0
    for process in [tree, *tree.children(recursive=True)]:
        try:
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
            memory += process.memory_full_info().pss
        except psutil.Error:
            continue
    return seconds, memory


def main() -> None:
    import psutil

    name, folder = sys.argv[1], Path(sys.argv[2])
    tree = psutil.Process()
    if name in MAKERS:
        import webdataset  # noqa: F401  (imports are not what is measured)
        from PIL import Image

        Image.init()
        if name == "shards_ours":
            from data_pipeline.make_shards import __main__ as arguments  # noqa: F401
            from data_pipeline.make_shards.sources import folder as _
        before, began = _cpu(tree)[0], time.perf_counter()
        images = MAKERS[name](folder, Path(sys.argv[3]))
        print(json.dumps({"images": images, "cpu": _cpu(tree)[0] - before, "wall": time.perf_counter() - began}))
        return
    images = int(sys.argv[3])
    import torch  # noqa: F401  (every training has it in memory)

    base = _cpu(tree)[1]
    batches = PARTIES[name](folder)
    for _ in itertools.islice(batches, 16):  # workers are up, caches are warm
        pass
    before, began = _cpu(tree)[0], time.perf_counter()
    for _ in itertools.islice(batches, images // BATCH):
        pass
    after, memory = _cpu(tree)
    print(
        json.dumps(
            {
                "images": images // BATCH * BATCH,
                "cpu": after - before,
                "wall": time.perf_counter() - began,
                "memory": memory - base,
            }
        ),
        flush=True,
    )
    # Torch's workers with a batch left to deliver hold the reading end of their own full pipe, and never end by themselves:
    # the benchmark ends the whole group.
    os._exit(0)


if __name__ == "__main__":
    main()
