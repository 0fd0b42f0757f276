"""What a folder says of how images reach its model, in the files that transformers' image processors have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from navit_clip.errors import CheckpointError
from navit_clip.json_object import read_json

PROCESSOR_FILE = "processor_config.json"
"""Of newer versions of transformers: the image processor's settings under `image_processor`."""
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
"""Those settings alone: of older versions, and of an imported model what its folder said."""


class ImageSettings(NamedTuple):
    """The settings of an image processor, and where they stand."""

    file: Path
    values: dict[str, Any]

    def most_patches(self) -> int | None:
        """Patches of an image at most, where the settings say.

        Raises:
            CheckpointError: it is no such number.
        """
        found = self.values.get("max_num_patches")
        if found is not None and (type(found) is not int or found < 1):
            raise CheckpointError(
                f"{self.file}: max_num_patches: expected a whole number of at least 1, found {found!r}"
            )
        return found


def image_settings(folder: Path) -> ImageSettings | None:
    """What a folder says; None where it says nothing.

    Raises:
        CheckpointError: a file of settings is not readable.
    """
    whole, alone = folder / PROCESSOR_FILE, folder / IMAGE_PROCESSOR_FILE
    if whole.exists():
        values = read_json(whole).get("image_processor")
        if isinstance(values, dict):
            return ImageSettings(whole, values)
    return ImageSettings(alone, read_json(alone)) if alone.exists() else None
