"""What a sample's bytes mean."""

import struct

import pytest

from data_pipeline.manifest.content import image_shape
from tests.support.lying_data import encoded, picture


def test_the_shape_is_read_from_the_header() -> None:
    assert image_shape(encoded(picture(1, 7, 5), "PNG")) == (5, 7, 3)
    assert image_shape(encoded(picture(1, 7, 5, "L"), "PNG")) == (5, 7, 1)
    assert image_shape(encoded(picture(1, 7, 5, "L"))) == (5, 7, 1)
    with pytest.raises(ValueError, match="neither 8-bit grey nor 8-bit RGB"):
        image_shape(encoded(picture(1, mode="P"), "PNG"))
    with pytest.raises(ValueError, match="neither a JPEG nor a PNG"):
        image_shape(struct.pack(">I", 3))
