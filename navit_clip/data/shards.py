"""Shards by name: patterns in, tar files out; and the writing of shards.

A shard is an uncompressed tar in WebDataset's layout: consecutive members `key.extension` form a sample.
A pattern is a path, braces (`a/{0000..0099}.tar`), a glob (`a/*.tar`), a folder (every .tar in it), a URL
(with braces or `*`), or `pipe:` and a command; several patterns may be joined by `::`, as open_clip users
write them. The order is that of the patterns, and alphabetical within a glob or a folder.

This file alone imports webdataset, and only when it is called.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from navit_clip.data.remote import PIPE, RemoteConfig, find_remote, is_remote, open_remote
from navit_clip.data.tar_headers import is_tar
from navit_clip.errors import DataError


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar file, here or elsewhere."""

    path: str
    """A local path, a URL, or `pipe:` and a command."""
    name: str
    """Its file name without .tar; where two shards would share one, with the folders that tell them apart."""
    source: int = 0
    """The number of the pattern that named it."""
    remote: RemoteConfig | None = None
    """How to fetch it, if it is not here."""

    def open(self) -> BinaryIO:
        """The tar, as a file on this machine.

        Raises:
            DataError: it cannot be read, or not be fetched.
        """
        if self.remote is not None:
            return open_remote(self.path, self.remote)
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise DataError(f"shard {self.path} cannot be read: {error.strerror}") from error


def find_shards(patterns: Sequence[str], remote: RemoteConfig | None = None) -> list[Shard]:
    """Expands patterns to shards: local ones exist; URLs without a `*` are believed until they are opened.

    Args:
        patterns: each the name of one source of samples.
        remote: how to fetch shards from elsewhere; by default as `RemoteConfig()` says.

    Raises:
        DataError: no pattern is given, patterns match nothing, a file that one names outright is
            missing, a file here is no tar by name or by content, a shard is named twice, or a place elsewhere
            cannot be asked.
    """
    remote = remote or RemoteConfig()
    found, faults = [], []
    for source, pattern in enumerate(patterns):
        try:
            found += [(path, source) for path in _expand(pattern, remote)]
        except DataError as error:
            if is_remote(pattern):  # another such might take minutes to fail
                raise
            faults.append(str(error))
    if faults:
        raise DataError("\n  ".join(faults))
    if not found:
        raise DataError("no shards given: expected a list such as ['data/{0000..0099}.tar']")
    paths = [path if is_remote(path) else os.path.abspath(path) for path, _ in found]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DataError(f"{twice}: named twice among the shards; each sample is to be seen once an epoch")
    return [
        Shard(path, name, source, remote if is_remote(path) else None)
        for (path, source), name in zip(found, _names(paths), strict=True)
    ]


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


def _expand(pattern: str, remote: RemoteConfig) -> list[str]:
    from webdataset.shardlists import expand_urls

    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise DataError(f"shard pattern {pattern!r}: {error}") from error
    found = [(name, find_remote(name, remote) if is_remote(name) else _match(name)) for name in names]
    missing = [name for name, paths in found if not paths]
    if missing and len(missing) == len(names):
        looked = "" if is_remote(missing[0]) or os.path.isabs(missing[0]) else f" (looked in {os.getcwd()})"
        if os.path.isdir(missing[0]):
            readable = os.access(missing[0], os.R_OK | os.X_OK)
            looked = " (a folder without .tar files)" if readable else " (a folder that cannot be read)"
        raise DataError(f"no shard matches {pattern!r}{looked}")
    if missing:
        raise DataError(
            f"shard pattern {pattern!r}: {len(missing)} of {len(names)} files are missing, the first is "
            f"{missing[0]}; a glob such as '*.tar' takes those that are there"
        )
    paths = [path for _, of_name in found for path in of_name]
    for path in paths:
        # What is called .tar and is none is a damaged shard: counted, as damage in any other is.
        if not is_remote(path) and not path.endswith(".tar") and not _is_tar(path):
            raise DataError(f"shard pattern {pattern!r}: expected uncompressed tars alone, found {path}")
    return paths


def _is_tar(path: str) -> bool:
    with Shard(path, name=path).open() as file:
        return is_tar(file)


def _match(name: str) -> list[str]:
    if os.path.isdir(name):
        return sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
    if os.path.isfile(name):
        return [name]
    return sorted(path for path in glob.glob(name) if os.path.isfile(path))


def _names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, as few as make them all different, or else the whole paths."""
    parts = [_location(path).removesuffix(".tar").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _location(path: str) -> str:
    """What of a path names the shard: not a URL's query, and of a command its last word with a slash."""
    if path.startswith(PIPE):
        return next((word for word in reversed(path.split()) if "/" in word), path)
    return path.partition("?")[0] if is_remote(path) else path
