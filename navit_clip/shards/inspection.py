"""Shards -> what is in them: counts, sizes, shapes, caption lengths, and what a config would make of them.

Image headers alone are read; of many samples, some that are spread evenly over all shards. What a config
makes of the images is measured on the batches that training would begin with.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from string import Template

import numpy as np

from navit_clip.batch import Sample, lengths_of
from navit_clip.contact_sheet import draw_contact_sheet
from navit_clip.data.config import DataConfig
from navit_clip.data.faults import Faults
from navit_clip.data.images import EncodedImage
from navit_clip.data.loader import TrainLoader
from navit_clip.data.samples import read_sample
from navit_clip.data.shards import Shard
from navit_clip.data.tar_index import OpenShard
from navit_clip.errors import DataError, SampleError
from navit_clip.shards.histograms import histogram
from navit_clip.tokenizer import train_tokenizer

TEMPLATE = Path(__file__).with_name("inspection.html")
SHEET_PICTURES = 36
LONGEST_LINE = 200
"""Characters of a line under a picture; fewer fit."""
NUM_BATCHES = 24


@dataclass(slots=True)
class Inspection:
    """What was found in shards."""

    num_shards: int
    num_samples: int = 0
    """Entries of all shards, good and bad."""
    num_bytes: int = 0
    """Of the images that were looked at."""
    heights: list[int] = field(default_factory=list)
    """In pixels, of the images that were looked at; the next three go with them."""
    widths: list[int] = field(default_factory=list)
    captions: list[int] = field(default_factory=list)
    """Captions of each sample."""
    caption_words: list[int] = field(default_factory=list)
    """Words of each caption of each sample."""
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    """For the contact sheet: some images, encoded, each with its first caption, or else its key."""
    faults: Faults = field(default_factory=Faults)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a config makes of the images, over the first batches of training."""

    tokens_per_batch: int
    fill: list[float]
    """Share of the budget that each batch has."""
    tokens: list[int]
    """Tokens of each image, after dropping."""
    images_per_batch: list[int]


def inspect_shards(shards: Sequence[Shard], caption_key: str | None, most: int) -> Inspection:
    """Looks at up to about `most` samples, spread evenly.

    Raises:
        DataError: none of them is good; or a shard cannot be read.
    """
    found = Inspection(len(shards))
    found.num_samples = sum(map(_size, shards))
    stride = max(1, found.num_samples // most)
    kept_of = 1  # one picture of so many is kept for the sheet
    for sample in _some(shards, caption_key, stride, found.faults):
        try:
            image = EncodedImage(sample.image)
        except SampleError as error:
            found.faults.add(sample.key, error)
            continue
        found.heights.append(image.height)
        found.widths.append(image.width)
        found.num_bytes += len(sample.image)
        found.captions.append(len(sample.captions))
        found.caption_words += [len(caption.split()) for caption in sample.captions]
        if (len(found.heights) - 1) % kept_of == 0:
            line = " ".join((*sample.captions, sample.key)[0].split())
            found.pictures.append((line[:LONGEST_LINE], sample.image))
        if len(found.pictures) >= 2 * SHEET_PICTURES:
            found.pictures, kept_of = found.pictures[::2], 2 * kept_of
    if not found.heights:
        raise DataError(f"no good sample; {found.faults.summary()}")
    return found


def pictures_shown(found: Inspection) -> list[tuple[str, bytes]]:
    """The contact sheet's pictures, spread evenly over those that were kept for it."""
    number = min(len(found.pictures), SHEET_PICTURES)
    return [found.pictures[place * len(found.pictures) // number] for place in range(number)]


def predict(config: DataConfig, patch_size: int, seed: int) -> Prediction:
    """Runs the stream of a config for some batches; captions are read, and their tokens not counted."""
    tokenizer = train_tokenizer(["a"], vocab_size=512)
    loader = TrainLoader(config, tokenizer, patch_size, context_length=16, seed=seed)
    batches = list(islice(loader, NUM_BATCHES))
    return Prediction(
        config.tokens_per_batch,
        [batch.images.num_tokens / config.tokens_per_batch for batch in batches],
        [length for batch in batches for length in lengths_of(batch.images.offsets)],
        [len(batch) for batch in batches],
    )


def _size(shard: Shard) -> int:
    opened = OpenShard(shard)
    opened.close()
    return len(opened)


def _some(shards: Sequence[Shard], caption_key: str | None, stride: int, faults: Faults) -> Iterator[Sample]:
    before = 0
    for shard in shards:
        opened = OpenShard(shard)
        for index in range(-before % stride, len(opened), stride):
            try:
                yield read_sample(opened, index, caption_key)
            except SampleError as error:
                faults.add(opened.key(index), error)
        before += len(opened)
        opened.close()


def inspection_page(title: str, found: Inspection, prediction: Prediction | None) -> str:
    """One HTML page that needs no other file."""
    heights, widths = np.array(found.heights), np.array(found.widths)
    figures = [
        (
            "Image size",
            histogram(
                np.sqrt(heights * widths).tolist(),
                "images",
                "square root of the area (pixels)",
                (16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
                logarithmic=True,
            ),
        ),
        (
            "Aspect ratio",
            histogram(
                (widths / heights).tolist(),
                "images",
                "width / height (narrow on the left, wide on the right)",
                (0.125, 0.25, 0.5, 1, 2, 4, 8),
                logarithmic=True,
            ),
        ),
    ]
    if found.caption_words:
        words = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        svg = histogram(found.caption_words, "captions", "words", words, logarithmic=True, num_bins=32)
        figures.append(("Caption length", svg))
    if prediction is not None:
        most = max(prediction.tokens)
        ticks = [round(most * share) for share in (0, 0.25, 0.5, 0.75, 1)]
        drawn = f"images as they are drawn for {len(prediction.fill)} batches"
        svg = histogram(prediction.tokens, drawn, "tokens an image", ticks)
        figures.append(("Image tokens with this config", svg))
    sheet = io.BytesIO()
    draw_contact_sheet(pictures_shown(found), on_any_page=True).save(sheet, "PNG", optimize=True)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        facts="".join(
            f"<div><b>{number}</b><span>{what}</span></div>" for number, what in _facts(found, prediction)
        ),
        figures="".join(
            f"<figure><figcaption>{caption}</figcaption>{svg}</figure>" for caption, svg in figures
        ),
        sheet=base64.b64encode(sheet.getvalue()).decode(),
        faults=_faults_table(found.faults),
    )


def _facts(found: Inspection, prediction: Prediction | None) -> Iterator[tuple[str, str]]:
    looked_at = len(found.heights)
    yield f"{found.num_samples:,}", f"samples in {found.num_shards:,} shard{'s' * (found.num_shards > 1)}"
    if looked_at + found.faults.total < found.num_samples:
        yield f"{looked_at + found.faults.total:,}", "of them looked at, evenly spread"
    yield f"{np.median(found.widths):.0f} x {np.median(found.heights):.0f}", "pixels, median width and height"
    yield f"{found.num_bytes / looked_at / 1000:.1f} kB", "an image, encoded, mean"
    if found.caption_words:
        yield f"{np.mean(found.captions):.2g}", "captions a sample, mean"
        yield f"{np.median(found.caption_words):.0f}", "words a caption, median"
    if prediction is not None:
        yield f"{np.mean(prediction.tokens):.0f}", "tokens an image with this config, mean"
        yield (
            f"{np.mean(prediction.images_per_batch):.1f}",
            f"images a batch of {prediction.tokens_per_batch:,} tokens",
        )
        yield f"{100 * np.mean(prediction.fill):.1f} %", "of the token budget filled, mean"
    yield f"{found.faults.total:,}", "bad samples, by captions and image headers"


def _faults_table(faults: Faults) -> str:
    if not faults.total:
        return ""
    rows = "".join(
        f'<tr><td>{html.escape(cause)}</td><td class="number">{count:,}</td>'
        f"<td>{html.escape(faults.examples.get(cause, ''))}</td></tr>"
        for cause, count in faults.counts.most_common()
    )
    return (
        "<h2>Bad samples</h2><div class='card'><table><tr><th>cause</th><th class='number'>samples</th>"
        f"<th>the first</th></tr>{rows}</table></div>"
    )
