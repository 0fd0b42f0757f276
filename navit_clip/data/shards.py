"""Shards by name: patterns in, local tar files out; and the writing of shards.

A shard is an uncompressed tar in WebDataset's layout: consecutive members `key.extension` form a sample.
A pattern is a path, braces (`a/{0000..0099}.tar`), a glob (`a/*.tar`), or a folder (every .tar in it);
several patterns may be joined by `::`, as open_clip users write them. The order is that of the patterns,
and alphabetical within a glob or a folder.

This file alone imports webdataset, and only when it is called.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from navit_clip.errors import DataError


@dataclass(frozen=True, slots=True)
class Shard:
    """A local tar file."""

    path: str
    name: str
    """Its file name without .tar; where two shards would share one, with the folders that tell them apart."""


def find_shards(patterns: Sequence[str]) -> list[Shard]:
    """Expands patterns to shards that exist.

    Raises:
        DataError: no pattern is given, a pattern matches nothing, a file that it names outright is
            missing, or a shard is named twice.
    """
    paths = [path for pattern in patterns for path in _expand(pattern)]
    if not paths:
        raise DataError("no shards given: expected a list such as ['data/{0000..0099}.tar']")
    absolute = [os.path.abspath(path) for path in paths]
    if len(set(absolute)) < len(absolute):
        twice = next(path for path in absolute if absolute.count(path) > 1)
        raise DataError(f"{twice}: named twice among the shards; each sample is to be seen once an epoch")
    return [Shard(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def write_shard(path: str | Path, samples: Iterable[Mapping[str, str | bytes]]) -> None:
    """Writes a shard; equal samples give equal bytes.

    Args:
        path: the tar file to write.
        samples: each maps "__key__" to the sample's name, and extensions ("jpg", "txt", "cls") to contents.
    """
    from webdataset.writer import TarWriter

    with TarWriter(str(path), encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write({name: _bytes(name, value) for name, value in sample.items()})


def _bytes(name: str, value: str | bytes) -> str | bytes:
    return value.encode() if isinstance(value, str) and name != "__key__" else value


def _expand(pattern: str) -> list[str]:
    from webdataset.shardlists import expand_urls

    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise DataError(f"shard pattern {pattern!r}: {error}") from error
    found = [(name, _match(name)) for name in names]
    missing = [name for name, paths in found if not paths]
    if missing and len(missing) == len(names):
        raise DataError(f"no shard matches {pattern!r} (looked in {os.getcwd()})")
    if missing:
        raise DataError(
            f"shard pattern {pattern!r}: {len(missing)} of {len(names)} files are missing, the first is "
            f"{missing[0]}; a glob such as '*.tar' takes those that are there"
        )
    return [path for _, paths in found for path in paths]


def _match(name: str) -> list[str]:
    if os.path.isdir(name):
        return sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
    if os.path.isfile(name):
        return [name]
    return sorted(path for path in glob.glob(name) if os.path.isfile(path))


def _names(paths: Sequence[str]) -> list[str]:
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    absolute = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath(absolute)
    return [os.path.relpath(path, common).removesuffix(".tar") for path in absolute]
