"""Pictures in rows, each with a line under it: what a search found, at one glance."""

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
LONGEST_LINE = 32
"""Characters that fit under a picture."""


def draw_contact_sheet(title: str, pictures: Sequence[tuple[str, bytes]]) -> Image.Image:
    """Draws encoded pictures in the order given, row by row; a broken one leaves its cell empty.

    Args:
        title: stands above them.
        pictures: a line of text and the encoded image of each.
    """
    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, max(1, len(pictures)))
    width = GAP + columns * (CELL + GAP)
    height = 2 * GAP + LINE + rows * (CELL + LINE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    draw.text((GAP, GAP), title, fill="black", font=font)
    for number, (line, data) in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        left = GAP + column * (CELL + GAP)
        top = 2 * GAP + LINE + row * (CELL + LINE + GAP)
        try:
            picture = Image.fromarray(decode_image(data))
        except SampleError as error:
            line = f"{line} ({error.cause})"
        else:
            picture.thumbnail((CELL, CELL))
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top + CELL - picture.height))
        shown = (
            line
            if len(line) <= LONGEST_LINE
            else f"{line[: LONGEST_LINE // 2]}…{line[1 - LONGEST_LINE // 2 :]}"
        )
        draw.text((left, top + CELL + 2), shown, fill="black", font=font)
    return sheet
