"""Are two lists of classes the same ones? They are compared by what they are called, never by their number."""

from collections.abc import Sequence

from data_pipeline.manifest.format import ClassInfo
from trainer.classifiers.build import is_wordnet_id
from trainer.foundation.errors import SettingError


def places_of(asked: Sequence[ClassInfo], known: Sequence[ClassInfo]) -> list[int | None]:
    """Where each of the classes `asked` stands among those `known`; None for one that is not there.

    By WordNet id where all have one, else by name, or by id where names repeat.
    """
    both = [*asked, *known]
    by_id = all(is_wordnet_id(entry.id) for entry in both)
    by_id = by_id or any(len({entry.name for entry in side}) < len(side) for side in (asked, known))
    keys = [entry.id if by_id else entry.name for entry in known]
    found = [entry.id if by_id else entry.name for entry in asked]
    return [keys.index(key) if key in keys else None for key in found]


def check_classes(
    asked: Sequence[ClassInfo], known: Sequence[ClassInfo], setting: str, who: str, cure: str
) -> list[int]:
    """`places_of`, all of them. Raises `SettingError` that names the first class that `who` does not have."""
    places = places_of(asked, known)
    missing = [entry.name for entry, place in zip(asked, places, strict=True) if place is None]
    if missing:
        more = f" nor {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SettingError(f"{setting}: {who} has no class {missing[0]!r}{more}; {cure}")
    return [place for place in places if place is not None]


def as_classes(names: Sequence[str], ids: Sequence[str] = ()) -> tuple[ClassInfo, ...]:
    """Classes of which names, and perhaps identifiers, are noted somewhere."""
    ids = ids if len(ids) == len(names) else names
    return tuple(ClassInfo(str(name), str(key), 0) for name, key in zip(names, ids, strict=True))
