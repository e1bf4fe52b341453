"""Settings: every mistake is one sentence with the setting, where it stands, and the cure; status 2, nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config import as_yaml, help_text, load_config
from trainer.foundation.errors import SettingError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.iteratoins", "5"], "run.iteratoins: unknown setting (command line); did you mean run.iterations?"),
        (["--optimizer.generator.lr", "1e-4"], "did you mean optimizer.generator.learning_rate?"),
        (["--learning_rate", "1"], "did you mean optimizer.generator.learning_rate?"),
        (["--batch.replicas", "0"], "batch.replicas: is 0 (command line); input should be greater than or equal to 1"),
        (["--run.seed", "red"], "run.seed: is 'red' (command line)"),
        (["--foo.bar", "1"], "foo: unknown setting (command line); the experiment has batch, checkpoint"),
        (["--run", "3"], "run: is 3 (command line); it is a section with settings of its own"),
        (
            ["--discriminator.conditioning.name", "proj"],
            "discriminator.conditioning.name: is 'proj' (command line); choose one of 'none', 'projection'",
        ),
        (["--run.iterations", "2000000"], "schedule.stages: the last stage ends at 1000000, before run.iterations"),
        (["--run.evaluate_every", "5"], "evaluation.classifier: is not set, but run.evaluate_every asks"),
        (["--run.seed"], "run.seed: has no value on the command line; write --run.seed VALUE"),
        (["seven"], "seven: unexpected word on the command line"),
        (["--run.seed.x", "1"], "run.seed.x: run.seed is a value, not a section (on the command line)"),
        (
            ["--schedule.stages", "[{until: 9}, {until: 4}]"],
            "schedule.stages: a stage until 4 follows one until 9; list the stages in ascending order",
        ),
    ],
)
def test_a_mistake_on_the_command_line(tiny: Callable[..., Path], words: list[str], message: str) -> None:
    with pytest.raises(SettingError) as raised:
        load_config(str(tiny()), words)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.exit_status == 2


def test_a_mistake_in_the_file_names_its_line(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    path = tiny(ema={"decya": 0.5})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "decya" in text)
    with pytest.raises(SettingError, match=f"ema.decya: unknown setting .*, line {line}.*did you mean ema.decay"):
        load_config(str(path))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("run:\n  seed: 1\n  seed: 2\n")
    with pytest.raises(SettingError, match=r"run\.seed: stands twice in .* line 3"):
        load_config(str(path))


def test_a_number_that_yaml_takes_for_a_word_is_a_number(tiny: Callable[..., Path]) -> None:
    config = load_config(str(tiny()), ["--optimizer.generator.learning_rate", "1e-4"])
    assert config.optimizer.generator.learning_rate == 1e-4


def test_the_printed_configuration_is_the_configuration(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(str(tiny()), ["--ema.decay=0.25"])
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(config))
    assert load_config(str(again)) == config
    assert config.ema.decay == 0.25


def test_help_knows_every_setting() -> None:
    text = help_text()
    for name in (
        "run.dir",
        "run.checkpoint_every",
        "data.shuffle_window",
        "batch.generated_per_replica",
        "ema.decay",
        "generator.channels",
        "discriminator.conditioning.dimension",
        "objective.loss",
        "optimizer.generator.beta1",
    ):
        assert f"--{name} (" in text


def test_a_wrong_setting_exits_with_2_and_writes_nothing(
    tiny: Callable[..., Path], tmp_path: Path, command: Callable[..., object]
) -> None:
    path = tiny()
    done = command(path, "--run.iteratoins", 5)
    assert (done.returncode, done.stdout) == (2, "")  # type: ignore[attr-defined]
    assert done.stderr.startswith("error: run.iteratoins: unknown setting")  # type: ignore[attr-defined]
    assert not (tmp_path / "run").exists()
