"""The manifest of a folder of shards; `python -m data_pipeline.manifest show|verify URL`.

`manifest.json` names the classes, the shape of the samples and, for every shard, its samples, bytes and sha256, and
those of its index. Its own sha256 is the data's fingerprint: a run records it and refuses to resume with other data.

A sample has one content, an image or a vector, and may have a class. The file has two versions. Version 1 says
`resolution` and `channels`: square images with classes. Version 2 says `fields`, for example
`{"image": {"height": 48, "width": 64, "channels": 3}}` or `{"vector": {"length": 200}}`, and its list of classes is
empty where the samples have none. What version 1 can say is written as version 1, so that fingerprints stay.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from data_pipeline.errors import DataError
from data_pipeline.manifest import index
from data_pipeline.storage.folder import Folder

FORMAT = "menagerie-shards"
VERSIONS = (1, 2)
FILE_NAME = "manifest.json"


class ClassInfo(NamedTuple):
    """One class: its readable name, its identifier in the source (a WordNet id, a folder's name), its number of
    samples."""

    name: str
    id: str
    samples: int


@dataclass(frozen=True)
class ShardInfo:
    """One shard; `name` is relative to the manifest's `base`, `index` to the manifest's folder."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


@dataclass(frozen=True)
class ImageField:
    """The samples are images of 8 bits: uint8 [height, width, channels]; 1 channel = grey, 3 = RGB."""

    height: int
    width: int
    channels: int

    name: ClassVar[str] = "image"

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {'grey' if self.channels == 1 else 'RGB'}"


@dataclass(frozen=True)
class VectorField:
    """The samples are vectors: float32 [length]."""

    length: int

    name: ClassVar[str] = "vector"

    def __str__(self) -> str:
        return f"vectors of {self.length} numbers"


Content = ImageField | VectorField
_CONTENTS: dict[str, type[ImageField] | type[VectorField]] = {kind.name: kind for kind in (ImageField, VectorField)}


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    classes: tuple[ClassInfo, ...]
    """Empty where the samples have no class."""
    content: Content
    """What a sample is beside its class."""
    shards: tuple[ShardInfo, ...]
    options: dict[str, Any] = field(default_factory=dict)
    """How the shards were made."""
    report: dict[str, Any] = field(default_factory=dict)
    """Samples read, written, excluded, and the unreadable ones with the reason."""
    base: str = ""
    """Path or URL of the folder that holds the shards; empty: the manifest's own. The indexes are always with
    the manifest."""
    plan: str = ""
    """sha256 over the source's listing and the options: the same plan gives the same bytes."""
    fingerprint: str = ""
    """sha256 of the manifest file's bytes (with a selection of classes: of these bytes and the selection)."""
    section: str = field(default="data", compare=False)
    """The settings' section that named the folder, for errors: `data`, or `sources.NAME`."""

    @property
    def labelled(self) -> bool:
        """Whether every sample has a class."""
        return bool(self.classes)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of a sample's fields: `image` or `vector`, and `class` where the samples have one."""
        return (self.content.name, "class") if self.labelled else (self.content.name,)

    @property
    def _image(self) -> ImageField:
        if isinstance(self.content, ImageField):
            return self.content
        raise DataError(f"{self.section}.shards: holds {self.content}, where images are needed; give shards of images")

    @property
    def vector_length(self) -> int:
        """Numbers of a vector. Raises DataError where the samples are images."""
        if isinstance(self.content, VectorField):
            return self.content.length
        raise DataError(
            f"{self.section}.shards: holds images, where vectors are needed; give shards of vectors "
            "(data_pipeline.make_shards.vectors writes them)"
        )

    @property
    def height(self) -> int:
        """Of the images, in pixels. Raises DataError where the samples are vectors."""
        return self._image.height

    @property
    def width(self) -> int:
        """Of the images, in pixels. Raises DataError where the samples are vectors."""
        return self._image.width

    @property
    def channels(self) -> int:
        """Of the images: 1 = grey, 3 = RGB. Raises DataError where the samples are vectors."""
        return self._image.channels

    @property
    def resolution(self) -> int:
        """Height and width of square images, in pixels. Raises DataError where the samples are none."""
        if self.height != self.width:
            raise DataError(
                f"{self.section}.shards: holds images of {self.width}x{self.height} pixels, where squares are needed; "
                "make the shards with one number as --size"
            )
        return self.height

    @property
    def samples(self) -> int:
        """Of the selected classes; of all shards where the samples have no class."""
        return sum(entry.samples for entry in (self.classes or self.shards))

    @property
    def total_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)

    def to_bytes(self) -> bytes:
        """The manifest file: deterministic JSON, of version 1 where that can say it."""
        content = self.content
        shape: dict[str, Any]
        if isinstance(content, ImageField) and content.height == content.width and self.labelled:
            shape = {"version": 1, "resolution": content.height, "channels": content.channels}
        else:
            shape = {"version": 2, "fields": {content.name: content.__dict__}}
        document = {
            "format": FORMAT,
            **shape,
            "samples": self.samples,
            "classes": [entry._asdict() for entry in self.classes],
            "shards": [shard.__dict__ for shard in self.shards],
            "options": self.options,
            "report": self.report,
            "base": self.base,
            "plan": self.plan,
        }
        return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def with_fingerprint(self) -> "Manifest":
        return replace(self, fingerprint=hashlib.sha256(self.to_bytes()).hexdigest())


def parse_manifest(data: bytes, where: str, section: str = "data") -> Manifest:
    """The manifest of a file's bytes; `where` is for the error, `section` as in Manifest. Raises DataError."""
    cure = "make the shards again, or check that the setting names a folder made by data_pipeline.make_shards"
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        version = document["version"]
        if version not in VERSIONS:
            raise DataError(
                f"{where}: is a manifest of version {version}, this program reads versions 1 and 2; take a newer "
                "version of Menagerie, or make the shards again"
            )
        manifest = Manifest(
            classes=tuple(ClassInfo(str(c["name"]), str(c["id"]), int(c["samples"])) for c in document["classes"]),
            content=_parse_content(document),
            shards=tuple(
                ShardInfo(
                    name=str(s["name"]),
                    samples=int(s["samples"]),
                    bytes=int(s["bytes"]),
                    sha256=str(s["sha256"]),
                    index=str(s["index"]),
                    index_sha256=str(s["index_sha256"]),
                )
                for s in document["shards"]
            ),
            options=dict(document["options"]),
            report=dict(document["report"]),
            base=str(document["base"]),
            plan=str(document["plan"]),
            fingerprint=hashlib.sha256(data).hexdigest(),
            section=section,
        )
        held = sum(shard.samples for shard in manifest.shards)
        if not manifest.samples == held == document["samples"]:
            raise ValueError(
                f"its shards hold {held} samples, its classes {manifest.samples}, it says {document['samples']}"
            )
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: is not a manifest of shards ({error}); {cure}") from None
    return manifest


def _parse_content(document: dict[str, Any]) -> Content:
    """Raises ValueError, KeyError or TypeError where the document does not say it."""
    if document["version"] == 1:
        content: Content = ImageField(
            int(document["resolution"]), int(document["resolution"]), int(document["channels"])
        )
    else:
        ((name, shape),) = document["fields"].items()
        if name not in _CONTENTS:
            raise ValueError(f"its samples have the unknown field {name!r}")
        content = _CONTENTS[name](**{key: int(value) for key, value in shape.items()})
    if min(content.__dict__.values()) < 1 or (isinstance(content, ImageField) and content.channels not in (1, 3)):
        raise ValueError(f"its samples are {content}")
    return content


def load_manifest(url: str | Folder, section: str = "data") -> Manifest:
    """Read the manifest of the folder of shards at a path or an fsspec URL; `section` as in Manifest. Raises
    DataError."""
    folder = url if isinstance(url, Folder) else Folder(url)
    if not folder.exists(FILE_NAME):
        raise DataError(
            f"{section}.shards: {folder} holds no {FILE_NAME}; make the shards first "
            "(python -m data_pipeline.make_shards --help), or correct the path"
        )
    return parse_manifest(folder.read(FILE_NAME), f"{folder}/{FILE_NAME}", section)


def load_index(folder: Folder, shard: ShardInfo) -> index.Records:
    """The verified index of one shard: records of `index.RECORD`, shape [samples]. Raises DataError."""
    data = folder.read(shard.index)
    name = f"{folder}/{shard.index}"
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise DataError(f"{name}: its sha256 is not the manifest's; the file was changed or damaged, copy it again")
    records = index.from_bytes(data, name)
    if len(records) != shard.samples:
        raise DataError(
            f"{name}: holds {len(records)} samples, the manifest says {shard.samples}; make the shards again"
        )
    return records
