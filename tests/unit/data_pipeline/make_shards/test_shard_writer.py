"""The tar of a shard is webdataset's own, byte by byte, and its index says where the samples are."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.make_shards.shard_writer import ShardResult, ShardTar
from data_pipeline.manifest import index
from tests.support.checkout import ROOT, environment


@pytest.mark.parametrize(("extension", "labelled"), [("jpg", True), ("png", False), ("npy", True)])
def test_the_bytes_are_those_of_webdatasets_writer(tmp_path: Path, extension: str, labelled: bool) -> None:
    webdataset = pytest.importorskip("webdataset")
    random = np.random.default_rng(0)
    samples = [
        (f"{k:08d}", random.bytes(int(random.integers(0, 3000))), 7 * k if labelled else None) for k in range(40)
    ]
    samples.append(("00000512", bytes(512), 3 if labelled else None))
    result = ShardResult("a.tar", "a.idx")
    with ShardTar(tmp_path, "a.tar", extension) as tar:
        for key, data, label in samples:
            tar.add(key, data, label)
        tar.finish(result)
    buffer = io.BytesIO()
    writer = webdataset.TarWriter(buffer, user="", group="", encoder=False, mtime=0, compress=False)
    for key, data, label in samples:
        writer.write({"__key__": key, extension: data, **({} if label is None else {"cls": str(label).encode()})})
    writer.close()
    written = (tmp_path / "a.tar").read_bytes()
    assert written == buffer.getvalue()
    rows = index.from_bytes((tmp_path / "a.idx").read_bytes(), "a.idx")
    assert [written[row["offset"] : row["offset"] + row["size"]] for row in rows] == [data for _, data, _ in samples]


def test_make_shards_does_not_import_torch(tmp_path: Path) -> None:
    """Half a gigabyte in each of its workers."""
    code = (
        "import sys; from data_pipeline.make_shards.shard_writer import ShardResult, ShardTar; from pathlib import Path; "
        "from data_pipeline.make_shards import __main__\n"
        "with ShardTar(Path(sys.argv[1]), 'a.tar', 'jpg') as tar:\n"
        "    tar.add('0', b'x', 1); tar.finish(ShardResult('a.tar', 'a.idx'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, env=environment(), check=True)
