"""The pictures of the npm package `openmoji`: every emoji as a colour drawing and as a line drawing, pixel-aligned.

The package holds vector graphics, which resvg draws (the extra `emoji`). A data set is one *style* of one *split*. The
splits go by emoji, with all variants of one on one side: of five parts one is `test`, two are `a` and two are `b`;
`train` is `a` and `b`. So line drawings of `a` and colour drawings of `b` are unpaired, and sample n of `test` is the
same emoji in both styles.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from data_pipeline.errors import DataError, FileError
from data_pipeline.make_shards.sources.base import Item, Listing
from data_pipeline.storage.folder import Folder

LIST = "data/openmoji.json"
STYLES = {"colour": "color/svg", "line": "black/svg"}
"""The folders of the two drawings."""
SPLITS = {"train": (1, 2, 3, 4), "test": (0,), "a": (1, 2), "b": (3, 4)}
"""Which fifths of the emoji each split has."""
NOTICE = (
    ("licence", "CC BY-SA 4.0"),
    ("attribution", "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org)"),
)
_APART = ("component", "flags")
"""Groups that are taken only where they are asked for: all line drawings of flags are one rectangle."""
_PLAIN = {"black", "white", "none", "currentcolor", "#000", "#000000", "#fff", "#ffffff"}
_COLOUR = re.compile(r"""(?:fill|stroke|stop-color)\s*[:=]\s*["']?\s*([#\w]+)""")
# Skin tones, hair, the signs of gender, the arrow of directions, and what joins them: what tells variants apart.
_VARIANT = {*range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4), 0x2640, 0x2642, 0x27A1, 0xFE0F, 0x200D}
_PERSONS = {
    **dict.fromkeys((0x1F468, 0x1F469), 0x1F9D1),
    **dict.fromkeys((0x1F466, 0x1F467), 0x1F9D2),
    **dict.fromkeys((0x1F474, 0x1F475), 0x1F9D3),
}
"""Man and woman -> person, boy and girl -> child, old man and old woman -> older person."""


class Emoji(NamedTuple):
    """One drawing."""

    code: str
    """Its code points, as in the names of the files."""
    group: str
    words: tuple[str, ...]
    """Its name and its published keywords, each once, in small letters."""
    family: str
    """Equal for the variants of one emoji."""
    size: int
    """Bytes of the colour drawing."""


def family(code: str) -> str:
    """What the variants of an emoji have in common: its code points without skin tone, hair, gender and direction."""
    points = [int(point, 16) for point in code.split("-")]
    kept = [_PERSONS.get(point, point) for point in points if point not in _VARIANT]
    return "-".join(f"{point:X}" for point in kept) or code


def read_emoji(folder: Folder, groups: Sequence[str] = ()) -> list[Emoji]:
    """All drawings but those of skin tones, and those without colours, whose two styles are the same; in the package's
    order. Without `groups` of all but the components and flags. Equal drawings have one family. Raises DataError."""
    rows = _read_list(folder)
    known = sorted({row["group"] for row in rows})
    if unknown := [group for group in groups if group not in known]:
        raise DataError(f"--groups: there is no group {unknown[0]!r}; there are {', '.join(known)}")
    wanted = set(groups) or {group for group in known if group not in _APART}
    found: list[Emoji] = []
    families: dict[bytes, str] = {}
    for row in rows:
        if row["skintone"] or row["group"] not in wanted:
            continue
        code = row["hexcode"]
        drawing = read_drawing(folder, "colour", code)
        if {colour.lower() for colour in _COLOUR.findall(drawing.decode(errors="replace"))} <= _PLAIN:
            continue
        texts = [row["annotation"], *row["tags"].split(","), *row["openmoji_tags"].split(",")]
        words = tuple(dict.fromkeys(text.strip().lower() for text in texts if text.strip()))
        digest = hashlib.sha256(drawing).digest()
        found.append(Emoji(code, row["group"], words, families.setdefault(digest, family(code)), len(drawing)))
    if not found:
        raise DataError(f"INPUT: {folder} holds no drawing of the groups {', '.join(sorted(wanted))}; give others")
    return found


def _read_list(folder: Folder) -> list[dict[str, Any]]:
    """Raises DataError."""
    if not folder.exists(LIST):
        raise DataError(
            f"INPUT: {folder} holds no {LIST}; give the folder `package` that `npm pack openmoji` and tar unpack"
        )
    try:
        rows = json.loads(folder.read(LIST))
        return [{key: row[key] for key in _KEYS} for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"INPUT: {folder}/{LIST} cannot be read ({error!r}); fetch the package again") from None


_KEYS = ("hexcode", "group", "annotation", "tags", "openmoji_tags", "skintone")


def read_drawing(folder: Folder, style: str, code: str) -> bytes:
    """The vector graphic of an emoji. Raises DataError."""
    try:
        return folder.read(f"{STYLES[style]}/{code}.svg")
    except FileError as error:
        raise DataError(f"INPUT: {folder} lacks a drawing ({error}); fetch the package again") from None


def chosen(emoji: Sequence[Emoji], split: str) -> list[Emoji]:
    """Those of a split. It is a function of an emoji's family alone. Raises DataError where there are none."""
    found = [entry for entry in emoji if _fifth(entry.family) in SPLITS[split]]
    if not found:
        raise DataError(f"--split: none of the {len(emoji)} drawings is in the split {split}; give more --groups")
    return found


def _fifth(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % 5


def draw(svg: bytes, side: int) -> Image.Image:
    """The vector graphic, drawn `side` x `side` px. Raises DataError without the renderer, ValueError where it is
    damaged."""
    try:
        import resvg_py
    except ImportError:
        raise DataError(
            "SOURCE: the drawings are vector graphics and resvg is not installed; install menagerie[emoji]"
        ) from None
    png = resvg_py.svg_to_bytes(svg_string=svg.decode(), width=side, height=side, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png)))
    image.load()
    return image


def renderer() -> str:
    """The renderer with its version, which decides the pixels."""
    try:
        import resvg_py
    except ImportError:
        return "resvg (not installed)"
    return f"resvg_py {resvg_py.__version__}"


class OpenMojiSource:
    """One style of one split, drawn `side` px wide. The classes are the groups."""

    def __init__(
        self, folder: Folder, *, style: str = "colour", split: str = "train", groups: Sequence[str] = (), side: int = 64
    ) -> None:
        self.folder, self.style, self.split, self.groups, self.side = folder, style, split, tuple(groups), side

    def listing(self) -> Listing:
        """The drawings in the package's order. Raises DataError."""
        emoji = read_emoji(self.folder, self.groups)
        groups = sorted({entry.group for entry in emoji})
        items = [
            Item(entry.code, groups.index(entry.group), (entry.code, entry.family, entry.size, self.style, self.side))
            for entry in chosen(emoji, self.split)
        ]
        notice = (*NOTICE, ("renderer", renderer()), ("style", self.style), ("split", self.split))
        return Listing(tuple((group, group) for group in groups), items, notice=notice)

    def image(self, item: Item) -> Image.Image:
        """Draw one item. Raises DataError where the package or the renderer is missing, ValueError where this drawing
        is damaged."""
        return draw(read_drawing(self.folder, self.style, str(item.where[0])), self.side)
