"""Shards open for reading at random: where each sample's members lie in the tar, and their bytes.

The index is made by one pass over the tar's headers. What is wrong with the tar is itself an entry: a
member group that names an extension twice, a key that came before, and the tail that a truncated tar has
lost each raise SampleError when read, so a reader that goes through all entries meets, and counts, each
fault exactly once; a shard always has an entry. Member names are only keys: nothing is extracted,
unpickled or written, and bytes of a name that are not UTF-8 are spelt out.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import BinaryIO, NamedTuple

from navit_clip.data.shards import Shard
from navit_clip.data.tar_headers import TarFault, read_headers
from navit_clip.errors import DataError, SampleError

MAX_BYTES = 100_000_000
"""Of one member; images of more are rare, and rarely meant."""
MAX_OPEN_FILES = 256
MAX_OPEN_ENTRIES = 200_000
"""About a hundred megabytes of index."""


class Member(NamedTuple):
    """A file in a tar: the bytes [offset, offset + size) of the shard."""

    extension: str
    offset: int
    size: int


class Entry(NamedTuple):
    """A sample's members, or what is wrong with it."""

    key: str
    members: tuple[Member, ...] = ()
    fault: tuple[str, str] | None = None
    """Cause and detail of the SampleError that reading raises."""


class OpenShard:
    """A shard's entries, in the order of the tar; `close()`, or dropping it, closes the file.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, shard: Shard):
        self.shard = shard
        try:
            with shard.open() as file:
                self._entries = _index(file)
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise _unreadable(shard, error) from error
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, index: int) -> str:
        """The sample's name within the whole data set."""
        return f"{self.shard.name}/{self._entries[index].key}"

    def read(self, index: int, wanted: Callable[[str], bool], max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
        """The contents of a sample's members, by lower-case extension, of the extensions that are wanted.

        Raises:
            SampleError: the entry stands for a fault, a member has more bytes than `max_bytes`, or the file
                is now shorter than its index says.
            DataError: the file can no longer be read.
        """
        entry = self._entries[index]
        if entry.fault is not None:
            cause, detail = entry.fault
            raise SampleError(cause, f"{self.key(index)}: {detail}")
        members = [member for member in entry.members if wanted(member.extension)]
        for member in members:
            if member.size > max_bytes:
                detail = f"{self.key(index)}: {member.extension} has {member.size} bytes, over {max_bytes}"
                raise SampleError("too many bytes", detail)
        return {member.extension: self._read(member, index) for member in members}

    def _read(self, member: Member, index: int) -> bytes:
        try:
            data = os.pread(self._descriptor, member.size, member.offset)
        except OSError as error:  # of a disk, or of a network's file system
            raise _unreadable(self.shard, error) from error
        if len(data) < member.size:
            raise SampleError(
                "truncated shard",
                f"{self.key(index)}: {member.extension} has {len(data)} bytes, not {member.size}",
            )
        return data


def _unreadable(shard: Shard, error: OSError) -> DataError:
    return DataError(f"shard {shard.path} cannot be read: {error.strerror}")


class OpenShards:
    """The shards that one process reads from, opened when first asked for, or ahead of that.

    The least recently used are closed, so that neither files nor indexes pile up over a large data set.
    """

    def __init__(self, shards: Sequence[Shard]):
        self._shards = shards
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._ahead: dict[int, Future[OpenShard]] = {}

    def prepare(self, number: int) -> None:
        """Begins to fetch a shard that lies elsewhere, and is asked for soon; an error waits until it is."""
        if self._shards[number].remote is not None and number not in {*self._open, *self._ahead}:
            self._ahead[number] = _opened_beside(self._shards[number])

    def __getitem__(self, number: int) -> OpenShard:
        if number not in self._open:
            ahead = self._ahead.pop(number, None)
            self._open[number] = OpenShard(self._shards[number]) if ahead is None else ahead.result()
            while len(self._open) > 1 and self._over_limit():
                _, oldest = self._open.popitem(last=False)
                oldest.close()
        self._open.move_to_end(number)
        return self._open[number]

    def _over_limit(self) -> bool:
        return len(self._open) > MAX_OPEN_FILES or sum(map(len, self._open.values())) > MAX_OPEN_ENTRIES


def _opened_beside(shard: Shard) -> Future[OpenShard]:
    """Opens a shard in a thread, which does not keep the process when that ends."""
    opened: Future[OpenShard] = Future()

    def open_it() -> None:
        try:
            opened.set_result(OpenShard(shard))
        except BaseException as error:
            opened.set_exception(error)

    threading.Thread(target=open_it, daemon=True).start()
    return opened


def _index(file: BinaryIO) -> list[Entry]:
    files, fault = read_headers(file, os.fstat(file.fileno()).st_size)
    groups: list[tuple[str, list[Member]]] = []
    for name, offset, size, _ in files:
        key, extension = _split(name)
        if not extension:
            continue
        if not groups or groups[-1][0] != key:
            groups.append((key, []))
        groups[-1][1].append(Member(extension, offset, size))
    if fault is not None and groups and _is_cut_off(groups, fault):
        groups.pop()
    entries: list[Entry] = []
    seen: set[str] = set()
    for key, found in groups:
        extensions = [member.extension for member in found]
        if key in seen:
            entries.append(Entry(key, fault=("duplicate key", "the shard has an earlier sample of this key")))
        elif len(set(extensions)) < len(extensions):
            entries.append(Entry(key, fault=("duplicate key", f"two of its files are alike: {extensions}")))
        else:
            entries.append(Entry(key, tuple(found)))
        seen.add(key)
    if fault is not None:
        entries.append(Entry("(end of file)", fault=(fault.cause, fault.detail)))
    return entries or [Entry("(end of file)", fault=("empty shard", "the tar has no samples"))]


def _is_cut_off(groups: Sequence[tuple[str, list[Member]]], fault: TarFault) -> bool:
    """Whether a tar that ends too early has lost files of its last sample.

    Where it ends between two files, a sample has lost some if it has fewer kinds than the one before it.
    """
    if fault.cut_off:
        return groups[-1][0] == _split(fault.cut_off)[0]
    kinds = [{member.extension for member in members} for _, members in groups[-2:]]
    return len(kinds) == 2 and kinds[1] < kinds[0]


def _split(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the file name; `__meta__` files are no samples."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or name.startswith("__"):
        return name, ""
    return folder + slash + stem, extension.lower()
