"""The list of measures. To add one: its file, and its class here."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.foundation.errors import SettingError
from trainer.metrics.accuracy import Accuracy
from trainer.metrics.classification import Classification
from trainer.metrics.fid import Frechet
from trainer.metrics.fidelity import Fidelity, PairAccuracy
from trainer.metrics.inception_score import Inception
from trainer.metrics.intra_fid import IntraFrechet
from trainer.metrics.kid import Kernel
from trainer.metrics.ms_ssim import MsSsim
from trainer.metrics.neighbours import Neighbours
from trainer.metrics.parzen import Parzen
from trainer.metrics.path_length import PathLength
from trainer.metrics.precision_recall import PrecisionAndRecall
from trainer.metrics.protocol import Measure
from trainer.metrics.resolutions import Resolutions
from trainer.metrics.round_trip import RoundTrip
from trainer.metrics.strips import Strips
from trainer.metrics.swd import PatchDistance
from trainer.metrics.tags import Tags

MEASURES: list[type[Measure]] = [
    Inception,
    Frechet,
    Kernel,
    PrecisionAndRecall,
    Accuracy,
    Resolutions,
    PatchDistance,
    MsSsim,
    IntraFrechet,
    Neighbours,
    PathLength,
    Strips,
    Fidelity,
    PairAccuracy,
    RoundTrip,
    Parzen,
    Classification,
    Tags,
]
"""In the order in which they are measured, recorded and reported."""


def chosen(names: Sequence[str]) -> list[type[Measure]]:
    """The measures of these names, in the order of the list. Raises `SettingError` for a name that there is not."""
    known = {measure.name: measure for measure in MEASURES}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            advice = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingError(
                f"--measures: there is no measure {name!r}; there are {', '.join(known)}, and all{advice}"
            )
    return [measure for measure in MEASURES if measure.name in names]


def measurement_named(name: str, setting: str) -> str:
    """The measurement that a measure's or a measurement's name means: `frechet_distance` for `fid`, the first of several.

    Raises `SettingError`, beginning with `setting`, with the closest name.
    """
    known = {title: title for measure in MEASURES for title in measure.titles}
    known |= {measure.name: next(iter(measure.titles)) for measure in MEASURES if measure.titles} | known
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        advice = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise SettingError(f"{setting}: there is no measure {name!r}; {advice}")
    return known[name]


def other_names() -> dict[str, str]:
    """The measure's own name of a measurement that is called otherwise."""
    first = {next(iter(measure.titles)): measure.name for measure in MEASURES if measure.titles}
    return {title: name for title, name in first.items() if name not in titles()}


def all_names(with_judge: bool) -> tuple[str, ...]:
    """What `--measures all` takes: not what takes very long, nor, without a judge, what needs one."""
    return tuple(m.name for m in MEASURES if m.in_all and (with_judge or not m.needs.any_judge))


def names_and_meanings() -> str:
    """For --help."""
    return "; ".join(f"{measure.name} ({measure.meaning})" for measure in MEASURES)


def titles() -> dict[str, str]:
    """The title of every measurement, by its name, in the order of a report."""
    return {name: title for measure in MEASURES for name, title in measure.titles.items()}


def outcomes() -> set[str]:
    """The details of all measurements that are results and not settings."""
    return {name for measure in MEASURES for name in measure.outcomes}


def note(name: str, details: Mapping[str, Any]) -> str:
    """The special small print of the measurement `name`; empty for most."""
    return next((measure.note(details) for measure in MEASURES if name in measure.titles), "")


def column(name: str) -> str:
    """The head of the column of the measurement's values per class; empty if it has none, or is not known."""
    return next((measure.column for measure in MEASURES if name in measure.titles), "")
