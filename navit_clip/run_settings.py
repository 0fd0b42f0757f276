"""What a run was set to, read from its folder by what does not train: cards, examples, numbers of patches."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from navit_clip.config import read_settings
from navit_clip.errors import ConfigError

T = TypeVar("T")

RUN_CONFIG_FILE = "config.yaml"
KINDS = {dict: "a mapping", list: "a list", str: "a string", int: "a whole number"}
"""Kinds of settings that are asked for, in words."""


class RunSettings:
    """A run's config by dotted keys.

    Args:
        run: its folder.

    Raises:
        ConfigError: the config there is not readable as YAML, or is no mapping.
    """

    def __init__(self, run: Path):
        self.file = run / RUN_CONFIG_FILE
        self._tree = read_settings(self.file)

    def get(self, key: str, kind: type[T]) -> T | None:
        """A setting; None where there is none, or nothing in it.

        Raises:
            ConfigError: it is of another kind.
        """
        section, _, name = key.rpartition(".")
        mapping = self.get(section, dict) if section else self._tree
        found = None if mapping is None else mapping.get(name)
        if found is None:
            return None
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is int):
            raise self._error(key, KINDS[kind], found)
        return found

    def texts(self, key: str) -> list[str]:
        """A list of strings; none where there is no such setting."""
        found = self.get(key, list) or []
        if not all(isinstance(text, str) for text in found):
            raise self._error(key, "a list of strings", found)
        return found

    def _error(self, key: str, expected: str, found: object) -> ConfigError:
        return ConfigError(f"{self.file}: {key}: expected {expected}, found {found!r}")


def run_folder(path: str | Path) -> Path | None:
    """The run that a path is, or that the checkpoint or model folder there belongs to; None for others.

    A run is a folder with a config and checkpoints: a config of this name alone is anybody's.
    """
    path = Path(path).resolve()
    checkpoint = path.parent if path.name == "model" else path
    run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else path
    return run if (run / RUN_CONFIG_FILE).is_file() and (run / "checkpoints").is_dir() else None
