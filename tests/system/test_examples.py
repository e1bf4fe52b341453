"""The examples do what the docs say of them."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.checkout import ROOT
from trainer.config import load_config
from trainer.processes.launch import read_launch
from trainer.trained.pretrained import open_generator
from trainer.training.loop import train


def test_a_method_from_another_package_trains_and_is_sampled(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """examples/relativistic.py, as docs/extending.md walks through it."""
    path = tiny(objective={"name": "examples.relativistic:RelativisticConfig", "penalty": {"name": "r1", "gamma": 1.0}})
    assert train(load_config(str(path)), read_launch())
    assert open_generator(str(tmp_path / "run")).sample(["0", "1"], count=2).shape == (4, 1, 32, 32)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["discriminator/r1"] > 0 for record in records)


def test_the_notebook_has_no_outputs_and_its_code_is_python() -> None:
    cells = json.loads((ROOT / "examples/sample.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
    for source in code:
        compile("\n".join(line for line in source.splitlines() if not line.startswith(("%", "!"))), "cell", "exec")


def test_training_and_sampling_from_python(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """examples/train_and_sample.py with the tests' small experiment in place of the demo's."""
    code = (ROOT / "examples/train_and_sample.py").read_text()
    for asked, given in (
        ('"configs/fashion32_projection.yaml"', repr(str(tiny()))),
        ('"runs/example"', repr(str(tmp_path / "run"))),
        ('"exports/example"', repr(str(tmp_path / "export"))),
        ('"--run.iterations", "200"', '"--run.iterations", "2"'),
        ('["Trouser", "Ankle boot"]', '["0", "1"]'),
    ):
        assert asked in code
        code = code.replace(asked, given)
    exec(compile(code, "train_and_sample.py", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "run" / "example.png").exists()
