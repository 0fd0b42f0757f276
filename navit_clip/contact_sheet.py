"""Pictures in rows, each with words under it: what a search found, or what shards hold, at one glance."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from navit_clip.data.images import decode_image
from navit_clip.errors import SampleError

CELL = 192
"""Pixels of a picture's longer side."""
TEXT, TITLE = 13, 18
"""Pixels of a letter."""
LINE, TITLE_LINE = 20, 26
"""Pixels of a line."""
LINES = 4
"""Of words, at most, under a picture as in the title."""
GAP = 12
COLUMNS = 6
BREAKS = re.compile(r"[^ /_-]+[ /_-]*|[ /_-]+")
"""What stays together where a line is broken: up to a mark between the parts of a key or caption."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_contact_sheet(
    pictures: Sequence[tuple[str, bytes | SampleError]],
    title: str = "",
    note: str = "",
    on_any_page: bool = False,
) -> Image.Image:
    """Draws encoded pictures in the order given, row by row; where one is not to be had, its cell says why.

    Args:
        pictures: the words under each, and its encoded image or why there is none.
        title: stands above them, in larger letters.
        note: stands below the title, in gray.
        on_any_page: no background, and all words in gray, which shows on light pages and on dark ones.
    """
    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, max(1, len(pictures)))
    width = GAP + columns * (CELL + GAP)
    font, title_font = ImageFont.load_default(size=TEXT), ImageFont.load_default(size=TITLE)
    ink = "gray" if on_any_page else "black"
    head = [(line, title_font, ink, TITLE_LINE) for line in broken(title, title_font, width - 2 * GAP)]
    head += [(line, font, "gray", LINE) for line in broken(note, font, width - 2 * GAP)]
    top = GAP + sum(height for *_, height in head) + (GAP if head else 0)
    cell_height = CELL + LINES * LINE + GAP
    size = (width, top + rows * cell_height)
    # Without a background, still of the letters' colour: it shows through at their edges.
    sheet = Image.new("RGBA", size, (128, 128, 128, 0)) if on_any_page else Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    below = GAP
    for line, line_font, colour, height in head:
        draw.text((GAP, below), line, fill=colour, font=line_font)
        below += height
    for number, (words, data) in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        place = GAP + column * (CELL + GAP), top + row * cell_height
        _draw_cell(sheet, draw, font, ink, place, words, data)
    return sheet


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: Font,
    ink: str,
    place: tuple[int, int],
    words: str,
    data: bytes | SampleError,
) -> None:
    left, top = place
    try:
        if isinstance(data, SampleError):
            raise data
        picture = Image.fromarray(decode_image(data))
    except SampleError as error:
        for below, line in enumerate(broken(error.cause, font, CELL)):
            draw.text((left, top + CELL // 2 + below * LINE), line, fill="gray", font=font)
    else:
        picture.thumbnail((CELL, CELL))
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + CELL - picture.height))
    for below, line in enumerate(broken(words, font, CELL)):
        draw.text((left, top + CELL + 2 + below * LINE), line, fill=ink, font=font)


def broken(words: str, font: Font, width: int) -> list[str]:
    """Words as lines that fit into `width` pixels, at most `LINES` of them.

    Lines end where `words` has line breaks, and between the parts of a key or sentence; inside of a part only
    where it fills more than a line. What does not fit goes from the middle of the last line, for the end of a
    key tells it from others.
    """
    lines: list[str] = []
    for paragraph in words.split("\n"):
        line = ""
        for part in BREAKS.findall(paragraph):
            if line and font.getlength((line + part).rstrip()) > width:
                lines.append(line)
                line = ""
            line += part
            while font.getlength(line.rstrip()) > width:
                fits = max(1, _fitting(line, font, width))
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], _shortened("".join(lines[LINES - 1 :]), font, width)]
    return [line.strip() for line in lines if line.strip()]


def _fitting(line: str, font: Font, width: int) -> int:
    """How many of the first letters fit into `width` pixels."""
    return next(n for n in range(len(line), -1, -1) if font.getlength(line[:n]) <= width)


def _shortened(line: str, font: Font, width: int) -> str:
    """A line without as much of its middle as makes it fit into `width` pixels."""
    shown = line
    for left_out in range(2, len(line)):
        if font.getlength(shown) <= width:
            break
        kept = len(line) - left_out
        shown = f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
    return shown
