"""May a run resume with these settings? Changes of the science are refused unless named, others are only told."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from trainer.foundation.errors import SettingError

_ABSENT = object()


class Change(NamedTuple):
    """One setting that differs between the commit and now."""

    setting: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.setting}: {_show(self.before)} -> {_show(self.after)}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Every setting that differs between two nested dictionaries, by dotted name, in alphabetical order.

    Lists are compared whole. A section that only one side has is told setting by setting.
    """
    changes: list[Change] = []
    for key in sorted({*before, *after}):
        name = f"{prefix}{key}"
        old, new = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            sections = [side if isinstance(side, Mapping) else {} for side in (old, new)]
            below = differences(sections[0], sections[1], f"{name}.")
            plain = [side for side in (old, new) if side is not _ABSENT and not isinstance(side, Mapping)]
            changes += below if not plain else [Change(name, old, new)]
        elif _plain(old) != _plain(new):
            changes.append(Change(name, old, new))
    return changes


def check_settings(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    harmless: Collection[str],
    allowed: Collection[str] = (),
) -> list[Change]:
    """The changes since the commit, for the log; raises SettingError if one of them changes the science.

    `before`: the configuration in the commit's manifest; `after`: the one at hand. `harmless`: settings, or whole
    sections, that do not change what is computed (intervals of logging, caches, folders). `allowed`: those that the
    user names.
    """
    changes = differences(before, after)
    refused = [change for change in changes if not _covered(change.setting, [*harmless, *allowed])]
    if refused:
        names = ", ".join(change.setting for change in refused)
        raise SettingError(
            f"{refused[0].setting}: the run's checkpoints were made with other settings "
            f"({'; '.join(map(str, refused))}); put them back, choose another run.dir, or name each one that is meant "
            f"in run.allow_changed: [{names}]."
        )
    return changes


def check_data(before: str | None, after: str, where: str, setting: str = "data.shards") -> None:
    """Raise SettingError if the commit was made with other shards. Fingerprints are those of the source's manifest."""
    if before is not None and before != after:
        raise SettingError(
            f"{setting}: {where} has the fingerprint {after[:12]}..., but the run's checkpoints were made with "
            f"{before[:12]}...; give the shards that the run began with, or choose another run.dir."
        )


def _covered(setting: str, names: Collection[str]) -> bool:
    return any(setting == name or setting.startswith(f"{name}.") for name in names)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    return "not set" if value is _ABSENT else repr(value)
