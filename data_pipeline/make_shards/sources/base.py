"""What a source of labelled images is: a listing made once, and a function that reads one item in any process."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image


class Item(NamedTuple):
    """One labelled image of the source."""

    name: str
    """Its name in the source, for reports and exclusion lists."""
    label: int
    """0 .. classes-1."""
    where: tuple[int | str, ...]
    """What the source needs to find it; goes into the plan's digest."""


class Listing(NamedTuple):
    """Everything that the source holds, in an order that depends on the source alone."""

    classes: tuple[tuple[str, str], ...]
    """(readable name, id) of each class, in the order of the labels."""
    items: Sequence[Item]
    ignored: int = 0
    """Files that are no images by their names."""


class Source(Protocol):
    """A source is pickled into the worker processes, so it holds only paths and settings, and opens files lazily."""

    def listing(self) -> Listing:
        """List the source. Raises DataError."""
        ...

    def image(self, item: Item) -> Image.Image:
        """Decode one item. Raises OSError, ValueError or SyntaxError with the reason where it cannot be decoded."""
        ...
