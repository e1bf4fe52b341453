"""Measurements as text for the terminal."""

from collections.abc import Sequence

from trainer.metrics.measures import note
from trainer.metrics.records import Measurement

_SHOWN = ("samples", "samples_per_class", "pairs_per_class", "splits", "deviation", "real_images", "diversity")


def measure_table(measurements: Sequence[Measurement], iteration: int) -> str:
    """A line per measurement with the small print that matters most; all of it is in the record."""
    lines = [f"iteration {iteration:,}"]
    for measurement in measurements:
        details = measurement.details
        print_ = [f"{name.replace('_', ' ')} {_short(details[name])}" for name in _SHOWN if name in details]
        print_ += [str(details[name]) for name in ("features", "classifier") if name in details]
        if special := note(measurement.measure, details):
            print_.append(special)
        lines.append(f"  {measurement.measure:34} {measurement.text():>9}   {'; '.join(print_)}")
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
