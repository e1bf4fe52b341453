"""The container, built for real from a plain Debian, and a training in it as its non-root user."""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.crash_training import make_shards
from tests.support.image_build import Builder, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@pytest.fixture
def builder() -> Iterator[Builder]:
    """Storage on disk, not in a memory file system: the image has gigabytes of libraries."""
    folder = Path(tempfile.mkdtemp(prefix="image-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield Builder(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_proof_image_trains_as_its_own_user(
    builder: Builder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 iterations of the demo's training; on Fashion-MNIST where its shards are here, else on made-up images."""
    begun = time.monotonic()
    builder.make_base(ROOT / "build" / "image" / "debian-12.tar")
    builder.build("--build-arg", "REVISION=proof")
    built = time.monotonic() - begun
    settings = builder.settings()
    labels, entry = settings["Labels"], settings["Entrypoint"]
    assert settings["User"] == "10001"
    assert isinstance(labels, dict)
    assert labels["org.opencontainers.image.revision"] == "proof"
    assert isinstance(entry, list)

    fashion = ROOT / "data" / "fashion32" / "train"
    shards = fashion if fashion.exists() else make_shards(tmp_path)
    runs = builder.folder / "runs"
    runs.mkdir()
    runs.chmod(0o777)
    mounts = {shards: "/data/train", runs: "/opt/menagerie/runs"}
    environment = {"ACCELERATE_USE_CPU": "true", "PROCESSES": "2"}
    words = ["--data.shards", "/data/train", "--run.iterations", "20", "--run.log_every", "5"]
    begun = time.monotonic()
    output = builder.run([*entry, "train", "configs/fashion32_projection.yaml", *words], mounts, environment)
    trained = time.monotonic() - begun
    assert "COMPLETE: runs/fashion32_projection at iteration 20" in output, output[-4000:]
    owner = (runs / "fashion32_projection" / "checkpoints" / "run.json").stat().st_uid
    user = builder.run(["id", "-u"], {}, {}).split()[-1]
    table = builder.run([*entry, "checkpoint", "verify", "runs/fashion32_projection"], mounts, {})
    passed = (owner, user) == (10001, "10001") and re.search(r"\b20\b.*verified, newest", table) is not None
    with capsys.disabled():
        print(
            f"\nPROOF image-debian: {'PASS' if passed else 'FAIL'} build={built:.0f}s training={trained:.0f}s iterations=20 "
            f"user={user} files_owned_by={owner} data={'fashion32' if shards == fashion else 'made-up'}"
        )
    assert passed, table
