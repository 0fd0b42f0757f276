"""One rule for files that are written row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from navit_clip.errors import DataError
from navit_clip.json_lines import read_json_lines


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_line_ends_at_its_line_feed_alone(tmp_path):
    rows = [{"dataset": f"a{separator}b"} for separator in "\u2028\u2029\x85\x0b\x0c\x1c"]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert read_json_lines(write(tmp_path / "rows.jsonl", text.encode())) == rows


@pytest.mark.parametrize(
    "content",
    [b'{"a": 1}\n{"b": 2}', b'{"a": 1}\r\n{"b": 2}\r\n', b'\n{"a": 1}\n\n{"b": 2}\n \n'],
    ids=["no last line end", "as Windows ends lines", "empty lines"],
)
def test_what_is_whole_counts(tmp_path, content):
    assert read_json_lines(write(tmp_path / "rows.jsonl", content)) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("broken", [b'{"a', b'{"a": "\xc3', b"\0\0\0", b"\0\0\0}\n", b'{"a": 1}{"a"'])
def test_a_last_line_that_a_kill_or_a_power_cut_broke_is_left_out(tmp_path, broken):
    assert read_json_lines(write(tmp_path / "rows.jsonl", b'{"a": 1}\n' + broken)) == [{"a": 1}]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": 1}\n{"b\n{"c": 3}\n', r"""line 2: expected a JSON object, found '{"b': .*Unterminated"""),
        (b'{"a": 1}\n\n\xff\xfe\n{"c": 3}\n', r"line 3: expected a JSON object, found .*invalid start byte"),
        (b'{"a": 1}\n7\n', r"line 2: expected a JSON object, found '7'$"),
        (b"[" + b"1, " * 99 + b"1]", r"line 1: expected a JSON object, found '\[1, .*…'$"),
    ],
)
def test_any_other_line_that_is_no_object_is_an_error(tmp_path, content, found):
    with pytest.raises(DataError, match=rf"rows\.jsonl, {found}"):
        read_json_lines(write(tmp_path / "rows.jsonl", content))


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "absent.jsonl"):
        with pytest.raises(DataError, match=f"{path}: cannot be read: "):
            read_json_lines(path)
