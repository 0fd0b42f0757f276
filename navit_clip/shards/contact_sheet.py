"""Encoded images -> one PNG of small pictures in rows, each in its own shape."""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image

from navit_clip.data.images import decode_image
from navit_clip.errors import SampleError

WIDTH, ROW_HEIGHT, GAP = 1200, 96, 6


def contact_sheet(images: Iterable[bytes], num_rows: int) -> bytes:
    """A transparent PNG; images that do not decode are left out, and so is what comes after the last row."""
    rows: list[list[Image.Image]] = [[]]
    room = WIDTH
    for data in images:
        try:
            picture = Image.fromarray(decode_image(data))
        except SampleError:
            continue
        # Very long ones are shown smaller, so that a row has several.
        scale = min(ROW_HEIGHT / picture.height, WIDTH / 3 / picture.width)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        if size[0] > room:
            if len(rows) == num_rows:
                break
            rows.append([])
            room = WIDTH
        rows[-1].append(picture.resize(size, Image.Resampling.LANCZOS))
        room -= size[0] + GAP
    sheet = Image.new("RGBA", (WIDTH, len(rows) * (ROW_HEIGHT + GAP) - GAP))
    for number, row in enumerate(rows):
        left = 0
        for picture in row:
            top = number * (ROW_HEIGHT + GAP) + (ROW_HEIGHT - picture.height) // 2
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
