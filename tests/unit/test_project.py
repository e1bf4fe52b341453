"""Promises of the project as a whole: configurations, names, commands."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.pages import wrong_commands, wrong_links

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


def test_the_pages_commands_and_paths_are_there() -> None:
    assert wrong_commands(ROOT) == []
    readme = (ROOT / "README.md").read_text()
    assert {"make demo", "make test"} <= set(re.findall(r"make \w+", readme))


def test_the_pages_links_lead_somewhere() -> None:
    assert wrong_links(ROOT) == []


def test_the_readme_is_short() -> None:
    if not (ROOT / "docs" / "training.md").exists():
        pytest.skip("the README has not been split yet")
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200, "what is more stands in docs/"


def test_wrong_links_and_commands_are_seen(tmp_path: Path) -> None:
    """The checks above, on pages with one mistake of every kind."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "trainer" / "report").mkdir(parents=True)
    (tmp_path / "trainer" / "report" / "__main__.py").touch()
    (tmp_path / "Makefile").write_text("demo: x\n")
    (tmp_path / "README.md").write_text(
        "# The `demo`, & more_of it\n[a](docs/page.md#one-1) [b](docs/none.md) [c](#the-demo--more_of-it) [d](#nowhere)\n"
        "`[e](in-code.md)` [f](https://example.org/x.md)\n"
        "```\n# no heading\n[g](in-a-block.md)\nmake demo\n```\n"
        "`make none` `python -m trainer.report` `configs/gone.yaml` `configs/NAME.yaml` `trainer/r*`\n"
        "`python -m trainer.none` `from trainer.pretrained import Generator`\n"
    )
    (tmp_path / "docs" / "page.md").write_text(
        "# One\n\n## One\n\n[back](../README.md#no-heading) [here](page.md#one)\n"
    )
    assert wrong_links(tmp_path) == [
        "README.md: there is no docs/none.md",
        "README.md: this page has no heading #nowhere",
        "docs/page.md: ../README.md has no heading #no-heading",
    ]
    assert wrong_commands(tmp_path) == [
        "README.md: the Makefile has no target none",
        "README.md: there is no module trainer.pretrained",
        "README.md: there is no module trainer.none",
        "README.md: there is no configs/gone.yaml",
        "README.md: there is no docs/none.md",
    ]


def test_every_target_of_the_makefile_can_be_made() -> None:
    """Nothing is run; a prerequisite that no rule makes ends this with an error."""
    for target in re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"make {target}: {done.stderr}"


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
