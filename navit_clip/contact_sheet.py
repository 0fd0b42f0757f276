"""Pictures in rows, each with a line under it: what a search found, or what shards hold, at one glance."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from navit_clip.data.images import decode_image
from navit_clip.errors import SampleError

CELL = 192
"""Pixels of a picture's longer side."""
LINE = 20
"""Pixels of a line of text."""
GAP = 12
COLUMNS = 6


def draw_contact_sheet(pictures: Sequence[tuple[str, bytes]], title: str = "") -> Image.Image:
    """Draws encoded pictures in the order given, row by row; a broken one leaves its cell empty.

    Args:
        pictures: a line of text and the encoded image of each.
        title: stands above them.
    """
    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, max(1, len(pictures)))
    width = GAP + columns * (CELL + GAP)
    head = 2 * GAP + LINE if title else GAP
    height = head + rows * (CELL + LINE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    draw.text((GAP, GAP), title, fill="black", font=font)
    for number, (line, data) in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        left = GAP + column * (CELL + GAP)
        top = head + row * (CELL + LINE + GAP)
        try:
            picture = Image.fromarray(decode_image(data))
        except SampleError as error:
            line = f"{line} ({error.cause})"
        else:
            picture.thumbnail((CELL, CELL))
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top + CELL - picture.height))
        draw.text((left, top + CELL + 2), shortened(line, font, CELL), fill="black", font=font)
    return sheet


def shortened(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A line without as much of its middle as makes it fit into `width` pixels; its ends tell keys apart."""
    shown = line
    for left_out in range(2, len(line)):
        if font.getlength(shown) <= width:
            break
        kept = len(line) - left_out
        shown = f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
    return shown
