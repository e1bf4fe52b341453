"""What the bytes of a sample mean: a JPEG, a PNG, or a `.npy` file of a vector. They are decoded straight into their
place in a batch; the image decoders release the interpreter's lock."""

import functools
import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from data_pipeline.manifest.format import Content, ImageField

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[bytes | memoryview, npt.NDArray[Any]], None]

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = {1: "L", 3: "RGB"}
_COLORSPACES = {1: "GRAY", 3: "RGB"}


def decode_image(data: bytes | memoryview, out: Pixels) -> None:
    """Decode a JPEG or PNG into `out`, uint8 [H, W, C] (C-contiguous, C = 1 or 3). Raises ValueError with the reason,
    and whatever the decoders raise."""
    height, width, channels = out.shape
    if data[:2] == _JPEG:
        decoded = simplejpeg.decode_jpeg(data, _COLORSPACES[channels], buffer=out)
        if decoded.shape != out.shape:
            raise ValueError(f"the image is {decoded.shape[1]}x{decoded.shape[0]}, the manifest says {width}x{height}")
    elif data[:8] == _PNG:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height) or image.mode != _MODES[channels]:
                raise ValueError(
                    f"the image is {image.size[0]}x{image.size[1]} {image.mode}, "
                    f"the manifest says {width}x{height} {_MODES[channels]}"
                )
            out[...] = np.asarray(image).reshape(out.shape)
    else:
        raise ValueError("the image is neither a JPEG nor a PNG")


def decode_vector(data: bytes | memoryview, out: npt.NDArray[np.float32]) -> None:
    """Decode a `.npy` file of one float32 vector into `out`, [D]. Raises ValueError with the reason."""
    header = npy_header(len(out))
    if data[: len(header)] == header and len(data) == len(header) + out.nbytes:
        out[...] = np.frombuffer(data, "<f4", offset=len(header))
        return
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)  # another writer's header
    if array.dtype != np.float32 or array.shape != out.shape:
        raise ValueError(
            f"the array is {array.dtype} of the shape {array.shape}, the manifest says float32 of the shape {out.shape}"
        )
    out[...] = array


def image_shape(data: bytes | memoryview) -> tuple[int, int, int]:
    """(height, width, channels) of a JPEG or PNG that `decode_image` can decode, from its header. Raises ValueError
    with the reason."""
    if data[:8] == _PNG and len(data) >= 26:
        width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
        if depth != 8 or colour not in (0, 2):
            raise ValueError("it is a PNG that is neither 8-bit grey nor 8-bit RGB")
        return height, width, 3 if colour == 2 else 1
    if data[:2] == _JPEG:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        if colours.upper() not in ("GRAY", "YCBCR", "RGB"):
            raise ValueError(f"it is a JPEG in {colours}")
        return height, width, 1 if colours.upper() == "GRAY" else 3
    raise ValueError("it is neither a JPEG nor a PNG")


DECODERS: dict[str, Decode] = {"image": decode_image, "vector": decode_vector}
"""By the name of a sample's content."""


def empty(content: Content) -> npt.NDArray[Any]:
    """Memory for one sample: uint8 [H, W, C] or float32 [D]."""
    if isinstance(content, ImageField):
        return np.empty((content.height, content.width, content.channels), np.uint8)
    return np.empty(content.length, np.float32)


@functools.lru_cache
def npy_header(length: int) -> bytes:
    """What the `.npy` file of a float32 vector of this length begins with; the numbers follow, little-endian."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (length,)})
    return file.getvalue()
