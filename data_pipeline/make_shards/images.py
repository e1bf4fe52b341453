"""From any decoded image to the 8-bit pixels of a sample, all of one size, and to its bytes. One fixed antialiased
filter: Pillow's Lanczos."""

import contextlib
import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from data_pipeline.make_shards.sources.base import Item, Listing, Source
from data_pipeline.manifest.format import ImageField

FILTER = Image.Resampling.LANCZOS

_COLORSPACES = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}  # of a JPEG -> as simplejpeg decodes it
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_SCALED_FORMATS = ("PNG", "PPM", "JPEG2000")  # Pillow scales their deep greys to the whole range of 16 bits

Fit = Literal["crop", "pad", "stretch"]
Chroma = Literal["444", "422", "420"]


class TooSmall(ValueError):
    """The image's shorter side is below the minimum: excluded, not unreadable."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images become samples."""

    size: int | tuple[int, int]
    """Width and height of every sample: one number for squares, else (width, height)."""
    channels: int = 3
    """1 = grey, 3 = RGB."""
    fit: Fit = "crop"
    """crop: the centred largest part of the samples' proportions; pad: black bars (an image that fits is not
    resized); stretch: the proportions change."""
    encoding: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95
    chroma: Chroma = "444"
    minimum_side: int = 1
    """Images whose shorter side is less are excluded."""

    @property
    def width(self) -> int:
        """In pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    def describe(self) -> dict[str, Any]:
        """For the manifest: what decides the bytes."""
        options = asdict(self)
        if self.width != self.height:
            options["size"] = f"{self.width}x{self.height}"
        if self.encoding == "png":
            del options["quality"], options["chroma"]
        options["filter"] = "lanczos"
        return options


def open_image(data: bytes) -> Image.Image:
    """Decode an image file's bytes. Raises OSError, ValueError or SyntaxError with the reason where it is damaged.

    JPEGs that need nothing special go through simplejpeg, a quarter faster and with the same pixels; the rest, and
    all that simplejpeg finds wrong, through Pillow.
    """
    if data[:2] == b"\xff\xd8" and b"Exif\0" not in data and b"Orientation" not in data:
        with contextlib.suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in _COLORSPACES and height * width <= (Image.MAX_IMAGE_PIXELS or 0):
                pixels = simplejpeg.decode_jpeg(data, _COLORSPACES[colours])
                return Image.fromarray(pixels[..., 0] if colours == "Gray" else pixels)
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def grey_bits(image: Image.Image) -> int:
    """Bits of an unsigned grey of more than 8 bits, taken from the file. Raises ValueError where the file does not say
    what its numbers mean."""
    if image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", None)
        if image.format in _SCALED_FORMATS:
            return 16
        if image.format == "TIFF" and tags is not None and tags.get(_SAMPLE_FORMAT, 1) in (1, (1,)):
            bits = tags.get(_BITS, (1,))[0]
            if bits in (12, 16) and tags.get(_PHOTOMETRIC) == 1:
                return int(bits)
    raise ValueError(
        f"its pixels are {'floating-point numbers' if image.mode == 'F' else 'integers'} of an unknown range; convert it to "
        "8 or 16 unsigned bits"
    )


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Upright, 8 bits, grey or RGB; transparency is on white; deeper grey is scaled, not clipped. Raises ValueError
    where the range of its numbers is not known."""
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if image.mode == "F" or image.mode.startswith("I"):
        shift = grey_bits(image) - 8
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> shift).clip(0, 255).astype(np.uint8))
    if turn is not None:  # by hand, because Pillow writes the EXIF anew, which fails where it is odd
        image = image.transpose(turn)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_size(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """The image at `size` = (width, height)."""
    width, height = image.size
    if fit == "crop":
        wide = width * size[1] >= height * size[0]
        across = max(1, round(height * size[0] / size[1])) if wide else width
        down = height if wide else max(1, round(width * size[1] / size[0]))
        left, top = (width - across) // 2, (height - down) // 2
        box = (left, top, left + across, top + down)
        return image.crop(box) if (across, down) == size else image.resize(size, FILTER, box=box)
    if fit == "stretch":
        return image.resize(size, FILTER)
    if width > size[0] or height > size[1]:
        scale = min(size[0] / width, size[1] / height)
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), FILTER)
    ground = Image.new(image.mode, size)
    ground.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return ground


def prepare(image: Image.Image, options: ImageOptions) -> npt.NDArray[np.uint8]:
    """The sample's pixels: uint8 [height, width, channels]. Raises TooSmall, or OSError where the image is damaged."""
    if min(image.size) < options.minimum_side:
        raise TooSmall(f"{image.width}x{image.height} is smaller than the minimum side {options.minimum_side}")
    sized = to_size(to_mode(image, options.channels), (options.width, options.height), options.fit)
    return np.ascontiguousarray(np.asarray(sized).reshape(options.height, options.width, options.channels))


def encode(pixels: npt.NDArray[np.uint8], options: ImageOptions) -> bytes:
    """The sample's JPEG or PNG bytes."""
    if options.encoding == "png":
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if options.channels == 1 else pixels).save(buffer, "PNG")
        return buffer.getvalue()
    grey = options.channels == 1
    return bytes(
        simplejpeg.encode_jpeg(
            pixels, options.quality, "GRAY" if grey else "RGB", "Gray" if grey else options.chroma, fastdct=False
        )
    )


@dataclass(frozen=True)
class ImageSamples:
    """The samples that a source of images makes with these options. It is pickled into the worker processes."""

    source: Source
    options: ImageOptions

    @property
    def content(self) -> ImageField:
        """What a sample is."""
        return ImageField(self.options.height, self.options.width, self.options.channels)

    @property
    def extension(self) -> str:
        """Of a sample's file in the tar."""
        return "jpg" if self.options.encoding == "jpeg" else "png"

    def listing(self) -> Listing:
        """List the source. Raises DataError."""
        return self.source.listing()

    def describe(self) -> dict[str, Any]:
        """For the manifest: what decides the bytes."""
        return self.options.describe()

    def encode(self, item: Item) -> tuple[bytes, str]:
        """A sample's file, and what was done to its values. Raises TooSmall, DataError where the source cannot be read,
        and what the image's decoder raises."""
        image = self.source.image(item)
        note = f"{grey_bits(image)}-bit greys scaled to 8" if image.mode.startswith("I") else ""
        return encode(prepare(image, self.options), self.options), note
