"""Model hubs, here one on the loopback: redirects, 429 with Retry-After, gated data sets."""

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from data_pipeline.manifest.format import load_manifest
from data_pipeline.storage.retrying import retry_after
from tests.support.checkout import ROOT, environment
from tests.support.loopback_hub import hub
from tests.support.lying_data import contents, jpeg, pack, run, said, usual


def archive(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        for k in range(8):
            file.writestr(f"{'ab'[k % 2]}/{k}.jpg", jpeg(k))
        file.writestr("a/film.mp4", bytes(4 << 20))
    return path.read_bytes()


def test_a_zip_over_http_with_redirects_and_429(tmp_path: Path) -> None:
    data = archive(tmp_path / "x.zip")
    with hub({"x.zip": data}, refusals=2, retry_after="1") as server:
        assert run("zip", f"{server.url}/files/x.zip", tmp_path / "far", "--size", 16) == 0
        assert len(server.waits) == 2
        assert min(server.waits) >= 1  # as asked for; without Retry-After the first pause is 0.3 s at most
        assert server.served < len(data) / 10
    assert run("zip", tmp_path / "x.zip", tmp_path / "near", "--size", 16) == 0
    assert contents(tmp_path / "far") == contents(tmp_path / "near")


def test_what_is_gated_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hub({"x.zip": archive(tmp_path / "x.zip")}, gated=True) as server:
        assert run("zip", f"{server.url}/files/x.zip", tmp_path / "out") == 1
        assert len(server.seen) < 5
    assert "access was refused (401" in said(capsys)


def of_the_hub(url: str, output: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """SOURCE webdataset from hf://, in a process whose hub is here."""
    code = "import sys; from data_pipeline.make_shards.__main__ import main; sys.exit(main(sys.argv[1:]))"
    home = {"HF_HOME": str(output.parent / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    variables = {key: value for key, value in environment().items() if key not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    arguments = ["webdataset", "hf://datasets/lab/pictures/data", str(output), "--size", "16", "--jobs", "1"]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=variables | home | {"HF_ENDPOINT": url, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"} | more,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_tars_of_a_hub(tmp_path: Path) -> None:
    files = {f"data/{k}.tar": pack(tmp_path / "in" / f"{k}.tar", usual(4)).read_bytes() for k in range(2)}
    with hub(files, refusals=1, retry_after="0") as server:
        done = of_the_hub(server.url, tmp_path / "far")
        assert done.returncode == 0, done.stderr + str(server.seen)
        assert server.refusals == 0
    assert run("webdataset", tmp_path / "in", tmp_path / "near", "--size", 16) == 0
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
    assert load_manifest(str(tmp_path / "far")).samples == 8


def test_a_gated_data_set_of_a_hub(tmp_path: Path) -> None:
    files = {"data/0.tar": pack(tmp_path / "0.tar", usual(4)).read_bytes()}
    with hub(files, gated=True) as server:
        done = of_the_hub(server.url, tmp_path / "out")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert "HF_TOKEN" in done.stderr
        assert of_the_hub(server.url, tmp_path / "out", HF_TOKEN="hf_here").returncode == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7), ({}, 0), ({"Retry-After": "soon"}, 0), ({"Retry-After": "-3"}, 0)],
)
def test_retry_after(headers: dict[str, str], seconds: float) -> None:
    error = OSError("429")
    error.headers = headers  # type: ignore[attr-defined]
    assert retry_after(error) == seconds
    error = OSError("429")
    error.response = {"ResponseMetadata": {"HTTPHeaders": {k.lower(): v for k, v in headers.items()}}}  # type: ignore[attr-defined]
    assert retry_after(error) == seconds


def test_retry_after_a_date() -> None:
    error = OSError("429")
    error.headers = {"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))}  # type: ignore[attr-defined]
    assert 50 < retry_after(error) <= 60
