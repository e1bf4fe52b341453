"""Decode one JPEG or PNG straight into its place in a batch; the decoders release the interpreter's lock."""

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

Pixels = npt.NDArray[np.uint8]

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = {1: "L", 3: "RGB"}
_COLORSPACES = {1: "GRAY", 3: "RGB"}


def decode_into(data: bytes | memoryview, out: Pixels) -> None:
    """Decode into `out`, uint8 [H, W, C] (C-contiguous, C = 1 or 3). Raises ValueError with the reason."""
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
