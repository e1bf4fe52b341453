"""Numbers of a verb's command line, checked where they are read. argparse makes a sentence and exit status 2 of an error."""

import argparse
import math
from collections.abc import Callable


def whole(least: int = 0) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}; give a whole number") from None
        if not least <= value < 2**63:
            raise argparse.ArgumentTypeError(f"is {text}; give a whole number of at least {least}, below 2**63")
        return value

    return read


def number(least: float = 0.0, most: float = 1e15, *, above: bool = False) -> Callable[[str], float]:
    """The type of an option that is a number from `least` (or `above` it) to `most`; never NaN, never infinite."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}; give a number") from None
        if not math.isfinite(value) or value < least or value > most or (above and value == least):
            bounds = f"{'above' if above else 'from'} {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"is {text}; give a number {bounds}")
        return value

    return read
