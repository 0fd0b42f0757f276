"""Encoded bytes -> RGB bytes [height, width, 3].

JPEG, PNG, WebP, GIF (first frame), BMP and TIFF, upright (EXIF), transparency over white, any mode in. The
size is checked before anything is decoded. Bad bytes are a SampleError, whatever Pillow says about them.

Pillow decodes, and says what is an image. One path is there for speed: where the caller says what size is
enough, libjpeg-turbo decodes a JPEG, at a DCT scale if that will do (simplejpeg; benchmarks/decode.py). What
that cannot read is Pillow's to judge.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps

from navit_clip.errors import SampleError

MAX_PIXELS = 178_000_000
"""Pillow itself refuses images a little larger than this."""

_JPEG = b"\xff\xd8\xff"
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")
"""One of them stands in every file that may say how the picture is turned: in EXIF, or in XMP."""
_START_OF_SCAN = b"\xff\xda"
_SEGMENTS = frozenset((*range(0xC0, 0xD0), *range(0xDB, 0xFF)))
"""Markers of what says how long it is."""
_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)
"""Markers of a JPEG that is no progressive one."""
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""What libjpeg goes on to from a scan, whose own bytes are never that."""
_MAX_SCANS = 32
"""Each takes as long as a whole picture, however few bytes it has. Encoders write 10, optimisers up to 20."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations whose stored rows are the columns of the picture."""
_KNOWN_ORIENTATIONS = (2, 3, 4, *_TURNED)
"""Those that change the picture at all; others mean that it is stored as it is."""
_LEAST_REDUCTION = 2
"""Scales between a half and one have no fast DCT, and take longer than the whole picture."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image at its full size.

    Raises:
        SampleError: "undecodable image", "too many pixels" or "too many scans".
    """
    return EncodedImage(data, max_pixels).decode()


def picture_pixels(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """A Pillow image as a decoded one is: upright, transparency over white, RGB.

    Raises:
        SampleError: "undecodable image", where the file behind it is broken.
    """
    with _pillow():
        return _rgb(ImageOps.exif_transpose(image))


class EncodedImage:
    """An image whose size is known, and which is yet to be decoded.

    Attributes:
        height: of the upright picture, in pixels.
        width: of the upright picture, in pixels.
        num_bytes: that it may hold until it is decoded, where finding its size takes decoding it.

    Raises:
        SampleError: "undecodable image", "too many pixels" or "too many scans".
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS):
        self._data = data
        self._orientation: int | None = None
        self._image: Image.Image | None = None
        if (size := _plain_jpeg_size(data)) is not None:
            self._decodes_fast = True
            height, width = size
        else:
            with _pillow():
                self._image = _opened(data)
            self._decodes_fast = self._image.format == "JPEG" and self._image.mode in ("RGB", "L")
            width, height = self._image.size
        if width * height > max_pixels:
            raise SampleError("too many pixels", f"{width} x {height} is more than {max_pixels}")
        if self._image is not None:
            with _pillow():
                # For a PNG this already decodes: its EXIF may come after the pixels.
                self._orientation = self._image.getexif().get(_ORIENTATION_TAG)
        self.num_bytes = len(data) + (0 if self._decodes_fast else 4 * width * height)
        self._turned = self._orientation in _TURNED
        self.height, self.width = (width, height) if self._turned else (height, width)

    def decode(self, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "height width 3"]:
        """Decodes the picture.

        Args:
            at_least: height and width that are enough: a JPEG may come at the smallest DCT scale at which it
                still has twice these, since a resize to them then differs little from one of the full
                picture. Zeros ask for the full size.

        Raises:
            SampleError: "undecodable image".
        """
        if all(at_least) and self._decodes_fast and (pixels := self._jpeg(*at_least)) is not None:
            return pixels
        with _pillow():
            return _rgb(ImageOps.exif_transpose(self._image or _opened(self._data)))

    def _jpeg(self, height: int, width: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """The picture by libjpeg-turbo; None where it is damaged or too large, and so Pillow's to judge."""
        height, width = min(2 * height, self.height), min(2 * width, self.width)
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data,
                min_height=width if self._turned else height,
                min_width=height if self._turned else width,
                min_factor=_LEAST_REDUCTION,
            )
        except (ValueError, MemoryError):
            return None
        if self._orientation not in _KNOWN_ORIENTATIONS:
            return pixels
        stored = Image.fromarray(pixels)
        stored.getexif()[_ORIENTATION_TAG] = self._orientation
        with _pillow():
            return np.array(ImageOps.exif_transpose(stored))


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that nothing turns; None for all that Pillow is to look at.

    Pillow takes every table of a header apart, which takes as long as a twentieth of decoding.

    Raises:
        SampleError: "too many scans", of any JPEG.
    """
    if not data.startswith(_JPEG):
        return None
    place, is_only = _first_scan(data)
    if not is_only:
        _check_scans(data)
    before_scan = data[:place]
    if any(mark in before_scan for mark in _ORIENTATION_MARKS):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (int(height), int(width)) if colors in ("YCbCr", "Gray") else None


def _first_scan(data: bytes) -> tuple[int, bool]:
    """Where a JPEG's pixels begin, past all that is said of them, and whether one scan has them all.

    The file's end, and False, where the segments are unusual.
    """
    place, last, colors = 2, len(data) - 10, 0
    while place <= last and data[place] == 0xFF and data[place + 1] in _SEGMENTS:
        if data[place + 1] in _SEQUENTIAL_FRAMES:
            colors = data[place + 9]
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    if place > last or data[place : place + 2] != _START_OF_SCAN:
        return len(data), False
    return place, data[place + 4] == colors > 0


def _check_scans(data: bytes) -> None:
    """Refuses a JPEG that takes many times as long as its size tells, by a search of all of it."""
    scans, place = 0, 2
    while (found := _MARKER.search(data, place)) and (marker := data[found.end() - 1]) not in (0xD8, 0xD9):
        scans += marker == _START_OF_SCAN[1]
        if scans > _MAX_SCANS:
            raise SampleError("too many scans", f"a JPEG of more than {_MAX_SCANS}")
        place = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode.startswith("I"):
        # 16 bits a pixel; Pillow would clip them to 255 instead of scaling.
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if image.mode == "F":
        image = image.convert("L")
    return np.array(image.convert("RGB"))


@contextmanager
def _pillow() -> Iterator[None]:
    """Pillow reports bad bytes by many exceptions and by warnings; out of here comes one SampleError.

    MemoryError among them: a header of a few bytes can ask for more than there is, or than Pillow allows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise SampleError("too many pixels", str(error)) from error
    except Exception as error:
        # Pillow names the file object by its address, which differs from run to run.
        detail = re.sub(r"<_io\.BytesIO object at 0x\w+>", "it", str(error))
        raise SampleError("undecodable image", f"{type(error).__name__}: {detail}") from error
