"""Measurements as text for the terminal."""

from collections.abc import Sequence

from trainer.metrics.records import Measurement

_SHOWN = ("samples", "samples_per_class", "pairs_per_class", "splits", "deviation", "real_images", "diversity")
_MANY = 40


def class_table(accuracy: Measurement, iteration: int, shards: str) -> str:
    """Class accuracy, a line per class (for many classes: the lowest and the highest)."""
    details = accuracy.details
    per_class, diversity = details["per_class"], details.get("diversity_per_class") or {}
    lines = [f"{details['samples']:,} generated images at iteration {iteration:,}: class accuracy"]
    shown = list(per_class)
    if len(shown) > _MANY:
        ranked = sorted(per_class, key=lambda name: float(per_class[name]))
        shown = ranked[: _MANY // 2] + ranked[-_MANY // 2 :]
    for name in shown:
        varied = f"  diversity {diversity[name]:.2f}" if name in diversity else ""
        lines.append(f"  {name[:24]:16} {per_class[name]:7.1%}{varied}  {'#' * round(40 * per_class[name])}".rstrip())
    varied = f"  diversity {details['diversity']:.2f} (1: as diverse as {shards})" if diversity else ""
    lines.append(f"  {'mean':16} {accuracy.value:7.1%}{varied}")
    if "real_images" in details:
        lines.append(f"  the classifier itself, on {shards}: {details['real_images']:.1%}")
    return "\n".join(lines)


def measure_table(measurements: Sequence[Measurement], iteration: int) -> str:
    """A line per measurement with the small print that matters most; all of it is in the record."""
    lines = [f"iteration {iteration:,}"]
    for measurement in measurements:
        details = measurement.details
        print_ = [f"{name.replace('_', ' ')} {_short(details[name])}" for name in _SHOWN if name in details]
        print_ += [str(details[name]) for name in ("features", "classifier") if name in details]
        if "accuracy" in details:
            pairs = zip(details["resolutions"], details["accuracy"], details["real_accuracy"], strict=True)
            print_.append(", ".join(f"{r} px {ours:.1%} (real {real:.1%})" for r, ours, real in pairs))
        lines.append(f"  {measurement.measure:34} {measurement.text():>9}   {'; '.join(print_)}")
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
