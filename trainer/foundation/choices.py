"""Settings that choose by name: one of several settings classes, or an entry of a table.

    PenaltyConfig = Annotated[NoPenaltyConfig | R1Config, Choice(default="none")]
    LossName = Annotated[str, OneOf(LOSSES)]

A settings class is a frozen pydantic dataclass that forbids unknown settings, has `name: Literal["..."] = "..."`, and
builds what it names. To add one: its file, and its name in the union. A class from another package needs no edit here:
`name: package.module:ClassName` imports it. Such a class needs no field `name`. To import is to run: load only settings
that you trust.
"""

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Collection, Mapping
from functools import cache, partial
from typing import Any

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

FOREIGN = "foreign_class"
"""The type of pydantic's error for a class that cannot be had; its message is the reason and the cure."""
Members = Mapping[str, type]


class Choice:
    """Makes `Annotated[A | B, Choice()]` a choice by `name`; `default` is the name where there is none."""

    def __init__(
        self, default: str | None = None, methods: Collection[str] = ("build",), *, names_alone: bool = False
    ) -> None:
        """`methods`: what a class from another package must have. `names_alone`: a name without a section is the member
        with its defaults; one without settings is written so."""
        self.default, self.methods, self.names_alone = default, methods, names_alone

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        members = _members(source)
        if self.default is not None and self.default not in members:
            raise TypeError(f"Choice: the default {self.default!r} is none of {', '.join(members)}")
        return core_schema.no_info_plain_validator_function(
            partial(self._validated, members),
            serialization=core_schema.plain_serializer_function_ser_schema(
                partial(_dumped, members, self.names_alone), info_arg=True
            ),
        )

    def member(self, source: Any, name: object) -> type | None:
        """The settings class that `name` names among those of the union `source`; None if there is none."""
        members = _members(source)
        found = members.get(str(self.default if name is None else name))
        if found is None and isinstance(name, str) and ":" in name:
            try:
                return load_class(name, self.methods)
            except PydanticCustomError:
                return None
        return found

    def _validated(self, members: Members, value: Any) -> Any:
        if self.names_alone and isinstance(value, str):
            if ":" not in value and value not in members:
                raise _not_in_table(value, members)
            value = {"name": value}
        if not isinstance(value, dict):
            kind: Any = type(value)
            if kind in members.values() or (_is_settings(kind) and not _missing(kind, self.methods)):
                return value
            raise PydanticKnownError("model_attributes_type")
        name = value.get("name", self.default)
        if name is None and "name" not in value:
            raise PydanticCustomError("union_tag_not_found", "is missing", {"expected_tags": _quoted(members)})
        if isinstance(name, str) and name in members:
            return _adapter(members[name]).validate_python(value)
        if not isinstance(name, str) or ":" not in name:
            context = {"discriminator": "'name'", "tag": str(name), "expected_tags": _quoted(members)}
            raise PydanticKnownError("union_tag_invalid", context)
        kind = load_class(name, self.methods)
        field = getattr(kind, "__pydantic_fields__", {}).get("name")
        wants_name = field is not None and field.is_required()
        made = _adapter(kind).validate_python({k: v for k, v in value.items() if wants_name or k != "name"})
        if kind not in members.values():
            object.__setattr__(made, "name", name)  # the settings are frozen for everybody else
        return made


class OneOf:
    """Makes `Annotated[str, OneOf(table)]` a name out of `table`, which may still grow."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validated)

    def _validated(self, value: Any) -> str:
        if isinstance(value, str) and value in self.table:
            return value
        raise _not_in_table(value, self.table)


def load_class(name: str, methods: Collection[str] = ()) -> type:
    """The settings class `package.module:ClassName`. Raises PydanticCustomError of the type `FOREIGN`."""
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise _foreign(
            f"the module {module_name} cannot be imported ({reason}); install its package, or put its folder on PYTHONPATH"
        ) from None
    kind = getattr(module, class_name, None)
    if kind is None:
        known = [key for key, value in vars(module).items() if _is_settings(value)]
        raise _foreign(f"{module_name} has no {class_name}; its settings classes are {', '.join(known) or 'none'}")
    if not _is_settings(kind):
        raise _foreign(
            f"{class_name} is no settings class; make it a pydantic dataclass with frozen=True and the configuration "
            'extra="forbid"'
        )
    for method in _missing(kind, methods):
        raise _foreign(f"{class_name} lacks the method {method}; add it")
    return typing.cast(type, kind)


def tag_of(kind: Any) -> str | None:
    """The name that chooses a settings class; None for a class without one."""
    field = getattr(kind, "__pydantic_fields__", {}).get("name")
    return field.default if field is not None and isinstance(field.default, str) else None


def choices_of(hint: Any) -> list[str]:
    """The names that a setting of this type hint can take if it is a `OneOf`, else none."""
    metadata = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    return [name for item in metadata if isinstance(item, OneOf) for name in item.table]


def choice_of(hint: Any) -> Choice | None:
    """The `Choice` of a type hint."""
    metadata = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    return next((item for item in metadata if isinstance(item, Choice)), None)


def _members(source: Any) -> Members:
    """The classes of a union, or the one class, by name. Raises TypeError for one without a name, or with another's."""
    members: dict[str, type] = {}
    for kind in typing.get_args(source) or (source,):
        tag = tag_of(kind)
        if tag is None or tag in members:
            raise TypeError(f"Choice: {kind} needs a default of its field `name`, which no other member has")
        members[tag] = kind
    return members


def _is_settings(kind: Any) -> bool:
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and is_pydantic_dataclass(kind)):
        return False
    return getattr(kind, "__pydantic_config__", {}).get("extra") == "forbid"


def _missing(kind: type, methods: Collection[str]) -> list[str]:
    return [method for method in methods if not callable(getattr(kind, method, None))]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _dumped(members: Members, names_alone: bool, value: Any, info: core_schema.SerializationInfo) -> Any:
    kind: Any = type(value)
    mode: Any = info.mode
    if kind in members.values():
        plain = _adapter(kind).dump_python(value, mode=mode)
        return plain["name"] if names_alone and len(plain) == 1 else plain
    name = getattr(value, "name", None)
    if not isinstance(name, str) or ":" not in name:  # made in Python, not from a file
        name = f"{kind.__module__}:{kind.__qualname__}"
    return {"name": name, **_adapter(kind).dump_python(value, mode=mode, exclude={"name"})}


def _not_in_table(value: object, names: Collection[str]) -> PydanticCustomError:
    close = difflib.get_close_matches(str(value), names, 1)
    advice = f"Did you mean {close[0]!r}?" if close else f"Choose one of {_quoted(names)}"
    return PydanticCustomError("not_in_table", "{advice}", {"advice": advice})


def _quoted(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _foreign(reason: str) -> PydanticCustomError:
    return PydanticCustomError(FOREIGN, "{reason}", {"reason": reason})
