"""The same photographs from every source: the same images and labels, in little memory, whenever it was killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.source_forms import OPTIONS, digest, photographs, write_forms
from tests.support.checkout import ROOT, environment

pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
pytest.importorskip("skimage", reason="scikit-image is not installed")


def measured(source: str, place: Path, output: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.source_forms", "make", source, str(place), str(output)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def kill_and_resume(source: str, place: Path, output: Path) -> int:
    """Kill make_shards each time that another shard is there; the number of kills."""
    command = [sys.executable, "-m", "data_pipeline.make_shards", source, str(place), str(output), *OPTIONS]
    for kills in range(100):
        before = len(list(output.glob("shard-*.tar")))
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(output.glob("shard-*.tar"))) == before:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            return kills
    raise AssertionError("no end after 100 kills")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_few_photographs_are_the_same_from_every_source(tmp_path: Path) -> None:
    from data_pipeline.make_shards import __main__ as make_shards

    forms = write_forms(tmp_path / "in", photographs(60))
    digests = set()
    for source, place in forms.items():
        assert make_shards.main([source, str(place), str(tmp_path / source), *OPTIONS, "--size", "32"]) == 0
        digests.add(digest(tmp_path / source))
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_photographs(tmp_path: Path) -> None:
    forms = write_forms(tmp_path / "in", photographs(2000))
    runs, kills, same = {}, 0, True
    for source, place in forms.items():
        runs[source] = measured(source, place, tmp_path / source)
        kills += kill_and_resume(source, place, tmp_path / f"{source}-killed")
        same = same and files(tmp_path / source) == files(tmp_path / f"{source}-killed")
    digests = {run["digest"] for run in runs.values()}
    memory = {source: round(int(str(run["memory"])) / 1e6) for source, run in runs.items()}
    passed = len(digests) == 1 and same and kills >= 4 and max(memory.values()) < 500
    print(
        f"PROOF data-sources: {'PASS' if passed else 'FAIL'} 2000 photographs, {len(forms)} sources, {len(digests)} digests "
        f"of images and labels, {kills} kills, {'the same' if same else 'DIFFERENT'} bytes, peak memory in MB {memory}"
    )
    assert passed
