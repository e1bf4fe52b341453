"""Decode one sample straight into its place in a batch; the image decoders release the interpreter's lock."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

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


DECODERS: dict[str, Decode] = {"image": decode_image, "vector": decode_vector}
"""By the name of a sample's content."""


@functools.lru_cache
def npy_header(length: int) -> bytes:
    """What the `.npy` file of a float32 vector of this length begins with; the numbers follow, little-endian."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (length,)})
    return file.getvalue()
