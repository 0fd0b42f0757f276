"""Examples of a result -> rows of thumbnails: what captions retrieve, and mistakes that a model was sure of.

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
from eval.tasks import open_captioned_task, open_classified_task
from eval.views import View
from navit_clip.errors import ConfigError, DataError, SampleError

LONG_SIDE = 152
"""Pixels of a thumbnail's longer side: twice what the page shows, for dense screens."""


def draw_retrieved(record: dict[str, Any]) -> str:
    """HTML of a retrieval result's examples, the right image framed.

    Args:
        record: a result as `navit-clip eval` writes it, with `examples` and `protocol`.
    """
    task = TaskConfig(**record["protocol"]["task"])
    try:
        pictures = Pictures(open_captioned_task(task).samples, View(border=task.border))
        rows = [_retrieved(example, pictures) for example in record["examples"]]
    except (ConfigError, DataError, SampleError) as error:
        return _cannot_be_shown(error)
    return f'<div class="gallery">{"".join(rows)}</div>'


def draw_mistakes(record: dict[str, Any]) -> str:
    """HTML of a classification's most confident mistakes.

    Args:
        record: a result as `navit-clip eval` writes it, with `mistakes` and `protocol`.
    """
    task = TaskConfig(**record["protocol"]["task"])
    try:
        data = open_classified_task(task)
        pictures = Pictures(data.samples, View(border=max(task.border, data.border), center=task.center))
        cells = [_mistake(mistake, pictures) for mistake in record["mistakes"]]
    except (ConfigError, DataError, SampleError) as error:
        return _cannot_be_shown(error)
    return f'<div class="mistakes">{"".join(cells)}</div>'


class Pictures:
    """Thumbnails of a data set, as the model was shown its images."""

    def __init__(self, samples: Samples, view: View):
        self._samples = samples
        self._view = view
        self._number = {key: number for number, key in enumerate(samples.keys)}

    def source(self, key: str) -> str:
        """A thumbnail as a data URL.

        Raises:
            DataError: the data set has no such sample.
            SampleError: it cannot be read any more.
        """
        if key not in self._number:
            raise DataError(f"the data set no longer has a sample {key!r}")
        image = Image.fromarray(self._view.open(self._samples[self._number[key]].image))
        image.thumbnail((LONG_SIDE, LONG_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _retrieved(example: dict[str, Any], pictures: Pictures) -> str:
    retrieved: Sequence[str] = example["retrieved"]
    cells = [
        _cell(key, str(place), key == example["image"], pictures) for place, key in enumerate(retrieved, 1)
    ]
    if example["image"] not in retrieved:
        cells.append('<div class="gap">…</div>')
        cells.append(_cell(example["image"], str(example["rank"] + 1), True, pictures))
    caption = html.escape(example["caption"])
    return f'<div class="query"><p>{caption}</p><div class="strip">{"".join(cells)}</div></div>'


def _cell(key: str, place: str, is_right: bool, pictures: Pictures) -> str:
    kind, mark = ("right", " ✓") if is_right else ("other", "")
    return f'<figure class="{kind}">{_image(key, pictures)}<figcaption>{place}{mark}</figcaption></figure>'


def _mistake(mistake: dict[str, Any], pictures: Pictures) -> str:
    label, answer = html.escape(mistake["label"]), html.escape(mistake["answer"])
    return (
        f"<figure>{_image(mistake['image'], pictures)}<figcaption><b>{answer}</b> "
        f"{100 * mistake['confidence']:.0f} %<br>is {label}</figcaption></figure>"
    )


def _image(key: str, pictures: Pictures) -> str:
    name = html.escape(key, quote=True)
    return f'<img src="{pictures.source(key)}" alt="{name}" title="{name}">'


def _cannot_be_shown(error: Exception) -> str:
    return f'<p class="note">The pictures cannot be shown: {html.escape(str(error))}</p>'
