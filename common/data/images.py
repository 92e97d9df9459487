"""Images as arrays: what a data set is, and how one file becomes pixels, which training on your own
images and common.predict do alike.
A file is turned as EXIF says, laid on a background where it is transparent, made grey or RGB, and
squeezed to a square by Pillow's bilinear filter. Of several frames the first counts."""

import io
import math
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from common.base.cli import first_line
from common.base.config import BACKGROUND, MAX_PIXELS

WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text("utf-8"))
TOLD = WORDS["told"]
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels are made of
Image.MAX_IMAGE_PIXELS = None  # open_image has a limit of its own, which a flag lifts
# Around open_image, in however many threads, for warnings are a process's: none of odd metadata.
decoding = partial(warnings.catch_warnings, action="ignore")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in published order: tensors, or arrays where torch is not needed."""

    name: str
    images: Any  # (N, C, H, W) uint8
    labels: Any  # (N,) int64
    classes: Sequence[str]
    # How many images the published division tests on, at the end, and validates on, before those.
    published: Mapping[str, int] = field(default_factory=dict)
    # Of your own images:
    files: Sequence[str] = ()  # within their folder
    groups: Sequence[str] = ()
    background: str = BACKGROUND  # of transparent ones
    told: Mapping[str, Sequence[str]] = field(default_factory=dict)  # files, by key of TOLD


class Unreadable(ValueError):
    """No image or no set of images that can be used; says why, and what to do."""


def require(condition: object, why: str, **facts: Any) -> None:
    """Raises: Unreadable, with that one of the refusals in words.toml."""
    if not condition:
        raise Unreadable(WORDS["refused"][why].format(**facts))


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
        raise Unreadable(WORDS["refused"]["no_image"]) from None
    except Exception as error:  # decoders meet damage with whatever they stumble over
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from None


def _decode(data: bytes, background: str, max_pixels: int) -> tuple[Image.Image, set[str]]:
    told = set()
    with Image.open(io.BytesIO(data)) as image:
        n, bits = math.prod(image.size), _bits_a_channel(image, data)
        require(n <= max_pixels, "too_large", size=image.size, n=n, limit=max_pixels / 1e6)
        require(bits <= 8, "too_deep", bits=bits)
        with suppress(Exception):  # a later frame may be damaged; a phone's MPO hides a preview
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                told.add("several_frames")
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # whatever the parser stumbles over
            told.add("damaged_metadata")
    grey = image.mode in ("1", "L", "LA", "La")
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
    kept, start = bytearray(PNG), len(PNG)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kept += png[start:end] if png[start + 4 : start + 8] in PNG_PIXELS else b""
        start = end
    return bytes(kept)


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
