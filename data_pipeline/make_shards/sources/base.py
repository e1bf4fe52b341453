"""What a source of samples is: a listing made once, and a function that reads one item in any process."""

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image

from data_pipeline.manifest.format import Content


def printable(name: str) -> str:
    """A file's name as the report can hold it: what is not UTF-8, and what breaks a line, is escaped."""
    text = name.encode(errors="backslashreplace").decode()
    return "".join(mark.encode("unicode_escape").decode() if breaks_lines(mark) else mark for mark in text)


def breaks_lines(mark: str) -> bool:
    """Whether a character is a control character or a line's end, which a list of names cannot hold."""
    return unicodedata.category(mark) in ("Cc", "Zl", "Zp")


class Item(NamedTuple):
    """One sample of the source."""

    name: str
    """Its name in the source, for reports and exclusion lists."""
    label: int | None
    """0 .. classes-1; None where the source has no classes."""
    where: tuple[int | str, ...]
    """What the source needs to find it; goes into the plan's digest."""


class Listing(NamedTuple):
    """Everything that the source holds, in an order that depends on the source alone."""

    classes: tuple[tuple[str, str], ...]
    """(readable name, id) of each class, in the order of the labels; empty where the samples have no class."""
    items: Sequence[Item]
    ignored: int = 0
    """Files that are no samples by their names."""
    together: int = 0
    """How many of the first numbers of `Item.where` say which items are read together, in their order: they go into the
    shards together. 0: each can be read alone."""
    notice: tuple[tuple[str, str], ...] = ()
    """What whoever has the samples must know, by name: licence, attribution. It goes into the manifest's options."""
    part: bool = False
    """The samples are a part of the data whose classes these are; a class may have none."""


class Source(Protocol):
    """A source of images. It is pickled into the worker processes, so it holds only paths and settings, and opens
    files lazily."""

    def listing(self) -> Listing:
        """List the source. Raises DataError."""
        ...

    def image(self, item: Item) -> Image.Image:
        """Decode one item. Raises DataError where the source cannot be read, else whatever the decoder raises."""
        ...


class Samples(Protocol):
    """What make_shards writes: a listing, and the bytes of each item."""

    @property
    def content(self) -> Content:
        """What a sample is."""
        ...

    @property
    def extension(self) -> str:
        """Of a sample's file in the tar."""
        ...

    def listing(self) -> Listing:
        """List the source. Raises DataError."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the manifest: what decides the bytes."""
        ...

    def encode(self, item: Item) -> tuple[bytes, str]:
        """A sample's file, and what was done to its values, if anything. Raises TooSmall, DataError where the source
        cannot be read, and what a decoder raises."""
        ...


class Unlabelled:
    """A source without its classes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def listing(self) -> Listing:
        """The source's listing without labels. Raises DataError."""
        listing = self.source.listing()
        return listing._replace(classes=(), items=[item._replace(label=None) for item in listing.items])

    def image(self, item: Item) -> Image.Image:
        """As the source's."""
        return self.source.image(item)
