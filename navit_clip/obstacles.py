"""What keeps files from coming to be at a path, told before the work whose results are to lie there."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory


def obstacle_to(path: Path) -> str:
    """Why no file can come to be at or below a path: the nearest folder that is there has to take one.

    Args:
        path: a folder, or what is yet to be one or to lie in one.

    Returns:
        What is in the way, for an error; nothing where nothing is.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        return f"{there} is a file"
    try:  # rights, quotas and read-only disks: what they allow is known by trying
        with TemporaryDirectory(dir=there, prefix=".writable-"):
            return ""
    except OSError as error:
        return f"{there} cannot be written: {error.strerror}"
