"""manifest.json beside shards: what each holds and what its bytes add up to."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from navit_clip.errors import DataError

FILE_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard that is done."""

    name: str
    samples: int
    bytes: int
    sha256: str
    rows: int
    """Images of the table that it was made from, bad ones among them."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Images that were left out, by cause."""

    def is_in(self, folder: Path) -> bool:
        """Whether the shard is there, byte for byte."""
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.bytes and sha256_of(path) == self.sha256


@dataclass(slots=True)
class Manifest:
    """All shards of a folder."""

    built_from: dict[str, str | int]
    """What determines the shards' bytes: another build of it gives the same."""
    shards: list[ShardRecord] = field(default_factory=list)
    empty_captions: int = 0
    """Captions of the table that say nothing, and are in no sample."""
    complete: bool = False

    @property
    def skipped(self) -> dict[str, int]:
        """Images that were left out, by cause."""
        return dict(sum((Counter(shard.skipped) for shard in self.shards), Counter()))

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest, so that a reader sees the old one or the new, never half."""
        totals = {"samples": self.samples, "bytes": self.bytes, "skipped": self.skipped}
        record = {**totals, **asdict(self)}
        partial = folder / f".{FILE_NAME}.partial"
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / FILE_NAME)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none.

    Raises:
        DataError: it cannot be read as one.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(
            record["built_from"],
            [ShardRecord(**shard) for shard in record["shards"]],
            record.get("empty_captions", 0),  # older manifests have none
            record["complete"],
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not readable as a manifest: {type(error).__name__}: {error}") from error


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
        # Read once, and not needed in memory again soon.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()
