"""One image file as pixels: what training on your own images and common.predict both do to it.

It is turned as EXIF says, laid on a background where it is transparent, made grey or RGB, and
squeezed to a square by Pillow's bilinear filter. Of several frames the first counts.
"""

import io
import re
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from common.base.cli import first_line
from common.base.config import BACKGROUND, MAX_PIXELS

TOLD = tomllib.loads(Path(__file__).with_name("told.toml").read_text("utf-8"))
GREY_MODES = ("1", "L", "LA", "La")
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels are made of
Image.MAX_IMAGE_PIXELS = None  # open_image has a limit of its own, which a flag lifts


class Unreadable(ValueError):
    """No image, or none of 8 bits a channel; says why."""


@contextmanager
def decoding() -> Iterator[None]:
    """Around open_image, in however many threads, since warnings are a process's: odd metadata is
    not warned of."""
    with warnings.catch_warnings(action="ignore"):
        yield


def open_image(
    source: Path | bytes, background: str = BACKGROUND, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, set[str]]:
    """An image file, decoded whole, in mode L or RGB, and what is to be told of it: keys of
    TOLD. Raises: Unreadable."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        try:
            return _decode(data, background, max_pixels)
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, Unreadable) or not data.startswith(PNG):
                raise
        image, told = _decode(_without_metadata(data), background, max_pixels)
        return image, told | {"damaged_metadata"}
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("no image that Pillow can read") from None
    except Exception as error:  # decoders meet damage with whatever they stumble over
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from None


def _decode(data: bytes, background: str, max_pixels: int) -> tuple[Image.Image, set[str]]:
    told = set()
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > max_pixels:
            way_out = f"--max-pixels {width * height} reads it"
            raise Unreadable(f"{width}x{height}, over {max_pixels / 1e6:.3g} megapixels: {way_out}")
        if (bits := _bits_a_channel(image, data)) > 8:
            why = "save it with 8, since which value is white is yours to say"
            raise Unreadable(f"{bits} bits a channel: {why}")
        with suppress(Exception):  # a later frame may be damaged; a phone's MPO hides a preview
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                told.add("several_frames")
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # whatever the parser stumbles over
            told.add("damaged_metadata")
    grey = image.mode in GREY_MODES
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            told.add("transparent")
            colour = ImageColor.getrgb(background)
            image = Image.alpha_composite(Image.new("RGBA", image.size, colour), image)
            grey = grey and len(set(colour)) == 1
    return image.convert("L" if grey else "RGB"), told


def _bits_a_channel(image: Image.Image, data: bytes) -> int:
    """By the file's header: Pillow opens 16-bit colour in its mode of 8 bits, without a word, and
    takes the lower byte where a TIFF has its channels one after the other."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # BitsPerSample
    if image.format == "JPEG2000":  # the SIZ marker's first component, less 1, beside its sign
        return (data[data.index(b"\xff\x4f\xff\x51") + 42] & 127) + 1
    args = image.tile[0].args if image.tile else ""
    if image.format == "PPM" and isinstance(args, tuple):
        return int(args[1]).bit_length()  # the value of white
    deep = re.search(r";(16|32)", str(args))
    return int(deep[1]) if deep else 32 if image.mode[0] in "IF" else 8


def _without_metadata(png: bytes) -> bytes:
    """The chunks of a PNG file that its pixels are made of."""
    kept, start = [PNG], len(PNG)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] in PNG_PIXELS:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


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
