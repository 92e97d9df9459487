"""One image file as pixels: what training on your own images and common.predict both do to it.

It is turned as EXIF says, made grey or RGB without transparency, as torchvision's ImageFolder does,
and squeezed to a square by Pillow's bilinear filter. Of several frames the first counts.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.base.cli import first_line

GREY_MODES = ("1", "L", "LA", "La")


class Unreadable(ValueError):
    """No image, or none of 8 bits a channel; says why."""


@contextmanager
def decoding() -> Iterator[None]:
    """Around open_image, in however many threads, since warnings are a process's: odd metadata is
    not warned of; a decompression bomb is an error."""
    with warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def open_image(source: Path | bytes) -> Image.Image:
    """An image file, decoded whole, in mode L or RGB. Raises: Unreadable."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            turned = ImageOps.exif_transpose(image)
        if not turned.mode.startswith(("I", "F")):  # integers of 16 bits or more, and floats
            return turned.convert("L" if turned.mode in GREY_MODES else "RGB")
    except UnidentifiedImageError:
        raise Unreadable("no image that Pillow can read") from None
    except Exception as error:  # decoders meet damage with whatever they stumble over
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from None
    why = "save it with 8, since which value is white is yours to say"
    raise Unreadable(f"mode {turned.mode}, over 8 bits a pixel: {why}")


def to_pixels(image: Image.Image, channels: int, side: int | None) -> np.ndarray:
    """An image squeezed to a square of `side`, unless that is None. Shapes: (C, H, W) uint8."""
    image = image.convert("L" if channels == 1 else "RGB")
    if side and image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def to_inputs(image: Image.Image, channels: int, side: int, resized_as: str) -> np.ndarray:
    """An exported network's input, resized as your own images are stored, uint8, or as the
    published sets while they train, float32. Shapes: (C, S, S) float32 in [0, 1]."""
    if resized_as == "uint8" or image.size == (side, side):
        pixels = to_pixels(image, channels, side).astype(np.float32)
    else:
        planes = map(Image.fromarray, to_pixels(image, channels, None).astype(np.float32))
        resized = [plane.resize((side, side), Image.Resampling.BILINEAR) for plane in planes]
        pixels = np.stack([np.asarray(plane) for plane in resized])
    return pixels * np.float32(1 / 255)
