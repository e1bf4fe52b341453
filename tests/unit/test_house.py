"""The plan of the house, held by machine: who may import whom, who knows a method's name, how long a file may be."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.import_graph import PACKAGES, circles, floors, read_plan, upward

TRAINER = "imports run one way, through the rooms of the trainer"
# What is planted: (file, line of code, the contract that it breaks, what the report names)
PLANTED = {
    "upwards": (
        "trainer/foundation/__init__.py",
        "import trainer.training",
        TRAINER,
        "trainer.foundation -> trainer.training",
    ),
    "deep": (
        "trainer/foundation/errors.py",
        "import trainer.training.loop",
        TRAINER,
        "trainer.foundation.errors -> trainer.training.loop",
    ),
    "sibling": (
        "trainer/models/__init__.py",
        "import trainer.checkpoint",
        TRAINER,
        "trainer.models -> trainer.checkpoint",
    ),
    "homeless": ("trainer/newcomer.py", "", TRAINER, "trainer.newcomer"),
    "trainer in the data": (
        "data_pipeline/errors.py",
        "import trainer.foundation.errors",
        "data_pipeline never imports trainer",
        "data_pipeline.errors -> trainer.foundation.errors",
    ),
    "the data's own rooms": (
        "data_pipeline/storage/__init__.py",
        "import data_pipeline.reading",
        "imports run one way, through the rooms of the data pipeline",
        "data_pipeline.storage -> data_pipeline.reading",
    ),
    "a network": (
        "trainer/training/__init__.py",
        "import trainer.models.resnet",
        "nothing but models, methods and official imports a concrete network",
        "trainer.training -> trainer.models.resnet",
    ),
    "a method": (
        "trainer/metrics/__init__.py",
        "import trainer.methods.adversarial",
        "training, metrics, trained and costs know of methods only the protocol and the terms' settings",
        "trainer.metrics -> trainer.methods.adversarial",
    ),
}


def check_imports(checkout: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` on a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "240"}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and their contract."""
    folder = tmp_path_factory.mktemp("house")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_import_contract_is_kept(copy: Path) -> None:
    done = check_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("planted", PLANTED)
def test_a_forbidden_import_breaks_the_contract(copy: Path, planted: str) -> None:
    name, code, contract, named = PLANTED[planted]
    path = copy / name
    before = path.read_text() if path.exists() else None
    try:
        path.write_text(f"{before or ''}\n{code}\n")
        done = check_imports(copy)
    finally:
        path.write_text(before) if before is not None else path.unlink()
    assert done.returncode == 1, done.stdout
    assert f"{contract} BROKEN" in done.stdout, done.stdout
    assert named in done.stdout, done.stdout


# Who may name a method: the rooms that hold methods, networks, and the official code's names for them.
KNOWING = ("trainer/methods/", "trainer/models/", "trainer/official/")
EVERYDAY = {"none", "gradient"}
"""Names of settings that are everyday words as well, so that they tell nothing."""
OFFENDERS = {"trainer/convert.py": ({"adversarial"}, "the official code has this game alone")}
"""Files elsewhere that name one today, which ones, and why. To be shortened, never to grow."""


def setting_names() -> set[str]:
    """`name: Literal["..."]` of every settings class of trainer/methods and trainer/models, and the losses."""
    from trainer.methods.terms.losses import LOSSES

    found = set(LOSSES)
    for path in [*(ROOT / "trainer/methods").rglob("*.py"), *(ROOT / "trainer/models").rglob("*.py")]:
        if path.name == "schedule.py":  # a learning-rate law is no method
            continue
        found |= set(re.findall(r'^    name: Literal\["(\w+)"\]', path.read_text(), re.M))
    return found - EVERYDAY


def words_of(identifier: str) -> set[str]:
    """The words of an identifier, and neighbours joined: ResNetGenerator has `res`, `net`, `resnet`, `generator`, ..."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", identifier)]
    pieces = [words[i:j] for i in range(len(words)) for j in range(i + 1, i + 4)]
    return {joint.join(piece) for piece in pieces for joint in ("", "_")} | {identifier.lower()}


def named_in(code: str, names: set[str]) -> set[str]:
    """Which of `names` are a word of an identifier or of a string. Docstrings and comments may say what they like."""
    found: set[str] = set()
    told = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr):
            told.add(node.value)
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                found |= {name for part in text.split(".") for name in words_of(part) & names}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in told:
            found |= set(re.findall(r"\w+", node.value)) & names
    return found


def sources() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text()


def test_nobody_else_knows_a_methods_name() -> None:
    names = setting_names()
    assert {"projection", "concat", "acgan", "adversarial", "resnet", "dcgan", "hinge"} <= names
    found = {path: named_in(code, names) for path, code in sources() if not path.startswith(KNOWING)}
    found = {path: known for path, known in found.items() if known}
    allowed = {path: known for path, (known, _) in OFFENDERS.items()}
    new = {path: known - allowed.get(path, set()) for path, known in found.items() if known - allowed.get(path, set())}
    assert not new, f"only {', '.join(KNOWING)} may name a method, a network or a loss; ask the protocol instead: {new}"
    gone = {path: known - found.get(path, set()) for path, known in allowed.items() if known - found.get(path, set())}
    assert not gone, f"mended, so take it out of OFFENDERS: {gone}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from trainer.models.resnet import x", {"resnet"}),
        ("isinstance(config, ResNetGeneratorConfig)", {"resnet"}),
        ("if config.conditioning.name == 'acgan': pass", {"acgan"}),
        ("raise ValueError('set it to acgan')", {"acgan"}),
        ("def concat(): pass", {"concat"}),
        ("f(hinge=1)", {"hinge"}),
        ("numpy.concatenate(x)", set()),
        ("'''a projection'''", set()),
        ("x = 1  # hinge", set()),
    ],
)
def test_what_naming_is(code: str, found: set[str]) -> None:
    assert named_in(code, {"resnet", "acgan", "concat", "hinge", "projection"}) == found


def test_no_file_is_long() -> None:
    long = {path: count for path, code in sources() if (count := len(code.splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"


def test_every_logger_is_in_the_projects_tree() -> None:
    """Else its lines reach neither the run's log nor the console (trainer/foundation/log.py)."""
    for path, code in sources():
        for name in re.findall(r"getLogger\((.*?)\)", code):
            assert re.fullmatch(r'"(menagerie(\.\w+)?|DeepSpeed)"', name), f"{path}: getLogger({name})"


def test_nothing_changes_the_way_to_imports() -> None:
    """Tests, benchmarks and studies are packages: `from tests.support import ...`, `python -m benchmarks.bench_...`."""
    allowed = {"benchmarks/bench_train.py": "a peer that is installed in a folder of its own"}
    for folder in ("tests", "benchmarks", "studies"):
        for path in (ROOT / folder).rglob("*.py"):
            changes = re.findall(r"^\s*sys\.path\.\w+\(|^\s*sys\.path\[", path.read_text(), re.M)
            assert not changes or str(path.relative_to(ROOT)) in allowed, f"{path} changes sys.path"


def test_the_figures_of_a_plan(tmp_path: Path) -> None:
    """Two floors and a circle of three that two arrows down and two up hold together."""
    code = {
        "trainer/top.py": "import trainer.a\nfrom trainer import b",
        "trainer/a/__init__.py": "",
        "trainer/a/deep.py": "from .. import b\nfrom trainer.c import thing",
        "trainer/b.py": "import trainer.c\nif TYPE_CHECKING:\n    import trainer.top",
        "trainer/c.py": "def f():\n    from trainer.a.deep import x\n    import trainer.b",
        "data_pipeline/d.py": "import numpy, data_pipeline.e",
        "data_pipeline/e.py": "",
    }
    for name, text in code.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arrows = read_plan(tmp_path).arrows
    assert arrows == {
        "trainer/top": {"trainer/a", "trainer/b"},
        "trainer/a": {"trainer/b", "trainer/c"},
        "trainer/b": {"trainer/c"},
        "trainer/c": {"trainer/a", "trainer/b"},
        "data_pipeline/d": {"data_pipeline/e"},
        "data_pipeline/e": set(),
    }
    (circle,) = circles(arrows)
    assert circle == ["trainer/a", "trainer/b", "trainer/c"]
    assert upward(circle, arrows) == 2
    assert floors(arrows)["trainer/top"] == 2
    assert floors(arrows)["data_pipeline/e"] == 1
