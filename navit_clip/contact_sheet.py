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
LINES = 2
"""Under a picture, at most."""
GAP = 12
COLUMNS = 6

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_contact_sheet(pictures: Sequence[tuple[str, bytes | SampleError]], title: str = "") -> Image.Image:
    """Draws encoded pictures in the order given, row by row; where one is not to be had, its cell says why.

    Args:
        pictures: a line of text of each, and its encoded image or why there is none.
        title: stands above them.
    """
    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, max(1, len(pictures)))
    width = GAP + columns * (CELL + GAP)
    head = 2 * GAP + LINE if title else GAP
    height = head + rows * (CELL + LINES * LINE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    draw.text((GAP, GAP), title, fill="black", font=font)
    for number, (line, data) in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        left = GAP + column * (CELL + GAP)
        top = head + row * (CELL + LINES * LINE + GAP)
        try:
            if isinstance(data, SampleError):
                raise data
            picture = Image.fromarray(decode_image(data))
        except SampleError as error:
            draw.text((left, top + CELL // 2), shortened(error.cause, font, CELL), fill="gray", font=font)
        else:
            picture.thumbnail((CELL, CELL))
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top + CELL - picture.height))
        for below, part in enumerate(in_two(line, font, CELL)):
            draw.text((left, top + CELL + 2 + below * LINE), part, fill="black", font=font)
    return sheet


def in_two(line: str, font: Font, width: int) -> list[str]:
    """A line as one or two that fit into `width` pixels, whole where two are enough."""
    first = len(line)
    while font.getlength(line[:first]) > width:
        first -= 1
    if first == len(line):
        return [line]
    cut = max(line.rfind(mark, 0, first) for mark in " /_-") + 1
    if font.getlength(line[cut:]) <= width:  # else every letter's place is needed
        first = cut
    return [line[:first].rstrip(), shortened(line[first:], font, width)]


def shortened(line: str, font: Font, width: int) -> str:
    """A line without as much of its middle as makes it fit into `width` pixels; its ends tell keys apart."""
    shown = line
    for left_out in range(2, len(line)):
        if font.getlength(shown) <= width:
            break
        kept = len(line) - left_out
        shown = f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
    return shown
