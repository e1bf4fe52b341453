"""From a YAML file and `--section.key value` overrides to one validated configuration, or one clear error.

Every value keeps where it came from, so that an error can say it: the file and line, or the command line.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from trainer.foundation import plain_yaml
from trainer.foundation.choices import FOREIGN, choice_of, choices_of, tag_of
from trainer.foundation.errors import SettingError
from trainer.foundation.values import truths, unusable

Tree = dict[str, Any]
Origins = dict[str, str]
T = TypeVar("T")


def read_yaml(path: str) -> tuple[Tree, Origins]:
    """The file's settings, and the line of each. Raises `SettingError` if it cannot be read or repeats a key."""
    try:
        tree, root = plain_yaml.read(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(
            f"CONFIG: cannot read {path} ({error.strerror}); give the path of an experiment's YAML"
        ) from None
    except UnicodeDecodeError as error:
        raise SettingError(
            f"CONFIG: {path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise SettingError(f"CONFIG: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or root is None:
        raise SettingError(f"CONFIG: {path} holds no settings; it must be a mapping of sections such as `run:`")
    origins: Origins = {}
    _note_lines(root, "", path, origins)
    return tree, origins


def _note_lines(node: yaml.Node, prefix: str, path: str, origins: Origins) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        name = f"{prefix}{key_node.value}"
        if name in origins:
            raise SettingError(
                f"{name}: stands twice in {path} (again at line {key_node.start_mark.line + 1}); remove one"
            )
        origins[name] = f"{path}, line {key_node.start_mark.line + 1}"
        _note_lines(value_node, f"{name}.", path, origins)


def apply_overrides(tree: Tree, origins: Origins, arguments: Sequence[str]) -> None:
    """Put `--section.key value` (or `--section.key=value`; values in YAML) into `tree`; a later one wins."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise SettingError(
                f"{word}: unexpected word on the command line; settings are given as --section.key value"
            )
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise SettingError(f"{name}: has no value on the command line; write --{name} VALUE")
            text = rest.pop(0)
        value = plain_yaml.read_word(text)
        *sections, last = name.split(".")
        branch = tree
        for depth, section in enumerate(sections):
            child = branch.setdefault(section, {})
            if not isinstance(child, dict):
                raise SettingError(
                    f"{name}: {'.'.join(sections[: depth + 1])} is a value, not a section (on the command line)"
                )
            branch = child
        branch[last] = value
        origins[name] = "command line"


def validate(kind: type[T], tree: Tree, origins: Origins) -> T:
    """Build the settings dataclass `kind` from `tree`; raises one `SettingError` that lists every wrong setting."""
    kinds = {setting.name: setting.kind for setting in describe(kind, tree)}
    told = [
        f"{name}: is {str(value).lower()} ({_origin(name, origins)}), which is neither a number nor a text; give one, and "
        "put a text that says so in quotes"
        for name, value in truths(tree, kinds)
    ]
    if told:
        raise SettingError("\n".join(dict.fromkeys(told)))
    try:
        made = TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        problems = [dict(problem) for problem in error.errors(include_url=False)]
        if sum(_take_for_text(tree, problem) for problem in problems):
            return validate(kind, tree, origins)
        raise SettingError("\n".join(dict.fromkeys(_sentence(kind, tree, origins, p) for p in problems))) from None
    except (OverflowError, RecursionError, TypeError) as error:
        raise SettingError(f"CONFIG: cannot be understood ({type(error).__name__}: {error})") from None
    told = [f"{name}: is {value!r} ({_origin(name, origins)}); {cure}" for name, value, cure in unusable(made)]
    if told:
        raise SettingError("\n".join(dict.fromkeys(told)))
    return made


def _take_for_text(tree: Tree, problem: Tree) -> bool:
    """Where a text is wanted, a plain number is one, as in a folder's name; whether that was the problem."""
    if problem["type"] != "string_type" or type(problem["input"]) is not int:
        return False
    node: Any = tree
    for step in problem["loc"]:
        try:
            below = node[step]
        except (KeyError, IndexError, TypeError):
            continue  # a step of pydantic's own
        if type(below) is int:
            node[step] = str(below)
            return True
        node = below
    return False


def _sentence(kind: type, tree: Tree, origins: Origins, problem: Tree) -> str:
    name = ".".join(_path(tree, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and ":" in message and " " not in message.split(":")[0]:
        return str(message)  # a cross-check of ours: it begins with the setting itself
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        choices = problem["ctx"].get("expected_tags", "")
        found = f"is {problem['ctx']['tag']!r}" if "tag" in problem["ctx"] else "is missing"
        return (
            f"{name}.name: {found} ({_origin(f'{name}.name', origins)}); choose one of {choices or 'the known names'}"
        )
    if problem["type"] == FOREIGN:
        return f"{name}.name: is {problem['input']['name']!r} ({_origin(f'{name}.name', origins)}); {message}"
    where = f"({_origin(name, origins)})"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name}: unknown setting {where}; {_advice(name, [s.name for s in describe(kind, tree)])}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{name}: is missing {where}; give it a value"
    if problem["type"] == "dataclass_type":
        return f"{name}: is {problem['input']!r} {where}; it is a section with settings of its own"
    value = problem["input"]
    if problem["type"] == "string_type" and isinstance(value, int | float):
        return f"{name}: is read as the number {value!r} {where}, but a text is wanted; put it in quotes"
    return f"{name}: is {value!r} {where}; {message[0].lower()}{message[1:]}"


def _advice(name: str, known: Sequence[str]) -> str:
    """The closest valid name, in the same section if there is such a section, or what there is."""
    section, _, last = name.rpartition(".")
    siblings = sorted(
        {k[len(section) :].lstrip(".").split(".")[0] for k in known if k.startswith(f"{section}." if section else "")}
    )
    if not siblings:  # the section itself is unknown
        return _advice(section, known)
    close = difflib.get_close_matches(last, siblings, 1, 0.5)
    close = close or [s for s in siblings if "".join(word[0] for word in s.split("_")) == last]
    elsewhere = [k for k in known if k.rpartition(".")[2] == last]
    prefix = f"{section}." if section else ""
    if close or elsewhere:
        return f"did you mean {prefix + close[0] if close else elsewhere[0]}?"
    return f"{section or 'the experiment'} has {', '.join(siblings)}"


def _path(tree: Tree, location: Sequence[str | int]) -> Iterator[str]:
    """The dotted name of pydantic's location: the tag that it inserts for a union member is left out."""
    node: Any = tree
    for step in location:
        if isinstance(node, dict) and step not in node and node.get("name") == step:
            continue
        yield str(step)
        if isinstance(node, dict):
            node = node.get(step)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
        else:
            node = None


def _origin(name: str, origins: Origins) -> str:
    below = next((where for other, where in origins.items() if other.startswith(f"{name}.")), None)
    while name and name not in origins:
        name = name.rpartition(".")[0]
    return origins.get(name, below or "not set")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of `--help`."""

    name: str
    kind: str
    default: str
    help: str


def describe(kind: type, tree: Tree | None = None, prefix: str = "") -> Iterator[Setting]:
    """Every setting of the dataclass `kind`; of a union, the member that `tree` names (else all of them)."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = getattr(kind, "__pydantic_fields__", {})
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        bare = _bare(hints[field.name])
        below = (tree or {}).get(field.name)
        below = below if isinstance(below, dict) else None
        members = _settings_classes(hints[field.name], below)
        for member in members:
            yield from describe(member, below, f"{name}.")
        if members:
            continue
        if typing.get_origin(bare) is dict:  # sections by names that the user gives
            for key, part in (below or {}).items():
                for member in _settings_classes(typing.get_args(bare)[1], part) if isinstance(part, dict) else ():
                    yield from describe(member, part, f"{name}.{key}.")
        info = fields.get(field.name)
        default = "required"
        if info is not None and not info.is_required():
            default = str(info.get_default(call_default_factory=True))
        kind_name = " | ".join(choices_of(hints[field.name])) or _type_name(bare)
        yield Setting(name, kind_name, default, " ".join(((info and info.description) or "").split()))


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _members(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [_bare(member) for member in typing.get_args(hint)]
    return [hint]


def _settings_classes(hint: Any, below: Tree | None) -> list[Any]:
    """The settings classes that a value of this type can have: the one that the section `below` names, else all."""
    if typing.get_origin(hint) is typing.Annotated:
        choice = choice_of(hint)
        member = choice.member(_bare(hint), below.get("name")) if choice is not None and below is not None else None
        return _settings_classes(_bare(hint), below) if member is None else [member]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        found = [kind for part in typing.get_args(hint) for kind in _settings_classes(part, below)]
        return [kind for kind in found if below and tag_of(kind) == below.get("name")] or found
    return [hint] if dataclasses.is_dataclass(hint) else []


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    names = [getattr(member, "__name__", str(member)) for member in _members(hint)]
    return " | ".join("none" if name == "NoneType" else name for name in names)
