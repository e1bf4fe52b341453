"""Pictures with tags: a picture comes once for each of its tags, and the tag is its class (Mirza & Osindero 2014, 4.2).

Two layouts are known: MIR Flickr 25k, unpacked with its annotations, and the npm package `openmoji`. The vocabulary is
made from the training split alone: tags on enough of its pictures, of which there is a word vector. Pictures without such
a tag are left out. A split goes by picture; the emoji's as in `openmoji`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from data_pipeline.errors import DataError, FileError
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources import openmoji
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.reading.word_vectors import read_word_vectors
from data_pipeline.storage.folder import Folder

_TAGS, _ANNOTATIONS = "meta/tags", "annotations"
_PICTURE = re.compile(r"im([1-9]\d*)\.jpg")
_SHARE = 3, 2  # of MIR Flickr: the first two thirds of the pictures are the training split


class Tagged(NamedTuple):
    """A picture and its tags."""

    name: str
    where: tuple[int | str, ...]
    training: bool
    tags: tuple[str, ...]


class TagsSource:
    """`words`: a file of word vectors; without it every tag may be a class. `least`: pictures of the training split that
    have a tag of the vocabulary. `side`: of the emoji, in px."""

    def __init__(
        self, folder: Folder, *, split: str = "train", words: str | None = None, least: int = 5, side: int = 224
    ) -> None:
        self.folder, self.split, self.words, self.least, self.side = folder, split, words, least, side

    def listing(self) -> Listing:
        """A picture once per tag, in the layout's order of pictures. Raises DataError."""
        emoji = self.folder.exists(openmoji.LIST)
        pictures = _emoji(self.folder, self.side) if emoji else _flickr(self.folder)
        vocabulary = self._vocabulary(pictures)
        number = {tag: label for label, tag in enumerate(vocabulary)}
        wanted = [picture for picture in pictures if picture.training == (self.split == "train")]
        items = [
            Item(printable(f"{picture.name} {tag}"), number[tag], picture.where)
            for picture in wanted
            for tag in picture.tags
            if tag in number
        ]
        without = sum(not any(tag in number for tag in picture.tags) for picture in wanted)
        notice = [("split", self.split), ("pictures", str(len(wanted) - without)), ("without a tag", str(without))]
        if emoji:
            notice = [*openmoji.NOTICE, ("renderer", openmoji.renderer()), *notice]
        return Listing(tuple((tag, tag) for tag in vocabulary), items, notice=tuple(notice), part=self.split != "train")

    def _vocabulary(self, pictures: Sequence[Tagged]) -> list[str]:
        """In alphabetical order. Raises DataError."""
        counts = Counter(tag for picture in pictures if picture.training for tag in picture.tags)
        frequent = sorted(tag for tag, count in counts.items() if count >= self.least)
        if len(frequent) < 2:
            raise DataError(
                f"--minimum-pictures: {len(frequent)} tags are on {self.least} or more of the training pictures of "
                f"{self.folder}; give a lower number"
            )
        if self.words is None:
            return frequent
        known = read_word_vectors(self.words, frequent, "--words")
        if len(known) < 2:
            raise DataError(
                f"--words: {self.words} has a vector of {len(known)} of the {len(frequent)} tags, such as {frequent[0]!r}; "
                "give vectors of the tags' language"
            )
        return [tag for tag in frequent if tag in known]

    def image(self, item: Item) -> Image.Image:
        """Decode one picture. Raises DataError where the folder cannot be read, OSError where this file cannot, and
        whatever the decoder raises."""
        kind, name = item.where[:2]
        if kind == "emoji":
            return openmoji.draw(openmoji.read_drawing(self.folder, "colour", str(name)), self.side)
        try:
            return open_image(self.folder.read(str(name)))
        except FileError as error:
            raise OSError(error.reason) from None


def _emoji(folder: Folder, side: int) -> list[Tagged]:
    """The emoji's colour drawings with their names and keywords. Raises DataError."""
    emoji = openmoji.read_emoji(folder)
    training = {entry.code for entry in openmoji.chosen(emoji, "train")}
    return [
        Tagged(entry.code, ("emoji", entry.code, entry.size, side), entry.code in training, entry.words)
        for entry in emoji
    ]


def _flickr(folder: Folder) -> list[Tagged]:
    """MIR Flickr's pictures in the order of their numbers; annotations are further tags. Raises DataError."""
    numbers = sorted(int(match[1]) for name in folder.names() if (match := _PICTURE.fullmatch(name)))
    if not numbers:
        raise DataError(
            f"INPUT: {folder} holds neither im1.jpg, im2.jpg, ... (MIR Flickr 25k's folder `mirflickr`) nor "
            f"{openmoji.LIST} (the npm package openmoji); give one of these folders"
        )
    listed = set(folder.names(_TAGS))
    if missing := [number for number in numbers if f"tags{number}.txt" not in listed]:
        raise DataError(f"INPUT: {folder}/{_TAGS} lacks tags{missing[0]}.txt ({len(missing)} such); unpack it again")
    tags = {number: _lines(folder, f"{_TAGS}/tags{number}.txt") for number in numbers}
    for name in sorted(folder.names(_ANNOTATIONS)):
        concept = name.removesuffix(".txt").removesuffix("_r1")
        if not name.endswith(".txt") or concept.lower() == "readme":
            continue
        for line in _lines(folder, f"{_ANNOTATIONS}/{name}"):
            if not line.isdigit() or int(line) not in tags:
                raise DataError(
                    f"INPUT: {folder}/{_ANNOTATIONS}/{name} names the picture {line!r}, which is not there; unpack the "
                    "annotations of these pictures"
                )
            tags[int(line)].append(concept.replace("_", " "))
    share, of = _SHARE[1], _SHARE[0]
    return [
        Tagged(
            f"im{number}.jpg",
            ("flickr", f"im{number}.jpg", folder.size(f"im{number}.jpg") or 0),
            place * of < share * len(numbers),
            tuple(dict.fromkeys(tags[number])),
        )
        for place, number in enumerate(numbers)
    ]


def _lines(folder: Folder, name: str) -> list[str]:
    """The lines of a small text file, in small letters, without empty ones. Raises DataError."""
    text = folder.read(name).decode("utf-8", errors="replace")
    return [line.strip().lower() for line in text.splitlines() if line.strip()]
