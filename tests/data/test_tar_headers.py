"""Headers that are taken apart here say what tarfile says of them."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.tar_headers import read_headers

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar_of(path, entries, format=tarfile.PAX_FORMAT, global_headers=None):
    """Writes (name, contents, attributes of TarInfo) as a tar."""
    with tarfile.open(path, "w", format=format, pax_headers=global_headers) as tar:
        for name, data, attributes in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(data))


def found(path):
    with open(path, "rb") as file:
        files, fault = read_headers(file, path.stat().st_size)
    return [(name, offset, size) for name, offset, size, _ in files], fault


def by_tarfile(path):
    with tarfile.open(path, encoding="utf-8", errors="backslashreplace") as tar:
        return [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]


ENTRIES = [
    ("a.jpg", b"x" * 700, {}),
    ("folder/", b"", {"type": tarfile.DIRTYPE}),
    ("folder/b.txt", b"", {}),
    ("n" * 99, b"1", {}),
    ("n" * 100, b"1", {}),
    ("p" * 90 + "/" + "n" * 90, b"1", {}),
    ("naïve.txt", b"2" * 512, {}),
    ("link.txt", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    ("time.txt", b"3", {"mtime": 1700000000.25}),
    ("owner.txt", b"4", {"uname": "ö", "uid": 2**40}),
    ("old.txt", b"5", {"type": tarfile.AREGTYPE}),
    ("commented.txt", b"6", {"pax_headers": {"comment": "unheard of"}}),
    ("renamed.txt", b"7", {"pax_headers": {"path": "other.txt"}}),
    ("last.txt", b"8" * 10_000, {}),
]


@pytest.mark.parametrize("format", FORMATS)
def test_reads_what_tarfile_reads(tmp_path, format):
    entries = [entry for entry in ENTRIES if format == "pax" or "uid" not in entry[2]]
    if format == "ustar":
        entries = [entry for entry in entries if "mtime" not in entry[2]]
    tar_of(tmp_path / "s.tar", entries, FORMATS[format])
    assert found(tmp_path / "s.tar") == (by_tarfile(tmp_path / "s.tar"), None)


def test_global_headers_are_heeded(tmp_path):
    tar_of(tmp_path / "s.tar", ENTRIES, global_headers={"path": "everything.txt"})
    assert found(tmp_path / "s.tar") == (by_tarfile(tmp_path / "s.tar"), None)
    assert found(tmp_path / "s.tar")[0][0][0] == "everything.txt"


@given(st.binary(min_size=1, max_size=4), st.integers(0, 2559))
def test_a_damaged_header_is_never_read_as_another(tmp_path_factory, damage, offset):
    """What is found in a damaged tar is a beginning of what was in it, or the damage lies in contents."""
    path = tmp_path_factory.mktemp("tar") / "s.tar"
    tar_of(path, [("a.txt", b"x" * 512, {"mtime": 1.5}), ("b.txt", b"y" * 512, {})])
    whole, _ = found(path)
    data = bytearray(path.read_bytes())
    data[offset : offset + len(damage)] = damage
    path.write_bytes(data)
    files, fault = found(path)
    assert files == whole[: len(files)]
    assert fault is not None or len(files) == len(whole)
