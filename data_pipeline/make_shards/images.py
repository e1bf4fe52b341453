"""From any decoded image to the square 8-bit pixels of a shard, and to its bytes. One fixed antialiased filter:
Pillow's Lanczos."""

import contextlib
import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

FILTER = Image.Resampling.LANCZOS

_COLORSPACES = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}  # of a JPEG -> as simplejpeg decodes it
_ORIENTATION = 0x0112  # EXIF's tag

Fit = Literal["crop", "pad", "stretch"]
Chroma = Literal["444", "422", "420"]


class TooSmall(ValueError):
    """The image's shorter side is below the minimum: excluded, not unreadable."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images become samples."""

    size: int
    """Width and height of every sample."""
    channels: int = 3
    """1 = grey, 3 = RGB."""
    fit: Fit = "crop"
    """crop: the centred largest square; pad: black bars (an image that fits is not resized); stretch: the
    proportions change."""
    encoding: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95
    chroma: Chroma = "444"
    minimum_side: int = 1
    """Images whose shorter side is less are excluded."""

    def describe(self) -> dict[str, Any]:
        """For the manifest: what decides the bytes."""
        options = asdict(self)
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


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Upright, 8 bits, grey or RGB; transparency lies on white; 16-bit grey is scaled, not clipped."""
    if image.getexif().get(_ORIENTATION, 1) != 1:  # else Pillow makes a copy, as of a conversion that is none
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """The image at size x size."""
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        return image.crop(box) if side == size else image.resize((size, size), FILTER, box=box)
    if fit == "stretch":
        return image.resize((size, size), FILTER)
    if max(width, height) > size:
        scale = size / max(width, height)
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), FILTER)
    ground = Image.new(image.mode, (size, size))
    ground.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return ground


def prepare(image: Image.Image, options: ImageOptions) -> npt.NDArray[np.uint8]:
    """The sample's pixels: uint8 [size, size, channels]. Raises TooSmall, or OSError where the image is damaged."""
    if min(image.size) < options.minimum_side:
        raise TooSmall(f"{image.width}x{image.height} is smaller than the minimum side {options.minimum_side}")
    square = to_square(to_mode(image, options.channels), options.size, options.fit)
    return np.ascontiguousarray(np.asarray(square).reshape(options.size, options.size, options.channels))


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
