"""What is written is what is meant: words that YAML 1.1 makes numbers or truths of, and numbers that are none."""

from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import as_tree, as_yaml, load_config
from trainer.foundation.errors import SettingError

Tiny = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("run.seed", "010", 10),
        ("run.seed", "0x10", 16),
        ("run.seed", "1_000", 1000),
        ("run.iterations", "1e1", 10),
        ("run.dir", "2024", "2024"),
        ("run.dir", "007", "007"),
        ("run.dir", "12:30", "12:30"),
        ("run.dir", "2024-01-01", "2024-01-01"),
        ("run.dir", "no", "no"),
        ("run.dir", "runs/x #2", "runs/x #2"),
        ("data.classes", "[no, yes]", ("no", "yes")),
        ("data.classes", "[on, 010, 3]", ("on", "010", 3)),
        ("run.dry_run", "yes", True),
        ("run.dry_run", "off", False),
        ("run.dry_run", "True", True),
    ],
)
def test_a_value_means_what_it_looks_like(tiny: Tiny, tmp_path: Path, name: str, written: str, meant: object) -> None:
    config = load_config(str(tiny()), [f"--{name}", written])
    assert reduce(getattr, name.split("."), config) == meant
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(config))
    assert load_config(str(again)) == config
    if "#" not in written:  # in a file a comment is a comment
        tree, (section, last) = yaml.safe_load(tiny().read_text()), name.split(".")
        tree[section].pop(last, None)
        text = yaml.safe_dump(tree).replace(f"{section}:\n", f"{section}:\n  {last}: {written}\n", 1)
        again.write_text(text)
        assert reduce(getattr, name.split("."), load_config(str(again))) == meant


@pytest.mark.parametrize(
    ("name", "written", "told"),
    [
        ("run.iterations", "true", "run.iterations: is true (command line), which is neither a number nor a text"),
        ("ema.decay", "false", "ema.decay: is false"),
        ("run.dir", "true", "run.dir: is true"),
        ("data.classes", "[1, true]", "data.classes: is true"),
        ("run.seed", "1:30", "run.seed: is '1:30'"),
        ("optimizer.generator.learning_rate", "yes", "learning_rate: is 'yes'"),
        ("optimizer.generator.learning_rate", ".inf", "learning_rate: is inf (command line); give a finite number"),
        ("optimizer.generator.learning_rate", "nan", "learning_rate: is 'nan'"),
        ("checkpoint.retry_minutes", ".inf", "checkpoint.retry_minutes: is inf"),
        ("checkpoint.stop_after_hours", "inf", "checkpoint.stop_after_hours: is inf"),
        ("run.seed", "1" + 30 * "0", "give a number up to"),
        ("run.seed", "-1", "run.seed: is -1"),
        ("run.dir", "''", "run.dir: is '' (command line); give a text that is not empty"),
        (
            "run.dir",
            "2.50",
            "run.dir: is read as the number 2.5 (command line), but a text is wanted; put it in quotes",
        ),
        ("data.shards", "'  '", "data.shards: is '  '"),
        ("run.seed", "!!int abc", "run.seed: is '!!int abc'"),
        ("run.seed", "&a [*a]", "run.seed: is [[...]]"),
    ],
)
def test_what_is_no_value_is_refused_as_it_was_written(tiny: Tiny, name: str, written: str, told: str) -> None:
    with pytest.raises(SettingError) as raised:
        load_config(str(tiny()), [f"--{name}", written])
    assert told in str(raised.value)


def test_a_file_of_another_encoding_is_named(tiny: Tiny) -> None:
    path = tiny()
    path.write_bytes(b"# \xfc\n" + path.read_bytes())
    with pytest.raises(SettingError, match=r"is not UTF-8 \(byte 2 is 0xfc\)"):
        load_config(str(path))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["no", "010", "1:30", "none", "resnet", "a.b:C", "~", "2024-01-01", "split 1 of 0"]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), part, max_size=3),
    max_leaves=5,
)


def names_of(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += [f"{prefix}{key}", *(names_of(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    return found


@pytest.mark.timeout(600)
def test_no_tree_of_settings_makes_a_traceback(tiny: Tiny, tmp_path: Path) -> None:
    base = as_tree(load_config(str(tiny())))
    names, path = names_of(base), tmp_path / "random.yaml"

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    def try_one(changes: dict[str, Any]) -> None:
        tree = yaml.safe_load(yaml.safe_dump(base))
        for name, value in changes.items():
            *sections, last = name.split(".")
            node = tree
            for section in sections:
                node = node.get(section) if isinstance(node, dict) else None
            if isinstance(node, dict):
                node[last] = value
        path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="replace")
        with suppress(SettingError):
            load_config(str(path))

    try_one()
