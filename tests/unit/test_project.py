"""Promises of the project as a whole: configurations, names, commands."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_dry_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the networks built on the meta device, in this process; the command itself is tried below."""
    from trainer.config import load_config
    from trainer.costs.dry_run import describe
    from trainer.processes.launch import read_launch

    text = describe(load_config(str(path), ["--run.dry_run", "true"]), read_launch())
    assert "# parameters" in text
    assert text.endswith("dry run: nothing was read or written")


def test_every_configuration_says_paper_and_command() -> None:
    for path in CONFIGS:
        header = path.read_text().split("\n\n")[0]
        assert path.name in header, f"{path.name}: the header does not give the command"
        assert "Paper" in header, f"{path.name}: the header does not name the paper"


def test_the_dry_run_command(tmp_path: Path) -> None:
    command = [sys.executable, "trainer/main.py", "configs/imagenet128_projection.yaml", "--run.dry_run", "true"]
    done = subprocess.run(
        [*command, "--run.dir", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "generator: 41,996,931",
        "discriminator: 30,041,857",
        "a turn of the discriminator: 4 x 16 = 64 read from data, 4 x 16 = 64 generated samples",
        "a turn of the generator: 4 x 32 = 128 generated samples",
        "one iteration: turns in this order: 1 of the generator, 5 of the discriminator; 320 real samples",
        "iterations 400,000 to 450,000: learning rate 0.0002, linear to 0 at 450,000",
    ):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_no_module_bears_a_known_name() -> None:
    """`accelerate launch trainer/main.py` puts trainer/ first on sys.path, where it could hide other modules."""
    known = set(sys.stdlib_module_names) | {name.lower() for name in importlib.metadata.packages_distributions()}
    known -= {"trainer", "data_pipeline"}
    for package in ("trainer", "data_pipeline"):
        names = {path.stem for path in (ROOT / package).iterdir() if not path.name.startswith("__")}
        assert not names & known, f"{package}: rename {sorted(names & known)}"


def test_the_readmes_commands_are_the_makefiles() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = set(re.findall(r"^ *make ([a-z-]+)\b(?!/)", readme, re.M)) | set(re.findall(r"`make ([a-z-]+)", readme))
    assert {"demo", "test"} <= used
    assert used <= targets, f"README names targets that the Makefile lacks: {sorted(used - targets)}"
    for module in set(re.findall(r"python -m ((?:trainer|data_pipeline)\.[a-z_.]+)", readme)):
        places = [ROOT / (module.replace(".", "/") + end) for end in (".py", "/__main__.py")]
        assert any(place.exists() for place in places), f"README: there is no module {module}"
    for path in set(re.findall(r"(?:configs|cluster)/[\w/.-]+\.(?:yaml|sh|sbatch)", readme)):
        assert (ROOT / path).exists(), f"README: there is no {path}"


def test_every_target_of_the_makefile_can_be_made() -> None:
    """Nothing is run; a prerequisite that no rule makes ends this with an error."""
    for target in re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"make {target}: {done.stderr}"


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
