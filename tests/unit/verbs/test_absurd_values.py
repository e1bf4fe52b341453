"""No verb answers what a user gives with a traceback. From the verbs' own option lists: a new option is covered."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError
from tests.support.checkout import ROOT
from trainer.foundation.errors import TrainerError

RUN, FILE, OUT = "{run}", "{file}", "{out}"
VERBS = {  # words with which each does something small
    "trainer.sample": [RUN, "--count", "1", "--out", OUT],
    "trainer.export": [RUN, OUT],
    "trainer.evaluate": [RUN, "--measures", "ms_ssim", "--pairs", "2"],
    "trainer.curves": [RUN, OUT],
    "trainer.status": ["{yaml}"],
    "trainer.plan": ["{yaml}"],
    "trainer.convert": [FILE, OUT],
    "trainer.train_classifier": ["{shards}", "{shards}", "--epochs", "1", "--out", f"{OUT}/c"],
    "trainer.report.__main__": [RUN, "--out", f"{OUT}.html"],
}
NO_NUMBERS = ("", "nan", "inf", "-1", "-1e400", "1e400", "one", "3..", "99999999999999999999999", "1:30")
NO_TEXTS = ("", " ", "foo://x", "gs://bucket/x", "{file}/below", "x" * 300, "[", "猫")


class Captured(Exception):
    """Carries a verb's parser out of its main."""


def parser_of(verb: str) -> argparse.ArgumentParser:
    main = importlib.import_module(verb).main
    found: list[argparse.ArgumentParser] = []
    with pytest.MonkeyPatch.context() as patch:

        def capture(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
            found.append(self)
            raise Captured

        patch.setattr(argparse.ArgumentParser, "parse_args", capture)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", capture)
        with pytest.raises(Captured):
            main(["x"])
    return found[0]


def options() -> Iterator[Any]:
    for verb in VERBS:
        for action in parser_of(verb)._actions:
            if action.option_strings and action.nargs != 0 and "--help" not in action.option_strings:
                yield pytest.param(verb, action, id=f"{verb} {action.option_strings[-1]}")


@pytest.fixture
def words(run: Path, tiny_shards: Path, tmp_path: Path, tiny: Any) -> dict[str, str]:
    (tmp_path / "file").write_text("words")
    where = {"run": run, "file": tmp_path / "file", "out": tmp_path / "out", "shards": tiny_shards, "yaml": tiny()}
    return {name: str(path) for name, path in where.items()}


@pytest.mark.parametrize(("verb", "action"), list(options()))
def test_an_absurd_value_is_a_sentence(
    verb: str, action: argparse.Action, words: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(words["file"]).parent)
    given = [word.format(**words) for word in VERBS[verb]]
    is_text = action.type in (None, str, Path) and action.choices is None
    for value in NO_TEXTS if is_text else NO_NUMBERS:
        option = f"{action.option_strings[-1]}={value.format(**words) if is_text else value}"
        refused = (SystemExit, TrainerError, DataError, OSError)  # run_command makes a sentence of each
        try:
            status = importlib.import_module(verb).main([option, *given])
        except refused as error:
            status = error.code if isinstance(error, SystemExit) else 2
            assert status in (1, 2, 3), option
            continue
        assert is_text, f"{verb} took {option}"
        assert status in (0, 1, 2, 3)


def test_the_rest_is_a_sentence_too(words: dict[str, str]) -> None:
    """What comes out of the main function of a verb as an error of the system."""
    command = [sys.executable, "-m", "trainer.curves", words["run"], f"{words['file']}/below"]
    (Path(words["run"]) / "tensorboard").mkdir(exist_ok=True)
    (Path(words["run"]) / "tensorboard" / "events.out.tfevents.1").write_text("x")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
