from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from eval.records import read_records, write_record
from navit_clip.errors import DataError


def record(dataset: str, acc1: float, tokens: int = 256) -> dict:
    protocol = {"images": {"tokens_per_image": tokens}}
    return {
        "dataset": dataset,
        "model": "m",
        "pretrained": "p",
        "task": "t",
        "metrics": {"acc1": acc1},
        "chance": {},
        "num_samples": 1,
        "notes": [],
        "language": "en",
        "protocol": protocol,
    }


def test_a_result_replaces_the_earlier_one_of_the_same_protocol(tmp_path):
    path = tmp_path / "results.jsonl"
    for result in (record("a", 0.1), record("b", 0.2), record("a", 0.3, tokens=64), record("a", 0.4)):
        write_record(result, path)
    assert [r["metrics"]["acc1"] for r in read_records(path)] == [0.2, 0.3, 0.4]
    assert len(path.read_text().splitlines()) == 3


def write_some(path: Path, writer: int) -> None:
    for number in range(20):
        write_record(record(f"{writer}-{number}", 0.1), path)


def test_evaluations_that_end_at_once_lose_no_result(tmp_path):
    path = tmp_path / "results.jsonl"
    with ThreadPoolExecutor(3) as writers:
        assert list(writers.map(partial(write_some, path), range(3))) == [None] * 3
    assert len(read_records(path)) == 60


def test_one_object_over_several_lines_is_a_result_too(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(record("a", 0.1), indent=2))
    assert read_records(path) == [record("a", 0.1)]


def test_a_name_with_a_line_separator_breaks_no_file(tmp_path):
    path = tmp_path / "results.jsonl"
    results = [record("a\u2028b", 0.1), record("c", 0.2)]
    for result in results:
        write_record(result, path)
    assert read_records(path) == results


def test_a_result_that_was_cut_off_is_left_out_and_one_amid_others_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    write_record(record("a", 0.1), path)
    with path.open("a") as file:
        file.write('{"dataset": "b", "mo')
    assert read_records(path) == [record("a", 0.1)]
    with path.open("a") as file:
        file.write("\n" + json.dumps(record("c", 0.2)) + "\n")
    with pytest.raises(DataError, match=r"results\.jsonl, line 2: expected a JSON object, found"):
        read_records(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", ", line 1: expected a JSON object"),
        ("3", ", line 1: expected a JSON object"),
        ('{"dataset": "a"}', ": expected results as .*; number 1 has no model, no task, no metrics"),
    ],
)
def test_what_is_no_result(tmp_path, content, said):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"results\.jsonl{said}"):
        read_records(path)
