"""The pictures of a colour emoji font with bitmaps (CBDT), such as Debian's fonts-noto-color-emoji.

INPUT holds one font and Unicode's `emoji-test.txt`, which lists all emoji with their groups. Emoji of several code points
are found by shaping, as a program that shows text finds them. Splits are those of `openmoji`: by emoji, all variants of one
on one side. So one emoji is in the same split of both sources.
"""

import functools
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.make_shards.sources.openmoji import Emoji, chosen, family
from data_pipeline.storage.folder import Folder

LIST = "emoji-test.txt"
_GROUP = re.compile(r"# group: (.+)")
_EMOJI = re.compile(r"([0-9A-F]+(?: [0-9A-F]+)*) *; fully-qualified")
_SKIN = re.compile(r"1F3F[B-F]")
_APART = ("Component",)
"""Groups that are taken only where they are asked for."""
_NAMES = {"copyright": 0, "font": 4, "licence": 13}
"""What the manifest says, and the number of this name in a font."""


class EmojiFontSource:
    """One split of a font's emoji. The classes are Unicode's groups."""

    def __init__(self, folder: Folder, *, split: str = "train", groups: Sequence[str] = ()) -> None:
        self.folder, self.split, self.groups = folder, split, tuple(groups)

    def listing(self) -> Listing:
        """The emoji in Unicode's order that the font has a picture of, but those of skin tones. Raises DataError."""
        emoji: list[Emoji] = []
        glyphs: dict[str, str] = {}
        families: dict[bytes, str] = {}
        for group, code in self._listed():
            glyph = self._font.glyph(code)
            picture = self._font.pictures.get(glyph)
            if picture is None:
                continue
            digest = hashlib.sha256(picture).digest()
            glyphs[code] = glyph
            emoji.append(Emoji(code, group, (), families.setdefault(digest, family(code)), len(picture)))
        if not emoji:
            raise DataError(f"INPUT: the font in {self.folder} has no picture of an emoji of {LIST}; give another font")
        groups = sorted({entry.group for entry in emoji})
        items = [
            Item(entry.code, groups.index(entry.group), (glyphs[entry.code], entry.family, entry.size))
            for entry in chosen(emoji, self.split)
        ]
        notice = (*self._font.notice, ("split", self.split))
        return Listing(tuple((group, group) for group in groups), items, notice=notice)

    def _listed(self) -> Iterator[tuple[str, str]]:
        """(group, code points) of the emoji that are wanted. Raises DataError."""
        if not self.folder.exists(LIST):
            raise DataError(
                f"INPUT: {self.folder} holds no {LIST}; copy Unicode's list (Debian: unicode-data) next to the font"
            )
        lines = self.folder.read(LIST).decode("utf-8", errors="replace").splitlines()
        known = [match[1].strip() for line in lines if (match := _GROUP.match(line))]
        if unknown := [group for group in self.groups if group not in known]:
            raise DataError(f"--groups: there is no group {unknown[0]!r}; there are {', '.join(known)}")
        group = ""
        for line in lines:
            if match := _GROUP.match(line):
                group = match[1].strip()
            wanted = group in self.groups or (not self.groups and group not in _APART)
            if wanted and (match := _EMOJI.match(line)) and not _SKIN.search(match[1]):
                yield group, match[1].replace(" ", "-")

    @functools.cached_property
    def _font(self) -> "_Font":
        return _Font(self.folder)

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "split": self.split, "groups": self.groups}

    def image(self, item: Item) -> Image.Image:
        """The bitmap of one item. Raises DataError where the font cannot be read, OSError where this bitmap cannot."""
        image = Image.open(io.BytesIO(self._font.pictures[str(item.where[0])]))
        image.load()
        return image.convert("RGBA")


class _Font:
    """A font that is read whole."""

    def __init__(self, folder: Folder) -> None:
        """Raises DataError."""
        try:
            import uharfbuzz
            from fontTools.ttLib import TTFont, TTLibError
        except ImportError:
            raise DataError(
                "SOURCE: fonts are read by fonttools and uharfbuzz, which are not installed; install menagerie[emoji]"
            ) from None
        names = [name for name in folder.names() if name.lower().endswith((".ttf", ".otf"))]
        if len(names) != 1:
            raise DataError(f"INPUT: {folder} holds {len(names)} fonts (.ttf, .otf); give a folder with one")
        data = folder.read(names[0])
        where = f"INPUT: {folder}/{names[0]}"
        try:
            font = TTFont(io.BytesIO(data), lazy=True)
            if "CBDT" not in font:
                raise DataError(f"{where} has no colour bitmaps (CBDT); give a font such as NotoColorEmoji.ttf")
            strikes = font["CBDT"].strikeData
            self.pictures: dict[str, bytes] = {name: glyph.imageData for name, glyph in strikes[0].items()}
            self._order = font.getGlyphOrder()
            said = {name: font["name"].getDebugName(number) for name, number in _NAMES.items()}
        except (TTLibError, AssertionError, KeyError, IndexError, AttributeError, ValueError) as error:
            raise DataError(f"{where} cannot be read as a font ({error}); install it again") from None
        self.notice = tuple((name, printable(text)) for name, text in said.items() if text)
        self._harfbuzz: Any = uharfbuzz
        self._face = uharfbuzz.Font(uharfbuzz.Face(data))

    def glyph(self, code: str) -> str:
        """The name of the one glyph that shows these code points; empty where they are shown by none or by several."""
        buffer = self._harfbuzz.Buffer()
        buffer.add_str("".join(chr(int(point, 16)) for point in code.split("-")))
        buffer.guess_segment_properties()
        self._harfbuzz.shape(self._face, buffer)
        found = [info.codepoint for info in buffer.glyph_infos]
        return self._order[found[0]] if len(found) == 1 and found[0] else ""
