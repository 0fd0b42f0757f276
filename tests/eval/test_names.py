from __future__ import annotations

import json

import pytest

from eval.names import read_names
from navit_clip.errors import ConfigError


def test_lines_of_a_text_file(tmp_path):
    path = tmp_path / "classnames.txt"
    path.write_text("gas pump\n  tench \n\nchurch\n", encoding="utf-8")
    assert read_names(path, "any", "class_names") == ["gas pump", "tench", "church"]


def test_json_list_and_mapping(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(["a", "b"]))
    assert read_names(path, "any", "class_names") == ["a", "b"]
    path.write_text(json.dumps({"caltech101": ["c"], "pets": ["d"]}))
    assert read_names(path, "pets", "class_names") == ["d"]
    with pytest.raises(ConfigError, match=r"no list for 'flags'; it has caltech101, pets"):
        read_names(path, "flags", "class_names")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not readable"),
        ("[]", "is empty"),
        ("[1, 2]", "expected a list of strings"),
        ('{"pets": {"a": 1}}', "expected a list of strings"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_names(path, "pets", "class_names")


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match=r"class_names: no such file: .*absent\.txt"):
        read_names(tmp_path / "absent.txt", "any", "class_names")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not readable"):
        read_names(tmp_path / "names.txt", "any", "class_names")
