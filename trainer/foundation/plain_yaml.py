"""YAML whose unquoted words mean what they look like.

YAML 1.1, which PyYAML reads, takes no for false, 010 for 8, 1:30 for 90 and 2024-01-01 for a date. Here such words are
words, and a number is a decimal (or 0x...) number. A setting that wants something else says so.
"""

import re
from typing import Any

import yaml

_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"


class Spelled(int):
    """A whole number that was not written as it is printed: 450_000, 0x10."""


class Loader(yaml.SafeLoader):
    """As PyYAML's safe one, with fewer meanings."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


def _whole(loader: Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    value = int(text, 16 if "0x" in text.lower() else 10)
    return value if str(value) == node.value else Spelled(value)


for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", rf"(?:{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", "-+0123456789."),
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))
Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def read(text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML document, and where its parts stand. Raises yaml.YAMLError, and no other error."""
    try:
        return yaml.load(text, Loader), yaml.compose(text, Loader)
    except (ValueError, RecursionError, OverflowError, TypeError, AttributeError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


def read_word(text: str) -> Any:
    """A value of the command line: YAML, or the whole text where that would leave something out, as after a #."""
    try:
        value, node = read(text)
    except yaml.YAMLError:
        return text
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.value != text.strip():
        return text
    return value
