"""Emoji from a colour font with bitmaps. The font is made here: four glyphs, one of them for a sequence of code points."""

import contextlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import BitmapSizeTable, SbitLineMetrics, Strike, eblc_index_sub_table_1
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.make_shards.sources.emojifont import EmojiFontSource
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig, open_stream
from data_pipeline.storage.folder import Folder

COLOURS = {
    "cat": (200, 0, 0),
    "man": (0, 200, 0),
    "rocket": (0, 0, 200),
    "astronaut": (9, 99, 199),
    "pilot": (9, 99, 199),
}
POINTS = {0x1F408: "cat", 0x1F468: "man", 0x1F680: "rocket", 0x200D: "zwj", 0x41: "letter", 0x2708: "plane"}
LISTED = """# group: Animals & Nature
1F408                                      ; fully-qualified     # E0.7 cat
1F408 200D 1F680                           ; fully-qualified     # a sequence that the font shows by two glyphs
# group: People & Body
1F468                                      ; fully-qualified     # E0.6 man
1F468 1F3FB                                ; fully-qualified     # E1.0 man: light skin tone
1F468 200D 1F680                           ; fully-qualified     # E4.0 man astronaut
1F468 200D 2708                            ; fully-qualified     # E4.0 man pilot, drawn as the astronaut here
1F9D1                                      ; fully-qualified     # E5.0 a person that the font does not have
1F680                                      ; unqualified         # E0.6 rocket
# group: Component
1F680                                      ; fully-qualified     # E0.6 rocket
"""


def bitmap(colour: tuple[int, int, int]) -> bytes:
    """34 x 32 px: a square of the colour with 4 px of nothing to the left and right."""
    image = Image.new("RGBA", (34, 32))
    image.paste((*colour, 255), (4, 3, 30, 29))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def metrics() -> SmallGlyphMetrics:
    made = SmallGlyphMetrics()
    made.height, made.width, made.BearingX, made.BearingY, made.Advance = 32, 34, 0, 28, 34
    return made


def write_font(path: Path) -> None:
    names = [".notdef", *POINTS.values(), "astronaut", "pilot"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(POINTS)
    builder.setupGlyf({name: TTGlyphPen(None).glyph() for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(
        {
            "copyright": "Nobody",
            "familyName": "Tiny",
            "styleName": "Regular",
            "fullName": "Tiny Regular",
            "licenseDescription": "free\nfor all",
        }
    )
    builder.setupOS2()
    builder.setupPost()
    builder.addOpenTypeFeatures("feature ccmp { sub man zwj rocket by astronaut; sub man zwj plane by pilot; } ccmp;")
    font, glyphs = builder.font, {}
    for name, colour in COLOURS.items():
        glyph = cbdt_bitmap_format_17(b"", font)
        del glyph.data
        glyph.metrics, glyph.imageData = metrics(), bitmap(colour)
        glyphs[name] = glyph
    font["CBDT"] = newTable("CBDT")
    font["CBDT"].version, font["CBDT"].strikeData = 3.0, [glyphs]
    strike = Strike()
    strike.bitmapSizeTable = table = BitmapSizeTable()
    for side in ("hori", "vert"):
        line = SbitLineMetrics()
        for field in (
            "ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator", "caretOffset",
            "minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2",
        ):  # fmt: skip
            setattr(line, field, 0)
        setattr(table, side, line)
    table.colorRef, table.ppemX, table.ppemY, table.bitDepth, table.flags = 0, 32, 32, 32, 1
    order = font.getGlyphOrder()
    table.startGlyphIndex, table.endGlyphIndex = 0, len(order) - 1
    strike.indexSubTables = []
    for name in sorted(glyphs, key=order.index):
        part = eblc_index_sub_table_1(b"", font)
        del part.data
        part.indexFormat, part.imageFormat, part.names = 1, 17, [name]
        part.firstGlyphIndex = part.lastGlyphIndex = order.index(name)
        strike.indexSubTables.append(part)
    font["CBLC"] = newTable("CBLC")
    font["CBLC"].version, font["CBLC"].strikes = 3.0, [strike]
    font.save(path)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("font")
    write_font(folder / "Tiny.ttf")
    (folder / "emoji-test.txt").write_text(LISTED)
    return folder


def found_in(folder: Path, groups: tuple[str, ...] = ()) -> dict[str, tuple[str, str, Image.Image]]:
    """Group, family and picture of every emoji of both splits, by code points. With few emoji a split may be empty."""
    found = {}
    for split in ("train", "test"):
        source = EmojiFontSource(Folder(folder), split=split, groups=groups)
        with contextlib.suppress(DataError):
            listing = source.listing()
            for item in listing.items:
                found[item.name] = (listing.classes[item.label or 0][0], str(item.where[1]), source.image(item))
    return found


def test_sequences_are_found_by_shaping_and_the_rest_is_left_out(package: Path) -> None:
    found = found_in(package)
    assert {code: group for code, (group, _, _) in found.items()} == {
        "1F408": "Animals & Nature",
        "1F468": "People & Body",
        "1F468-200D-1F680": "People & Body",
        "1F468-200D-2708": "People & Body",
    }
    assert found["1F468-200D-1F680"][2].getpixel((9, 9)) == (*COLOURS["astronaut"], 255)
    assert found["1F408"][2].size == (34, 32)
    assert set(found_in(package, ("Component",))) == {"1F680"}


def test_equal_pictures_are_one_family(package: Path) -> None:
    families = {code: name for code, (_, name, _) in found_in(package).items()}
    assert families["1F468-200D-1F680"] == families["1F468-200D-2708"] != families["1F468"]


def test_shards_are_cut_to_squares_on_white(package: Path, tmp_path: Path) -> None:
    arguments = ["emojifont", str(package), str(tmp_path / "out"), "--size", "32", "--jobs", "1", "--unlabelled"]
    assert make_shards.main(arguments) == 0
    manifest = load_manifest(str(tmp_path / "out"))
    notice = manifest.options["notice"]
    assert (notice["copyright"], notice["font"], notice["licence"]) == ("Nobody", "Tiny Regular", "free\\nfor all")
    assert (manifest.resolution, manifest.channels) == (32, 3)
    with open_stream(DataConfig(shards=str(tmp_path / "out")), seed=0, replicas=1, held=[0], sizes=[3]) as stream:
        for pixels in next(stream).images[0].numpy():
            assert (pixels[0] == 255).all()
            assert (pixels[:, :3] == 255).all()
            assert tuple(pixels[9, 9]) in COLOURS.values()
            assert np.ptp(pixels[4:28, 4:28].reshape(-1, 3), axis=0).max() == 0


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda f: (f / "emoji-test.txt").unlink(), (), r"^INPUT: .* holds no emoji-test\.txt; copy Unicode's list"),
        (lambda f: (f / "Tiny.ttf").unlink(), (), r"^INPUT: .* holds 0 fonts"),
        (lambda f: shutil.copy(f / "Tiny.ttf", f / "Other.ttf"), (), r"^INPUT: .* holds 2 fonts"),
        (
            lambda f: (f / "Tiny.ttf").write_bytes(b"no font at all"),
            (),
            r"^INPUT: .*Tiny\.ttf cannot be read as a font",
        ),
        (
            lambda f: (f / "emoji-test.txt").write_text("# group: X\n"),
            (),
            r"^INPUT: the font in .* has no picture of an emoji",
        ),
        (lambda f: None, ("--groups", "Food"), r"^--groups: there is no group 'Food'; there are Animals & Nature, "),
        (lambda f: None, ("--style", "line"), r"^--style: means nothing to SOURCE emojifont"),
    ],
)
def test_refusals(
    damage: Callable[[Path], object],
    options: tuple[str, ...],
    message: str,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(package, tmp_path / "in"))
    damage(folder)
    assert make_shards.main(["emojifont", str(folder), str(tmp_path / "out"), "--jobs", "1", *options]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said
