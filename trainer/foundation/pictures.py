"""Pictures of uint8 images."""

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor


def draw_grid(images: Tensor, names: Sequence[str]) -> Image.Image:
    """uint8 images [rows, columns, c, h, w] -> a picture, each row with its class name at the left.

    Images under 64 px are enlarged by a whole factor, so that they can be seen.
    """
    rows, columns, channels, height, width = images.shape
    zoom = max(1, 64 // height)
    margin = 8 + max((len(name) for name in names), default=0) * 7
    canvas = Image.new("RGB", (margin + columns * width * zoom, rows * height * zoom), "white")
    pen = ImageDraw.Draw(canvas)
    for row in range(rows):
        pen.text((4, row * height * zoom + height * zoom // 2 - 6), names[row], fill="black")
        strip = images[row].permute(2, 0, 3, 1).reshape(height, columns * width, channels)
        pixels = strip.expand(-1, -1, 3) if channels == 1 else strip
        tile = Image.fromarray(pixels.contiguous().numpy())
        tile = tile.resize((tile.width * zoom, tile.height * zoom), Image.Resampling.NEAREST)
        canvas.paste(tile, (margin, row * height * zoom))
    return canvas
