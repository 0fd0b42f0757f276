"""What a folder's own library makes of pixels before its image tower sees them; ours sees them from -1 to 1.

A picture that is normalised otherwise has quite another vector, and a comparison of patches cannot see it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from open_clip.transform import PreprocessCfg

from navit_clip.errors import CheckpointError, with_faults
from navit_clip.huggingface import open_clip_format
from navit_clip.image_settings import image_settings
from navit_clip.json_object import read_json

HALF = [0.5, 0.5, 0.5]
"""Mean and standard deviation of each channel that take pixels from [0, 1] to [-1, 1]."""


def check_pixel_range(folder: Path) -> None:
    """Whether pictures reach the tower of a transformers or open_clip folder as they reach ours.

    Raises:
        CheckpointError: they do not; lists each setting that is another.
    """
    open_clip_file = folder / open_clip_format.CONFIG_FILE
    if open_clip_file.exists():
        usual = PreprocessCfg()
        found = read_json(open_clip_file).get("preprocess_cfg")
        said = {"mean": usual.mean, "std": usual.std, **(found if isinstance(found, dict) else {})}
        _check(open_clip_file, said, {"mean": HALF, "std": HALF})
        return
    if settings := image_settings(folder):
        expected = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
        _check(settings.file, settings.values, {**expected, "image_mean": HALF, "image_std": HALF})


def _check(file: Path, said: dict[str, Any], expected: dict[str, Any]) -> None:
    other = [
        f"{name}: expected {value}, found {said[name]}"
        for name, value in expected.items()
        if said.get(name) is not None and not _alike(said[name], value)
    ]
    if other:
        raise CheckpointError(
            with_faults(
                f"{file}: pictures reach that model otherwise than ours, which sees pixels from -1 to 1",
                other,
            )
        )


def _alike(found: Any, expected: Any) -> bool:
    """Whether two settings are the same number, or the same for each channel; one number is that of all."""
    if isinstance(expected, list):
        channels = found if isinstance(found, list | tuple) else [found] * len(expected)
        return len(channels) == len(expected) and all(map(_alike, channels, expected))
    return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=1e-5)
