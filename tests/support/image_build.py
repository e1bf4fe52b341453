"""Building the project's Dockerfile without an engine and without an image registry: buildah, on a plain Debian base.

Needs root and Debian's packages buildah and mmdebstrap. The build reaches Debian's mirror and the Python package index as
this machine does: its pip settings, and the files and folders that they name, are mounted into it.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.support.checkout import ROOT

BASE = "localhost/menagerie-base:12"
IMAGE = "localhost/menagerie:proof"


def why_not() -> str | None:
    """Why no image can be built here, None if it can."""
    if os.geteuid() != 0:
        return "building an image without an engine needs root"
    missing = [program for program in ("buildah", "mmdebstrap") if shutil.which(program) is None]
    return f"{', '.join(missing)} not found; `make proofs` installs them on Debian" if missing else None


class Builder:
    """Storage of its own in `folder`; nothing of it is left on the machine but the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def buildah(self, *words: str | Path, check: bool = True) -> str:
        """Run buildah; its output."""
        storage = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        done = subprocess.run(
            ["buildah", *storage, *map(str, words)],
            # vfs copies whole layers, and works on every file system and inside containers
            env={
                **os.environ,
                "STORAGE_DRIVER": os.environ.get("STORAGE_DRIVER", "vfs"),
                "BUILDAH_ISOLATION": "chroot",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def make_base(self, cache: Path) -> None:
        """A minimal Debian 12 as BASE; `cache`: the tar it is made of, which is kept."""
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            part = cache.with_suffix(".part.tar")
            subprocess.run(
                ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(part)],
                check=True,
                capture_output=True,
            )
            part.rename(cache)
        container = self.buildah("from", "scratch").split()[-1]
        self.buildah("add", "--quiet", container, cache, "/")
        self.buildah("commit", "--quiet", "--rm", container, BASE)

    def build(self, *arguments: str) -> str:
        """Build the Dockerfile; the log."""
        return self.buildah(
            *("bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers=false"),
            *("--signature-policy", str(self.folder / "policy.json"), "--build-arg", f"BASE={BASE}"),
            *self._packages(),
            *arguments,
            *("-t", IMAGE, str(ROOT)),
        )

    def settings(self) -> dict[str, object]:
        """The image's configuration: User, Entrypoint, Cmd, Labels, Env, ..."""
        found: dict[str, object] = json.loads(self.buildah("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
        return found

    def run(self, command: list[str], mounts: dict[Path, str], environment: dict[str, str]) -> str:
        """Run a command in a fresh container, as the image's own user; `mounts`: folders of this machine, and where."""
        container = self.buildah("from", "--pull-never", IMAGE).split()[-1]
        volumes = [f"--volume={source}:{target}" for source, target in mounts.items()]
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        try:
            return self.buildah("run", "--isolation", "chroot", *volumes, *variables, container, "--", *command)
        finally:
            self.buildah("rm", container, check=False)

    def _packages(self) -> list[str]:
        """Mounts that let pip in the build find packages where pip on this machine does."""
        listed = subprocess.run(["python3", "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
        settings: dict[str, str] = {}
        for name, value in re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed, re.M):
            settings[name] = value.replace("\\n", "\n    ")
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "pip.conf").write_text(f"[global]\n{lines}")
        paths = {
            Path(path)
            for path in re.findall(r"(?:file://)?(/[^\s'\\]+)", lines.replace("https://", "").replace("http://", ""))
        }
        paths = {path.parent if path.name == "simple" else path for path in paths}  # an index and the files beside it
        mounts = [f"--volume={self.folder / 'pip.conf'}:/etc/pip.conf:ro"]
        return mounts + [f"--volume={path}:{path}:ro" for path in sorted(paths) if path.exists()]
