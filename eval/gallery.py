"""Retrieval examples of a result -> rows of thumbnails, the right image framed.

The pictures are read again from the data set that the result names; where it is gone, the page says so.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from eval.image_packs import Samples
from eval.task_config import TaskConfig
from eval.tasks import open_captioned_task
from navit_clip.data.images import decode_image
from navit_clip.errors import DataError, SampleError

LONG_SIDE = 152
"""Pixels of a thumbnail's longer side: twice what the page shows, for dense screens."""


def draw_gallery(record: dict[str, Any]) -> str:
    """HTML of a retrieval result's examples.

    Args:
        record: a result as `navit-clip eval` writes it, with `examples` and `protocol`.
    """
    task = TaskConfig(**record["protocol"]["task"])
    try:
        samples = open_captioned_task(task).samples
        rows = [_row(example, samples) for example in record["examples"]]
    except (DataError, SampleError) as error:
        return f'<p class="note">The pictures cannot be shown: {html.escape(str(error))}</p>'
    return f'<div class="gallery">{"".join(rows)}</div>'


def _row(example: dict[str, Any], samples: Samples) -> str:
    retrieved: Sequence[str] = example["retrieved"]
    cells = [
        _cell(key, str(place), key == example["image"], samples) for place, key in enumerate(retrieved, 1)
    ]
    if example["image"] not in retrieved:
        cells.append('<div class="gap">…</div>')
        cells.append(_cell(example["image"], str(example["rank"] + 1), True, samples))
    caption = html.escape(example["caption"])
    return f'<div class="query"><p>{caption}</p><div class="strip">{"".join(cells)}</div></div>'


def _cell(key: str, place: str, is_right: bool, samples: Samples) -> str:
    kind, mark = ("right", " ✓") if is_right else ("other", "")
    picture = _thumbnail(key, samples)
    label = html.escape(key, quote=True)
    return (
        f'<figure class="{kind}"><img src="{picture}" alt="{label}" title="{label}">'
        f"<figcaption>{place}{mark}</figcaption></figure>"
    )


def _thumbnail(key: str, samples: Samples) -> str:
    if key not in samples.keys:
        raise DataError(f"the data set no longer has a sample {key!r}")
    image = Image.fromarray(decode_image(samples[samples.keys.index(key)].image))
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
