"""Pictures and captions that an export is verified on: the user's own where there are any.

The captions always include awkward ones: odd Unicode, white space, special tokens written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from navit_clip.config import build_config
from navit_clip.data.images import decode_image
from navit_clip.data.remote import RemoteConfig
from navit_clip.data.samples import IMAGE_EXTENSIONS, read_samples
from navit_clip.errors import DataError, ExportError, SampleError
from navit_clip.run_settings import RunSettings, run_folder

Picture = UInt8[np.ndarray, "_ _ 3"]

MAX_IMAGES = 20
MAX_CAPTIONS = 100
MAX_SAMPLES = 1000
"""Of a run's shards, where so many of the first are bad."""
GENERATED_SIZES = ((64, 64), (48, 200), (300, 90), (17, 23), (480, 640), (224, 224), (333, 500), (129, 65))
CAPTIONS = (
    *("a photo of a dog.", "A red SQUARE, and 12 blue ones!", "", "  two  spaces ", "tab\tnew\nline", "▁ ▁▁"),
    *("<eos>", "a <pad> in the <mask>", "<0x41>", "İstanbul", "naïve café", "日本語 テキスト", "👩‍👩‍👧 🐕"),
    "a caption that is longer than the context length " * 10,
)


@dataclass(frozen=True, slots=True)
class Examples:
    """What to verify on."""

    images: list[Picture]
    captions: list[str]
    source: str
    """Where the images are from, for people."""


def find_examples(images: str | None, run: Path) -> Examples:
    """Up to 20 images and 100 captions.

    Args:
        images: a folder of images or a pattern of shards; without one, the shards that the run's own
            config.yaml names, or where there are none, generated images.
        run: the folder that was given to be exported: a run, or a checkpoint or model folder in one.

    Raises:
        ExportError: there are no images where the user says.
        ConfigError: the run's config.yaml cannot be read, or says what cannot be.
    """
    if images is not None:
        return _given(images)
    return _of_run(run) or _generated()


def _of_run(path: Path) -> Examples | None:
    """Of the shards that a run's config names: those it was validated on, else those it was trained on."""
    run = run_folder(path)
    if run is None:
        return None
    settings = RunSettings(run)
    remote = build_config(
        RemoteConfig, settings.get("data.remote", dict) or {}, f"{settings.file}: data.remote"
    )
    for use, section in (("validation", "validation.data"), ("training", "data")):
        shards = settings.texts(f"{section}.shards")
        caption_key = settings.get(f"{section}.caption_key", str)
        try:
            images, captions = _of_shards(shards, caption_key, remote)
        except DataError:
            continue  # none, or moved since; what is verified on instead is said
        if images:
            return Examples(images, [*CAPTIONS, *captions][:MAX_CAPTIONS], f"of the run's {use} shards")
    return None


def _of_shards(
    shards: Sequence[str], caption_key: str | None, remote: RemoteConfig
) -> tuple[list[Picture], list[str]]:
    """The first pictures and captions that are good, of so many samples at most."""
    images: list[Picture] = []
    captions: list[str] = []
    for sample in islice(read_samples(shards, caption_key, remote=remote), MAX_SAMPLES):
        captions += sample.captions
        if len(images) < MAX_IMAGES:
            images += _decoded([sample.image])
        elif len(captions) >= MAX_CAPTIONS:
            break
    return images, captions


def _generated() -> Examples:
    noise = np.random.default_rng(0)
    generated = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in GENERATED_SIZES]
    return Examples(generated, list(CAPTIONS), "of generated noise (name real ones with --images)")


def _given(images: str) -> Examples:
    folder = Path(images)
    files = [path for path in sorted(folder.glob("**/*")) if path.suffix.lower()[1:] in IMAGE_EXTENSIONS]
    encoded = (
        (path.read_bytes() for path in files)
        if files
        else (sample.image for sample in read_samples([images]))
    )
    found = _decoded(encoded)
    if not found:
        raise ExportError(f"--images {images}: found no image that can be decoded")
    return Examples(found, list(CAPTIONS), f"from {images}")


def _decoded(encoded: Iterable[bytes]) -> list[Picture]:
    return list(islice(_pictures(encoded), MAX_IMAGES))


def _pictures(encoded: Iterable[bytes]) -> Iterator[Picture]:
    for data in encoded:
        try:
            yield decode_image(data)
        except SampleError:
            continue  # a bad image verifies nothing; training and evaluation count and report it
