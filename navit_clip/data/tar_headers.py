"""A tar file -> the files in it: name, offset and size of each, in order; and what is wrong with it.

A shard's headers are read anew in every worker process, so they are read fast: the plain headers that
WebDataset's writers leave are taken apart here, and tarfile is asked only about the others. Nothing is
extracted.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)
_ADLER_MODULUS = 65521
_TIMES_AND_OWNERS = re.compile(rb"(?:\d+ (?:[acm]time|[ug]id|[ug]name)=[^\n]*\n)+\0*")
"""The records of an extended header that change neither the name nor the size of the file that follows."""


class TarFault(NamedTuple):
    """Why reading ended before the end mark."""

    cause: str
    detail: str
    cut_off: str = ""
    """The name of the file inside of which the tar ends."""


class FileInTar(NamedTuple):
    """An entry of a tar, whose contents are the bytes [offset, offset + size)."""

    name: str
    offset: int
    size: int
    is_regular: bool
    """No folder, link or device."""


def read_headers(file: BinaryIO, size: int) -> tuple[list[FileInTar], TarFault | None]:
    """The regular files that lie whole in a tar, in order, and what is wrong with the tar, if anything.

    Args:
        file: an uncompressed tar, with a file descriptor.
        size: of the tar, in bytes.
    """
    files: list[FileInTar] = []
    try:
        with _tarfile_errors():
            tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="backslashreplace")
    except tarfile.ReadError as error:
        return files, TarFault("unreadable shard", f"not an uncompressed tar: {error}")
    offset = 0
    while True:
        try:
            found, after = _next_file(file, tar, offset, size)
        except tarfile.ReadError as error:
            return files, TarFault("truncated shard", f"cut off at byte {size}: {error}")
        if found is None:
            break
        # A size below zero has tarfile go back, and would have it go round for ever.
        if after < found.offset or found.offset + found.size > size:
            detail = f"cut off at byte {size}: no next header follows {found.name}"
            return files, TarFault("truncated shard", detail, found.name)
        if found.is_regular:
            files.append(found)
        offset = after
    # tarfile takes a broken header after the first for the end; the true end is marked by a block of zeros.
    if os.pread(file.fileno(), _BLOCK, after) != _END:
        detail = f"no end mark and no readable header at byte {after} of {size}"
        return files, TarFault("truncated shard", detail)
    return files, None


def is_tar(file: BinaryIO) -> bool:
    """Whether a file begins as an uncompressed tar does."""
    try:
        with _tarfile_errors():
            tarfile.TarFile(fileobj=file)
    except tarfile.ReadError:
        return False
    return True


def _next_file(file: BinaryIO, tar: Any, offset: int, size: int) -> tuple[FileInTar | None, int]:
    """What the header at an offset says, or None where there is no further one, and where the next begins."""
    # A global header may say anything about all files after it.
    if not tar.pax_headers:
        plain = _plain_header(os.pread(file.fileno(), 3 * _BLOCK, min(offset, size)), offset)
        if plain is not None:
            return plain, plain.offset + _whole_blocks(plain.size)
    if offset:  # the tar has its first header at hand
        tar.firstmember, tar.offset = None, offset  # pyright: ignore[reportAttributeAccessIssue]
    with _tarfile_errors():
        header = tar.next()
    if header is None:
        return None, tar.offset
    return FileInTar(header.name, header.offset_data, header.size, header.isreg()), tar.offset


def _plain_header(blocks: bytes, offset: int) -> FileInTar | None:
    """The regular file whose header opens these blocks, or None where the header is of any other kind."""
    if blocks[156:157] == b"x":
        length = _checked_size(blocks)
        if length is None or not _TIMES_AND_OWNERS.fullmatch(blocks, _BLOCK, _BLOCK + length):
            return None
        extension = _BLOCK + _whole_blocks(length)
        blocks, offset = blocks[extension:], offset + extension
    if blocks[156:157] not in (b"0", b"\0") or blocks[257:262] != b"ustar":
        return None
    length = _checked_size(blocks)
    name, prefix = blocks[:100].rstrip(b"\0"), blocks[345:500]
    # Names that fill their field, end in a slash, go on in the prefix, or hold zeros are tarfile's to read.
    if length is None or prefix[0] or len(name) == 100 or name.endswith(b"/") or b"\0" in name:
        return None
    return FileInTar(name.decode("utf-8", "backslashreplace"), offset + _BLOCK, length, is_regular=True)


def _checked_size(blocks: bytes) -> int | None:
    """The size in a header, or None where it is not spelt plainly or the header's checksum is wrong."""
    header, size, checksum = blocks[:_BLOCK], blocks[124:135], blocks[148:154]
    if len(header) < _BLOCK or not size.isdigit() or not checksum.isdigit():
        return None
    try:
        length, total = int(size, 8), int(checksum, 8)
    except ValueError:  # an 8 or a 9 among the digits
        return None
    # The sum of all bytes, taken with its own field full of spaces. Adler-32 has it, and at the speed of C.
    total += sum(blocks[148:156]) - 8 * ord(" ")
    return length if zlib.adler32(header) & 0xFFFF == (1 + total) % _ADLER_MODULUS else None


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


@contextmanager
def _tarfile_errors() -> Iterator[None]:
    """tarfile reports broken headers by many exceptions; out of here comes one ReadError."""
    try:
        yield
    except (OSError, tarfile.ReadError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from error
